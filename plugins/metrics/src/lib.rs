//! Metrics that compare samples with the training images, one file each. To add a metric, add its file and
//! list it below.

#[cfg(test)]
use features as _;
#[cfg(test)]
use framework_dylib as _;

mod caption_accuracy;
mod class_accuracy;
mod density_coverage;
mod frechet;
mod gaussian;
mod in_space;
mod inception_score;
mod kernel_distance;
mod manifold;
mod nearest_neighbour;
mod neighbours;
mod precision_recall;
mod resample;
mod spatial_frechet;

pub use caption_accuracy::CaptionAccuracy;
pub use class_accuracy::ClassAccuracy;
pub use density_coverage::DensityCoverage;
pub use frechet::Frechet;
pub use inception_score::InceptionScore;
pub use kernel_distance::KernelDistance;
pub use nearest_neighbour::NearestNeighbour;
pub use precision_recall::PrecisionRecall;
pub use spatial_frechet::SpatialFrechet;

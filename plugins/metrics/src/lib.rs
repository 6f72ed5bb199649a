//! Metrics that compare samples with the training images, one file each. To add a metric, add its file and
//! list it below.

#[cfg(test)]
use framework_dylib as _;

mod caption_accuracy;
mod class_accuracy;
mod frechet;
mod nearest_neighbour;
mod neighbours;

pub use caption_accuracy::CaptionAccuracy;
pub use class_accuracy::ClassAccuracy;
pub use frechet::{Features, Frechet};
pub use nearest_neighbour::NearestNeighbour;

//! Datasets, one file each: embedded digits, rendered shapes, points in the plane, image folders, tar files and encoded
//! latents.
//! To add a dataset, add its file and list it below.

#[cfg(test)]
use framework_dylib as _;

mod classes;
mod decode;
mod digits;
mod image_folder;
mod latents;
mod left_out;
mod missing;
pub mod points;
mod regular;
mod shapes;
mod skipped;
mod text;
mod webdataset;
mod whole;

pub use decode::{Crop, Resize};
pub use digits::Digits;
pub use image_folder::{Captions, ImageFolder};
pub use latents::Latents;
pub use shapes::{ConditionOf, Shapes};
pub use webdataset::{Beside, WebDataset};

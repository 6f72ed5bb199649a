//! Datasets, one file each: embedded digits, rendered shapes, image folders, tar files and encoded latents.
//! To add a dataset, add its file and list it below.

#[cfg(test)]
use framework_dylib as _;

mod decode;
mod digits;
mod image_folder;
mod latents;
mod shapes;
mod skipped;
mod webdataset;

pub use digits::Digits;
pub use image_folder::{Captions, ImageFolder};
pub use latents::Latents;
pub use shapes::{ConditionOf, Shapes};
pub use webdataset::{Beside, WebDataset};

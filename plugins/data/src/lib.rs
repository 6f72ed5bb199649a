//! Datasets: images of the binary itself or drawn by it, images of a folder or of tar files, and latents encoded before.

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

//! Datasets: images of the binary itself or drawn by it, images of a folder, and latents encoded before.

mod digits;
mod image_folder;
mod latents;
mod shapes;

pub use digits::Digits;
pub use image_folder::ImageFolder;
pub use latents::Latents;
pub use shapes::{ConditionOf, Shapes};

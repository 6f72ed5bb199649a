//! Datasets: images of the binary itself, images of a folder, and latents encoded before.

mod digits;
mod image_folder;
mod latents;

pub use digits::Digits;
pub use image_folder::ImageFolder;
pub use latents::Latents;

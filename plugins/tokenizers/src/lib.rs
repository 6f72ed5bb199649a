//! Tokenizers: images to latents and back.

mod levels;
mod pixels;
mod pyramid;

pub use levels::Levels;
pub use pixels::Pixels;
pub use pyramid::Pyramid;

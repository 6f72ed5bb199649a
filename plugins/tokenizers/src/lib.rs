//! Tokenizers: images to latents and back.

mod pixels;

pub use pixels::Pixels;

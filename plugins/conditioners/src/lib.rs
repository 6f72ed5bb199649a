//! Conditioners: captions to what a text-conditional backbone reads. One file each.

#[cfg(test)]
use framework_dylib as _;

mod bpe;
mod clip_text;
mod words;

pub use bpe::Bpe;
pub use clip_text::ClipText;
pub use words::Words;

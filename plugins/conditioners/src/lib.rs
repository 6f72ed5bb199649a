//! Conditioners encode captions for text-conditional backbones, one file each. To add a conditioner, add its
//! file and list it below.

#[cfg(test)]
use framework_dylib as _;

mod bpe;
mod clip_text;
mod words;

pub use bpe::Bpe;
pub use clip_text::ClipText;
pub use words::Words;

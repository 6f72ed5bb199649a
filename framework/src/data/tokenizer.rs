//! Tokenizers: images to latents and back.

use crate::error::{Problems, Result};
use crate::foreign::Report;
use crate::process::{Latent, LatentShape};
use crate::random::Random;
use burn::tensor::{Device, Int, Tensor};
use std::fmt::Debug;
use std::path::Path;

/// Shape of an image: channels, height, width.
pub type ImageShape = [usize; 3];

/// A tokenizer. The document entry is the tokenizer; trained weights are loaded by [`Tokenizer::load`].
pub trait Tokenizer: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// The latent of an image of the given shape.
    ///
    /// # Errors
    /// If images of this shape cannot be encoded; pointers are relative to the entry.
    fn latent_shape(&self, image: ImageShape) -> Result<LatentShape, Problems>;

    /// The image that a latent decodes to: the inverse of [`Tokenizer::latent_shape`].
    fn image_shape(&self, latent: LatentShape) -> ImageShape;

    /// Loads its weights, once, before the first encode or decode.
    ///
    /// # Errors
    /// If a file is missing or is not what it should be.
    fn load(&mut self, device: &Device) -> Result<()> {
        let _ = device;
        Ok(())
    }

    /// Reads the official weights of `from` and writes them to `to` as safetensors, a container that holds tensors and
    /// nothing else, under the names of `format` or else of the first published one. `None` if it has no weights.
    ///
    /// # Errors
    /// If a file cannot be read or written, or does not hold the weights of this entry.
    fn convert(&self, from: &Path, to: &Path, format: Option<&str>) -> Result<Option<Report>> {
        let _ = (from, to, format);
        Ok(None)
    }

    /// Number of weights that are read from a file.
    fn parameters(&self) -> usize {
        0
    }

    /// Images `[B, C, H, W]` in [-1, 1] to latents: a function of the images and the weights alone.
    fn encode(&self, images: Tensor<4>) -> Latent;

    /// Latents to images `[B, C, H, W]`, nominally in [-1, 1].
    fn decode(&self, latent: Latent, image: ImageShape) -> Tensor<4>;

    /// Itself, if it must learn from the dataset before training.
    fn learner(&mut self) -> Option<&mut dyn LearnedTokenizer> {
        None
    }

    /// What turns the tokens of a pyramid's levels into the features of the next, if it makes levels.
    fn codec(&self) -> Option<&dyn LevelCodec> {
        None
    }
}

/// A tokenizer that learns from a dataset, once; the run keeps what it learned.
pub trait LearnedTokenizer {
    /// Learns from images `[N, C, H, W]` in [-1, 1]. `progress` is told the rounds done, the most there will be, and the
    /// mean squared error.
    ///
    /// # Errors
    /// If nothing can be learned from them.
    fn learn(&mut self, images: Tensor<4>, random: &Random, progress: &mut dyn FnMut(usize, usize, f64)) -> Result<()>;

    /// Writes what was learned.
    ///
    /// # Errors
    /// If the file cannot be written.
    fn save(&self, path: &Path) -> Result<()>;

    /// Reads what was learned.
    ///
    /// # Errors
    /// If the file is missing or is not what it should be.
    fn restore(&mut self, path: &Path, device: &Device) -> Result<()>;
}

/// From the tokens of some levels to what the next level's predictions read.
pub trait LevelCodec {
    /// Features of the levels `0..=ids.len()`, `[B, position, channel]`, from the tokens of the levels before the last,
    /// each `[B, side * side]`. Those of the first level are zero and never read.
    fn features(&self, ids: &[Tensor<2, Int>], batch: usize, device: &Device) -> Tensor<3>;
}

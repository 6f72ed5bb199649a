//! Tokenizers: they encode images into latents and decode latents into images.

use crate::checkpoint::component::Component;
use crate::checkpoint::official::Report;
use crate::error::{Problems, Result};
use crate::process::{Latent, LatentShape};
use crate::random::Random;
use burn::tensor::{Device, Int, Tensor};
use std::fmt::Debug;
use std::path::Path;

/// Shape of an image: channels, height, width.
pub type ImageShape = [usize; 3];

/// A tokenizer. Its document entry deserializes into it, and [`Tokenizer::load`] loads trained weights.
pub trait Tokenizer: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns the latent shape of an image of the given shape.
    ///
    /// # Errors
    /// If images of this shape cannot be encoded. Pointers are relative to the entry.
    fn latent_shape(&self, image: ImageShape) -> Result<LatentShape, Problems>;

    /// Returns the shape of the image that a latent decodes to: the inverse of [`Tokenizer::latent_shape`].
    fn image_shape(&self, latent: LatentShape) -> ImageShape;

    /// Loads the weights, once, before the first encode or decode.
    ///
    /// # Errors
    /// If a file is missing or invalid.
    fn load(&mut self, device: &Device) -> Result<()> {
        let _ = device;
        Ok(())
    }

    /// Reads the official weights of `from` and writes them to `to` as safetensors, under the names of
    /// `format`, or of the first published format. Returns `None` if the tokenizer has no weights.
    ///
    /// # Errors
    /// If a file cannot be read or written, or does not hold the weights of this entry.
    fn convert(&self, from: &Path, to: &Path, format: Option<&str>) -> Result<Option<Report>> {
        let _ = (from, to, format);
        Ok(None)
    }

    /// Returns the part of a pipeline for images of this shape in the published format `format`; `None` if the
    /// tokenizer has no such form. Called after [`Tokenizer::load`].
    fn component(&self, format: &str, image: ImageShape) -> Option<Component> {
        let _ = (format, image);
        None
    }

    /// Returns the number of weights that are loaded from a file.
    fn parameters(&self) -> usize {
        0
    }

    /// Encodes images `[B, C, H, W]` in [-1, 1]. The latents depend only on the images and the weights.
    fn encode(&self, images: Tensor<4>) -> Latent;

    /// Decodes latents into images `[B, C, H, W]`, nominally in [-1, 1].
    fn decode(&self, latent: Latent, image: ImageShape) -> Tensor<4>;

    /// Returns itself if it must learn from the dataset before training.
    fn learner(&mut self) -> Option<&mut dyn LearnedTokenizer> {
        None
    }

    /// Returns the codec that computes the next level's features from the tokens of a pyramid, if the
    /// tokenizer has levels.
    fn codec(&self) -> Option<&dyn LevelCodec> {
        None
    }
}

/// A tokenizer that learns from a dataset once. The run stores what it learned.
pub trait LearnedTokenizer {
    /// Learns from images `[N, C, H, W]` in [-1, 1]. It calls `progress` with the completed rounds, the
    /// maximum number of rounds, and the mean squared error.
    ///
    /// # Errors
    /// If nothing can be learned from the images.
    fn learn(&mut self, images: Tensor<4>, random: &Random, progress: &mut dyn FnMut(usize, usize, f64)) -> Result<()>;

    /// Writes the learned state.
    ///
    /// # Errors
    /// If the file cannot be written.
    fn save(&self, path: &Path) -> Result<()>;

    /// Reads the learned state.
    ///
    /// # Errors
    /// If the file is missing or invalid.
    fn restore(&mut self, path: &Path, device: &Device) -> Result<()>;
}

/// Computes the features that feed a level's predictions from the tokens of the coarser levels.
pub trait LevelCodec {
    /// Computes the features of the levels `0..=ids.len()`, `[B, position, channel]`, from the tokens of all
    /// but the last of these levels, each `[B, side * side]`. The first level's features are zero and never
    /// read.
    fn features(&self, ids: &[Tensor<2, Int>], batch: usize, device: &Device) -> Tensor<3>;
}

//! From a caption to the features a text-conditional backbone attends to.

use crate::condition::{Condition, ConditionKind};
use crate::error::{Problems, Result};
use crate::foreign::Report;
use burn::tensor::Device;
use std::fmt::Debug;
use std::path::Path;

/// Turns captions into [`Condition::Text`], or into [`Condition::Tokens`] where the backbone trains a text encoder. Class-conditional backbones need none: their class table is a weight.
pub trait Conditioner: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// What it makes of a caption: [`ConditionKind::Text`] or [`ConditionKind::Tokens`].
    fn kind(&self) -> ConditionKind;

    /// Length of a text in tokens, and the width of its features or the number of distinct tokens.
    fn text_shape(&self) -> [usize; 2];

    /// Loads what it needs, once, before the first [`Conditioner::encode`].
    ///
    /// # Errors
    /// If a file is missing or is not what it should be.
    fn load(&mut self, device: &Device) -> Result<()>;

    /// Reads the official weights of `from` and writes them to `to` as safetensors, under the names of `format` or else of
    /// the first published one. `None` if it has no weights.
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

    /// Features or tokens of `captions`; `None` is the null caption.
    ///
    /// # Errors
    /// If [`Conditioner::load`] was not called or a caption cannot be encoded.
    fn encode(&self, captions: &[Option<String>]) -> Result<Condition>;
}

//! Conditioners: from a caption to the features that a text-conditional backbone attends to.

use crate::checkpoint::component::Component;
use crate::checkpoint::official::Report;
use crate::error::{Problems, Result};
use crate::network::condition::{Condition, ConditionShape};
use burn::tensor::Device;
use std::fmt::Debug;
use std::path::Path;

/// Turns captions into [`Condition::Text`], or into [`Condition::Tokens`] if the backbone trains its own text encoder.
/// Class-conditional backbones need no conditioner, because their class embedding table is a weight.
pub trait Conditioner: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns the shape of the conditions that the conditioner produces: [`ConditionShape::Text`] or
    /// [`ConditionShape::Tokens`], with a length.
    fn produces(&self) -> ConditionShape;

    /// Loads files and weights. Called once, before the first [`Conditioner::encode`].
    ///
    /// # Errors
    /// If a file is missing or has the wrong content.
    fn load(&mut self, device: &Device) -> Result<()>;

    /// Reads official weights from `from` and writes them to `to` as safetensors, under the names of `format`; by
    /// default, of the first published format. Returns `None` if the conditioner has no weights.
    ///
    /// # Errors
    /// If a file cannot be read or written, or does not contain the weights of this entry.
    fn convert(&self, from: &Path, to: &Path, format: Option<&str>) -> Result<Option<Report>> {
        let _ = (from, to, format);
        Ok(None)
    }

    /// Returns the parts of a pipeline in the published format `format`; empty if the conditioner has none in it.
    ///
    /// # Errors
    /// If [`Conditioner::load`] was not called, or the parts have no form in this format.
    fn components(&self, format: &str) -> Result<Vec<Component>> {
        let _ = format;
        Ok(Vec::new())
    }

    /// Returns the number of weights that are read from a file.
    fn parameters(&self) -> usize {
        0
    }

    /// Checks one caption. Returns how the caption is shortened, in words that are equal for all captions, or `None` if
    /// all of it is encoded.
    ///
    /// # Errors
    /// If the caption cannot be encoded.
    fn check_caption(&self, caption: &str) -> Result<Option<String>> {
        let _ = caption;
        Ok(None)
    }

    /// Encodes `captions` as features or tokens. `None` is the null caption.
    ///
    /// # Errors
    /// If [`Conditioner::load`] was not called or a caption cannot be encoded.
    fn encode(&self, captions: &[Option<String>]) -> Result<Condition>;
}

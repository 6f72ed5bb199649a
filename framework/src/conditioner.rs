//! From a caption to the features a text-conditional backbone attends to.

use crate::condition::Condition;
use crate::error::Result;
use burn::tensor::Device;
use std::fmt::Debug;

/// Turns captions into [`Condition::Text`]. Class-conditional backbones need none: their class table is a weight.
pub trait Conditioner: Debug + Send + Sync {
    /// Length L and width D of the features.
    fn feature_shape(&self) -> [usize; 2];

    /// Loads what it needs, once, before the first [`Conditioner::encode`].
    ///
    /// # Errors
    /// If a file is missing or is not what it should be.
    fn load(&mut self, device: &Device) -> Result<()>;

    /// Features of `captions`; `None` is the null caption.
    ///
    /// # Errors
    /// If [`Conditioner::load`] was not called or a caption cannot be encoded.
    fn encode(&self, captions: &[Option<String>]) -> Result<Condition>;
}

//! Feature spaces, in which metrics compare images: the document entry, and the network that it loads.

use crate::data::tokenizer::ImageShape;
use crate::error::{Problems, Result};
use burn::tensor::{Device, Tensor};
use std::fmt::Debug;

/// A feature space. The document entry itself implements this trait.
pub trait Features: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns the incompatibilities with images of this shape. Pointers are relative to the entry.
    fn check_image(&self, image: ImageShape) -> Problems {
        let _ = image;
        Problems::new()
    }

    /// Returns the name of the space in measurements and statistics, in lower snake case. Spaces with incomparable
    /// features have different names, so the name includes every setting that changes the features.
    fn space(&self) -> String;

    /// Returns the widths of the features of one image.
    fn widths(&self, image: ImageShape) -> FeatureWidths;

    /// Returns the number of images that one call of [`Extractor::extract`] receives at most. It bounds the memory of
    /// the activations.
    fn batch_size(&self) -> usize {
        64
    }

    /// Loads the network.
    ///
    /// # Errors
    /// If a file is missing or does not fit.
    fn load(&self, device: &Device) -> Result<Box<dyn Extractor>>;
}

/// Widths of the features of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureWidths {
    /// Number of dimensions of the space.
    pub vector: usize,
    /// Number of values of the spatial features; `None` if the space has none.
    pub spatial: Option<usize>,
    /// Number of classes; `None` if the space has no classifier.
    pub classes: Option<usize>,
}

impl FeatureWidths {
    /// Returns the widths of a space without spatial features and without a classifier.
    pub fn of_vector(vector: usize) -> Self {
        Self { vector, spatial: None, classes: None }
    }
}

/// A loaded feature network.
pub trait Extractor: Send + Sync {
    /// Computes the features of images `[B, C, H, W]`, nominally in [-1, 1]. The features of an image do not depend on
    /// the other images of the batch.
    ///
    /// # Errors
    /// If the images do not fit.
    fn extract(&self, images: Tensor<4>) -> Result<Extracted>;
}

/// Features of a batch.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// The vectors that metrics compare, `[B, D]`.
    pub vectors: Tensor<2>,
    /// Features that keep positions, for sFID, `[B, S]`.
    pub spatial: Option<Tensor<2>>,
    /// Logits of the classes, for the Inception Score, `[B, K]`.
    pub logits: Option<Tensor<2>>,
}

impl Extracted {
    /// Returns features without spatial features and without logits.
    pub fn of_vectors(vectors: Tensor<2>) -> Self {
        Self { vectors, spatial: None, logits: None }
    }
}

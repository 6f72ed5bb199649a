//! Metrics on samples.

use crate::dataset::Label;
use crate::error::{Problems, Result};
use crate::tokenizer::ImageShape;
use std::fmt::Debug;

/// Images as rows of numbers, with a class or a caption each where there are some.
#[derive(Clone, Debug)]
pub struct Images {
    /// Numbers `[count, C, H, W]`, nominally in [-1, 1].
    pub values: Vec<f32>,
    /// Shape of one image, `[C, H, W]`.
    pub shape: ImageShape,
    /// The class of each image; empty where there are none.
    pub classes: Vec<usize>,
    /// The caption of each image; empty where there are none.
    pub captions: Vec<String>,
}

impl Images {
    /// No images of that shape.
    pub fn none(shape: ImageShape) -> Self {
        Self { values: Vec::new(), shape, classes: Vec::new(), captions: Vec::new() }
    }

    /// Adds images with their conditions.
    pub fn extend(&mut self, values: impl IntoIterator<Item = f32>, labels: &[Label]) {
        self.values.extend(values);
        for label in labels {
            match label {
                Label::None => {}
                Label::Class(class) => self.classes.push(*class),
                Label::Caption(caption) => self.captions.push(caption.clone()),
            }
        }
    }

    /// Numbers of one image.
    pub fn width(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.values.len() / self.width()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The numbers of image `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width()..(i + 1) * self.width()]
    }
}

/// One number of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Name, lower snake case.
    pub name: String,
    /// Value.
    pub value: f64,
    /// Unit and meaning, one phrase: "share of samples, higher is better".
    pub meaning: String,
}

/// A metric. The document entry is the metric.
pub trait Metric: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Whether it needs the class of each sample.
    fn needs_classes(&self) -> bool {
        false
    }

    /// Whether it needs the caption of each sample.
    fn needs_captions(&self) -> bool {
        false
    }

    /// Problems with samples of this shape; pointers are relative to the entry.
    fn check_image(&self, image: ImageShape) -> Problems {
        let _ = image;
        Problems::new()
    }

    /// Fewest samples of `width` numbers each that it can measure.
    fn least_samples(&self, width: usize) -> usize {
        let _ = width;
        1
    }

    /// Measures `samples` against `real`, the training images.
    ///
    /// # Errors
    /// If there are too few samples for it, or too few classes, or captions that it cannot read.
    fn measure(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>>;
}

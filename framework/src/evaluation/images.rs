//! Batches of images, as metrics read them.

use crate::data::dataset::Label;
use crate::data::tokenizer::ImageShape;

/// Images as rows of pixel values, with a class or a caption per image if the data have them.
#[derive(Clone, Debug)]
pub struct Images {
    /// Pixel values `[count, C, H, W]`, nominally in [-1, 1].
    pub values: Vec<f32>,
    /// Shape of one image, `[C, H, W]`.
    pub shape: ImageShape,
    /// Class of each image; empty if the images have no classes.
    pub classes: Vec<usize>,
    /// Caption of each image; empty if the images have no captions.
    pub captions: Vec<String>,
}

impl Images {
    /// Creates an empty set of images of this shape.
    pub fn none(shape: ImageShape) -> Self {
        Self { values: Vec::new(), shape, classes: Vec::new(), captions: Vec::new() }
    }

    /// Appends images with their labels.
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

    /// Returns the number of values per image.
    pub fn width(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.values.len() / self.width()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Returns the values of image `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width()..(i + 1) * self.width()]
    }

    /// Returns the images in batches of at most `size`, in order.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Self> + '_ {
        (0..self.len()).step_by(size).map(move |start| {
            let range = start..(start + size).min(self.len());
            // Images without labels have empty lists.
            Self {
                values: self.values[range.start * self.width()..range.end * self.width()].to_vec(),
                shape: self.shape,
                classes: self.classes.get(range.clone()).unwrap_or_default().to_vec(),
                captions: self.captions.get(range).unwrap_or_default().to_vec(),
            }
        })
    }
}

//! Datasets: items with a condition, in a reproducible order.

use crate::error::{Problems, Result};
use crate::random::Random;
use crate::tokenizer::ImageShape;
use std::fmt::Debug;

/// What the items of a dataset are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// Images of this shape, to be encoded by the tokenizer.
    Images(ImageShape),
    /// Latents that were encoded before: `[position, channel]` on a grid; the tokenizer decodes them to this shape.
    Latents {
        /// Grid of positions: height, width.
        grid: [usize; 2],
        /// Channels.
        channels: usize,
    },
}

/// What is known of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetInfo {
    /// What its items are.
    pub items: ItemKind,
    /// Number of classes; `None` = unconditional or captioned.
    pub num_classes: Option<usize>,
    /// Whether items carry a caption.
    pub captions: bool,
}

/// The condition of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// None.
    None,
    /// A class index.
    Class(usize),
    /// A caption.
    Caption(String),
}

/// One item: its numbers in raster order (`[C, H, W]` in [-1, 1] for images, `[position, channel]` for latents).
#[derive(Clone, Debug)]
pub struct Item {
    /// The numbers.
    pub values: Vec<f32>,
    /// The condition.
    pub label: Label,
}

/// The document entry of a dataset.
pub trait DatasetConfig: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// What is known without opening a file; `None` if a file must be read first.
    fn info(&self) -> Option<DatasetInfo>;

    /// Opens it.
    ///
    /// # Errors
    /// If a file is missing or is not what it should be.
    fn open(&self) -> Result<Box<dyn Dataset>>;
}

/// An open dataset.
pub trait Dataset: Debug + Send + Sync {
    /// What its items are.
    fn info(&self) -> DatasetInfo;

    /// Number of items, at least one.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One item. Random augmentation draws from `random` with (index, epoch) and nothing else.
    ///
    /// # Errors
    /// If its file cannot be read or decoded.
    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item>;

    /// The item as it is, without augmentation: what samples are compared with.
    ///
    /// # Errors
    /// If its file cannot be read or decoded.
    fn plain(&self, index: usize) -> Result<Item>;

    /// The condition of an item, without its numbers where that is less work.
    ///
    /// # Errors
    /// If its file cannot be read or decoded.
    fn label(&self, index: usize) -> Result<Label> {
        Ok(self.plain(index)?.label)
    }

    /// Whether [`Dataset::get`] mirrors an item left to right with probability 1/2.
    fn mirrors(&self) -> bool {
        false
    }

    /// What was left out when it was opened, and why: one sentence a reason. Told before training.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Names of the classes, in order, where the dataset has names.
    fn class_names(&self) -> Option<Vec<String>> {
        None
    }
}

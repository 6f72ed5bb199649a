//! Datasets: items with a condition.

use crate::checkpoint::facts::DatasetFacts;
use crate::data::tokenizer::ImageShape;
use crate::error::{Problems, Result};
use crate::process::LatentShape;
use crate::random::Random;
use sha2::{Digest, Sha256};
use std::fmt::Debug;

/// Kind and shape of a dataset's items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// Images of this shape. The tokenizer encodes them.
    Images(ImageShape),
    /// Latents that were encoded in advance, `[position, channel]` on a grid. Their grid and channels
    /// determine the shape of the images that the tokenizer decodes.
    Latents {
        /// Grid of positions: height, width.
        grid: [usize; 2],
        /// Channels.
        channels: usize,
    },
    /// Tokens that were encoded in advance, in decoding order. Each value of an item is a token id.
    Tokens(LatentShape),
}

/// The properties of a dataset that are known before its items are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetInfo {
    /// Kind and shape of the items.
    pub items: ItemKind,
    /// Number of classes; `None` if the items have captions or no condition.
    pub num_classes: Option<usize>,
    /// Whether items carry a caption.
    pub captions: bool,
}

/// The condition of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// No condition.
    None,
    /// A class index.
    Class(usize),
    /// A caption.
    Caption(String),
}

/// One item of a dataset.
#[derive(Clone, Debug)]
pub struct Item {
    /// Values in raster order: `[C, H, W]` in [-1, 1] for images, `[position, channel]` for latents, and one id per
    /// position for tokens.
    pub values: Vec<f32>,
    /// The condition.
    pub label: Label,
}

/// The document entry of a dataset.
pub trait DatasetConfig: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns what is known without opening a file; `None` if a file must be read first.
    fn info(&self) -> Option<DatasetInfo>;

    /// Opens the dataset.
    ///
    /// # Errors
    /// If a file is missing or invalid.
    fn open(&self) -> Result<Box<dyn Dataset>>;
}

/// An open dataset.
pub trait Dataset: Debug + Send + Sync {
    /// Returns the properties of the dataset.
    fn info(&self) -> DatasetInfo;

    /// Returns the number of items, at least one.
    fn len(&self) -> usize;

    /// Returns whether the dataset is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads one item. Random augmentation uses the streams of `random` for (index, epoch) only.
    ///
    /// # Errors
    /// If its file cannot be read or decoded.
    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item>;

    /// Reads one item without augmentation. Generated samples are compared with these items.
    ///
    /// # Errors
    /// If its file cannot be read or decoded.
    fn plain(&self, index: usize) -> Result<Item>;

    /// Reads the condition of an item. It skips the values if that is cheaper.
    ///
    /// # Errors
    /// If its file cannot be read or decoded.
    fn label(&self, index: usize) -> Result<Label> {
        Ok(self.plain(index)?.label)
    }

    /// Returns whether [`Dataset::get`] mirrors an item left to right with probability 1/2.
    fn mirrors(&self) -> bool {
        false
    }

    /// Returns what was left out on opening, and why, as one sentence per reason. It is printed before
    /// training.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns what was changed in the items read so far, such as transparent pixels that show a background, as one
    /// sentence per reason. Each item counts once.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns where an item is stored. Messages about the item name it.
    fn source(&self, index: usize) -> String {
        format!("item {index} of the dataset")
    }

    /// Describes an item without reading its values: its name within the dataset, the size of its file, its label. A
    /// run that resumes compares the descriptions of all items, so they must not depend on where the dataset is stored.
    fn describe(&self, index: usize) -> String {
        let _ = index;
        String::new()
    }

    /// Returns how the user can give the items classes, if they have none.
    fn how_to_add_classes(&self) -> Option<String> {
        None
    }

    /// Returns the class names in order, if the dataset has names.
    fn class_names(&self) -> Option<Vec<String>> {
        None
    }
}

/// Items whose content enters the fingerprint, evenly spread over the dataset.
const FINGERPRINTED: usize = 16;

/// Reads the facts of an open dataset. An unreadable item enters the fingerprint as such.
pub fn facts(dataset: &dyn Dataset) -> DatasetFacts {
    let (items, class_names) = (dataset.len(), dataset.class_names());
    let mut listing = Sha256::new();
    for index in 0..items {
        let description = dataset.describe(index);
        listing.update((description.len() as u64).to_le_bytes());
        listing.update(description);
    }
    let mut hash = Sha256::new();
    hash.update(format!("{:?} {items} {class_names:?}", dataset.info()));
    for i in 0..items.min(FINGERPRINTED) {
        match dataset.plain(i * items / items.min(FINGERPRINTED)) {
            Ok(item) => {
                hash.update(format!("{:?}", item.label));
                item.values.iter().for_each(|value| hash.update(value.to_le_bytes()));
            }
            Err(_) => hash.update("unreadable"),
        }
    }
    DatasetFacts { class_names, items, listing: hexadecimal(listing), fingerprint: hexadecimal(hash) }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

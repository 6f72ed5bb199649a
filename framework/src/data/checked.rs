//! A wrapper that checks the items of a dataset.

use crate::blame::caught;
use crate::data::dataset::{Dataset, DatasetInfo, Item, ItemKind, Label};
use crate::error::{Error, Result};
use crate::random::Random;

/// A dataset wrapper that turns a panic, or an item that contradicts the declared shape or classes, into an
/// error of the requested item. One bad item therefore does not end a run.
#[derive(Debug)]
pub struct Checked {
    who: String,
    dataset: Box<dyn Dataset>,
    info: DatasetInfo,
    len: usize,
}

impl Checked {
    /// Wraps a dataset that messages call `who`.
    ///
    /// # Errors
    /// If the dataset is empty or panics.
    pub fn new(who: &str, dataset: Box<dyn Dataset>) -> Result<Self> {
        let (info, len) = caught(who, || (dataset.info(), dataset.len()))?;
        if len == 0 {
            return Err(Error::Run(format!("{who} has no items")));
        }
        Ok(Self { who: who.to_string(), dataset, info, len })
    }

    /// Checks an item against the dataset's declared shape and class count.
    fn announced(&self, item: Result<Item>) -> Result<Item> {
        let item = item?;
        let expected = match &self.info.items {
            ItemKind::Images(shape) => shape.iter().product(),
            ItemKind::Latents { grid, channels } => grid[0] * grid[1] * channels,
            ItemKind::Tokens(shape) => shape.positions(),
        };
        let (who, found) = (&self.who, item.values.len());
        if found != expected {
            return Err(Error::Run(format!("{who} declares items of {expected} values, but returned one of {found}")));
        }
        match (&item.label, self.info.num_classes) {
            (Label::Class(class), Some(count)) if *class >= count => {
                Err(Error::Run(format!("{who} declares {count} classes, but returned class {class} (counted from 0)")))
            }
            _ => Ok(item),
        }
    }
}

impl Dataset for Checked {
    fn info(&self) -> DatasetInfo {
        self.info.clone()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item> {
        self.announced(caught(&self.who, || self.dataset.get(index, random, epoch))?)
    }

    fn plain(&self, index: usize) -> Result<Item> {
        self.announced(caught(&self.who, || self.dataset.plain(index))?)
    }

    fn label(&self, index: usize) -> Result<Label> {
        caught(&self.who, || self.dataset.label(index))?
    }

    fn mirrors(&self) -> bool {
        self.dataset.mirrors()
    }

    fn warnings(&self) -> Vec<String> {
        self.dataset.warnings()
    }

    fn notes(&self) -> Vec<String> {
        self.dataset.notes()
    }

    fn source(&self, index: usize) -> String {
        self.dataset.source(index)
    }

    fn describe(&self, index: usize) -> String {
        self.dataset.describe(index)
    }

    fn how_to_add_classes(&self) -> Option<String> {
        self.dataset.how_to_add_classes()
    }

    fn class_names(&self) -> Option<Vec<String>> {
        self.dataset.class_names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three items: a valid one, one with too many values, one with an unknown class.
    #[derive(Debug)]
    struct Wrong(usize);

    impl Dataset for Wrong {
        fn info(&self) -> DatasetInfo {
            DatasetInfo { items: ItemKind::Images([1, 2, 2]), num_classes: Some(10), captions: false }
        }
        fn len(&self) -> usize {
            self.0
        }
        fn get(&self, index: usize, _: &Random, _: u64) -> Result<Item> {
            self.plain(index)
        }
        fn plain(&self, index: usize) -> Result<Item> {
            let count = if index == 1 { 5 } else { 4 };
            Ok(Item { values: vec![0.0; count], label: Label::Class(if index == 2 { 10 } else { 9 }) })
        }
    }

    #[test]
    fn a_dataset_is_held_to_what_it_announced() {
        let guarded = Checked::new("data \"wrong\"", Box::new(Wrong(3))).unwrap();
        assert!(guarded.plain(0).is_ok());
        let said = |index| guarded.get(index, &Random::new(0), 0).unwrap_err().to_string();
        assert_eq!(said(1), "data \"wrong\" declares items of 4 values, but returned one of 5");
        assert_eq!(said(2), "data \"wrong\" declares 10 classes, but returned class 10 (counted from 0)");
        let empty = Checked::new("data \"wrong\"", Box::new(Wrong(0))).unwrap_err();
        assert_eq!(empty.to_string(), "data \"wrong\" has no items");
    }
}

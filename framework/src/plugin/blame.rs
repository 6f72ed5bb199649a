//! Who is to blame: the code of a plugin runs under its plugin's name, so that a panic in it ends the run with that
//! name and not the process.

use crate::dataset::{Dataset, DatasetInfo, Item, ItemKind, Label};
use crate::error::{Error, Result};
use crate::random::Random;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// A panic on its way up, with the plugin it began in.
struct Panicked {
    who: String,
    what: String,
}

/// Runs the code of `who`. A panic in it goes on under that name; where names are nested, the innermost stays.
pub fn named<T>(who: &str, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| resume_unwind(name(who, panic)))
}

/// Runs the code of `who`. A panic in it becomes an error.
///
/// # Errors
/// If the code panics: who it was, and what it said.
pub fn caught<T>(who: &str, run: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let Panicked { who, what } = *name(who, panic);
        Error::Run(format!("{who} panicked: {what}"))
    })
}

/// A dataset whose panics, and items that are not what it announced, are errors of the item that was asked for: one bad
/// item ends no run.
#[derive(Debug)]
pub struct Guarded {
    who: String,
    dataset: Box<dyn Dataset>,
    info: DatasetInfo,
    len: usize,
}

impl Guarded {
    /// Guards the dataset that messages call `who`.
    ///
    /// # Errors
    /// If it is empty, or panics.
    pub fn new(who: &str, dataset: Box<dyn Dataset>) -> Result<Self> {
        let (info, len) = caught(who, || (dataset.info(), dataset.len()))?;
        if len == 0 {
            return Err(Error::Run(format!("{who} holds no items")));
        }
        Ok(Self { who: who.to_string(), dataset, info, len })
    }

    /// An item as it was announced: as many numbers, a class that there is.
    fn announced(&self, item: Result<Item>) -> Result<Item> {
        let item = item?;
        let expected = match &self.info.items {
            ItemKind::Images(shape) => shape.iter().product(),
            ItemKind::Latents { grid, channels } => grid[0] * grid[1] * channels,
        };
        let (who, found) = (&self.who, item.values.len());
        if found != expected {
            return Err(Error::Run(format!("{who} announced items of {expected} numbers and gave one of {found}")));
        }
        match (&item.label, self.info.num_classes) {
            (Label::Class(class), Some(count)) if *class >= count => {
                Err(Error::Run(format!("{who} announced {count} classes and gave an item of class {class}, from 0")))
            }
            _ => Ok(item),
        }
    }
}

impl Dataset for Guarded {
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

    fn class_names(&self) -> Option<Vec<String>> {
        self.dataset.class_names()
    }
}

fn name(who: &str, panic: Box<dyn Any + Send>) -> Box<Panicked> {
    panic.downcast::<Panicked>().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Box::new(Panicked { who: who.to_string(), what: text.unwrap_or_else(|| "without a message".to_string()) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_name_is_reported() {
        let error = caught::<()>("outer", || named("inner", || panic!("out of {}", "range"))).unwrap_err();
        assert_eq!(error.to_string(), "inner panicked: out of range");
        assert_eq!(caught("outer", || named("inner", || 3)).unwrap(), 3);
    }

    /// Three items: one as announced, one of too many numbers, one of a class that there is not.
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
        let guarded = Guarded::new("data \"wrong\"", Box::new(Wrong(3))).unwrap();
        assert!(guarded.plain(0).is_ok());
        let said = |index| guarded.get(index, &Random::new(0), 0).unwrap_err().to_string();
        assert_eq!(said(1), "data \"wrong\" announced items of 4 numbers and gave one of 5");
        assert_eq!(said(2), "data \"wrong\" announced 10 classes and gave an item of class 10, from 0");
        let empty = Guarded::new("data \"wrong\"", Box::new(Wrong(0))).unwrap_err();
        assert_eq!(empty.to_string(), "data \"wrong\" holds no items");
    }
}

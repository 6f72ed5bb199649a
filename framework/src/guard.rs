//! Who is to blame: the code of a plugin runs under its plugin's name, so that a panic in it ends the run with that
//! name and not the process.

use crate::dataset::{Dataset, DatasetInfo, Item, Label};
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

/// A dataset whose panics are errors of the item that was asked for: one bad item ends no run.
#[derive(Debug)]
pub struct Guarded {
    /// What messages call it.
    pub who: String,
    /// The dataset.
    pub dataset: Box<dyn Dataset>,
}

impl Dataset for Guarded {
    fn info(&self) -> DatasetInfo {
        self.dataset.info()
    }

    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item> {
        caught(&self.who, || self.dataset.get(index, random, epoch))?
    }

    fn plain(&self, index: usize) -> Result<Item> {
        caught(&self.who, || self.dataset.plain(index))?
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
}

//! The items whose caption the conditioner can encode.

use crate::data::dataset::{Dataset, DatasetInfo, Item, Label};
use crate::data::loader::spread;
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::random::Random;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::Arc;

/// Maximum number of captions that are checked before a training.
const LOOKED_AT: usize = 10_000;

/// A dataset in which an item whose caption cannot be encoded is unreadable. Such a caption therefore costs one item,
/// not the run.
pub struct Encodable<D> {
    dataset: D,
    pipeline: Arc<Pipeline>,
}

impl<D: Debug> Debug for Encodable<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Encodable").field(&self.dataset).finish()
    }
}

impl<D: Dataset> Encodable<D> {
    /// Wraps a dataset. The conditioner of `pipeline` must be loaded.
    pub fn new(dataset: D, pipeline: Arc<Pipeline>) -> Self {
        Self { dataset, pipeline }
    }

    /// Checks the captions of at most `LOOKED_AT` items, evenly spread. Returns one sentence per kind of problem,
    /// with the number of captions and the first item.
    pub fn survey(&self) -> Vec<String> {
        if self.pipeline.conditioner.is_none() {
            return Vec::new();
        }
        let mut found: BTreeMap<String, (usize, String)> = BTreeMap::new();
        let indices = spread(self.dataset.len(), LOOKED_AT);
        for index in &indices {
            let Ok(label) = self.dataset.label(*index) else { continue };
            let source = self.dataset.source(*index);
            let (reason, first) = match self.pipeline.check_label(&label) {
                Ok(None) => continue,
                Ok(Some(shortened)) => (shortened, source),
                Err(error) => {
                    ("refused by the conditioner, so their items are skipped".into(), format!("{source}: {error}"))
                }
            };
            found.entry(reason).or_insert((0, first)).0 += 1;
        }
        let looked_at = match indices.len() < self.dataset.len() {
            true => format!("{} of {} captions", indices.len(), self.dataset.len()),
            false => format!("{} captions", indices.len()),
        };
        let sentence = |(reason, (count, first))| format!("of {looked_at}, {count} are {reason}; the first is {first}");
        found.into_iter().map(sentence).collect()
    }

    /// Refuses a label whose caption cannot be encoded.
    fn checked(&self, index: usize, label: &Label) -> Result<()> {
        match self.pipeline.check_label(label) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Run(format!("{}: {error}", self.dataset.source(index)))),
        }
    }

    fn item(&self, index: usize, item: Item) -> Result<Item> {
        self.checked(index, &item.label).map(|()| item)
    }
}

impl<D: Dataset> Dataset for Encodable<D> {
    fn info(&self) -> DatasetInfo {
        self.dataset.info()
    }

    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item> {
        self.item(index, self.dataset.get(index, random, epoch)?)
    }

    fn plain(&self, index: usize) -> Result<Item> {
        self.item(index, self.dataset.plain(index)?)
    }

    fn label(&self, index: usize) -> Result<Label> {
        let label = self.dataset.label(index)?;
        self.checked(index, &label).map(|()| label)
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

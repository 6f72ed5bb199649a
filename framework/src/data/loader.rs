//! Batches in an order that is a function of (seed, position), read ahead on threads.
//!
//! An item that cannot be read does not end a training: the next that can be read stands in its place, so the batch is a
//! function of the dataset still, and the batch says what it left out.

use crate::dataset::{Dataset, Item, Label};
use crate::error::{Error, Result};
use crate::precision::MatmulPrecision;
use crate::random::{Random, permutation};
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// The items of one batch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Numbers of all items, item after item.
    pub values: Vec<f32>,
    /// Their conditions.
    pub labels: Vec<Label>,
    /// Why items that belong here could not be read; others stand in their place.
    pub skipped: Vec<String>,
}

impl Batch {
    fn of(items: Vec<Item>, skipped: Vec<String>) -> Self {
        let mut batch = Self { skipped, ..Self::default() };
        for item in items {
            batch.values.extend(item.values);
            batch.labels.push(item.label);
        }
        batch
    }
}

/// The order in which a run reads a dataset: every epoch is one permutation, and batches run on across epochs.
pub struct Order {
    random: Random,
    len: usize,
    /// The epoch looked at last: a permutation of a large dataset takes longer than reading a batch.
    epoch: u64,
    permutation: Vec<usize>,
}

impl Order {
    /// The order of `len` items, at least one.
    pub fn new(random: Random, len: usize) -> Self {
        let permutation = permutation(&random, "epoch", 0, len);
        Self { random, len, epoch: 0, permutation }
    }

    /// The indices (and epochs) of batch `batch`.
    pub fn batch(&mut self, batch_size: usize, batch: u64) -> Vec<(usize, u64)> {
        let (first, len) = (batch * batch_size as u64, self.len as u64);
        let index = |place: u64| {
            let epoch = place / len;
            if epoch != self.epoch {
                (self.epoch, self.permutation) = (epoch, permutation(&self.random, "epoch", epoch, self.len));
            }
            (self.permutation[(place % len) as usize], epoch)
        };
        (first..first + batch_size as u64).map(index).collect()
    }
}

/// Indices of `most` of `len` items, or of all if there are no more, evenly spread and in order.
pub fn spread(len: usize, most: usize) -> Vec<usize> {
    let count = len.min(most.max(1));
    (0..count).map(|i| (i as u128 * len as u128 / count as u128) as usize).collect()
}

/// Reads batches `from..to` ahead of the trainer, in order.
pub struct Loader {
    batches: Receiver<Result<Batch>>,
}

impl Loader {
    /// Batches kept ready.
    const AHEAD: usize = 4;

    /// Starts reading.
    pub fn new(dataset: Arc<dyn Dataset>, random: Random, batch_size: usize, from: u64, to: u64) -> Self {
        let (sender, batches) = sync_channel(Self::AHEAD);
        std::thread::spawn(move || {
            let mut order = Order::new(random, dataset.len());
            for batch in from..to {
                // A closed channel is a trainer that stopped.
                if sender.send(read(&*dataset, &random, &order.batch(batch_size, batch))).is_err() {
                    return;
                }
            }
        });
        Self { batches }
    }

    /// The next batch.
    ///
    /// # Errors
    /// If more than half of its items cannot be read, or nothing can stand in for one of them.
    ///
    /// # Panics
    /// If called more often than there are batches.
    pub fn next_batch(&self) -> Result<Batch> {
        self.batches.recv().expect("the trainer asks for as many batches as it announced")
    }
}

/// Items looked at in place of one that cannot be read.
const INSTEAD: usize = 64;

/// The batch of these indices and epochs. Its items are read side by side; the result does not depend on by how many
/// threads.
fn read(dataset: &dyn Dataset, random: &Random, places: &[(usize, u64)]) -> Result<Batch> {
    let get = |(index, epoch): (usize, u64)| match dataset.get(index, random, epoch) {
        Ok(item) => Ok((item, None)),
        Err(error) => match instead(dataset, index, random, epoch) {
            Some(item) => Ok((item, Some(error))),
            None => Err(none_left(&error)),
        },
    };
    // A thread that waits within a pass may take an item, but not with the pass's precision.
    let read: Vec<(Item, Option<Error>)> =
        places.par_iter().map(|place| MatmulPrecision::Highest.within(|| get(*place))).collect::<Result<_>>()?;
    let (items, errors): (Vec<Item>, Vec<Option<Error>>) = read.into_iter().unzip();
    let skipped = errors.into_iter().flatten().map(|error| error.to_string()).collect();
    few(Batch::of(items, skipped), places.len())
}

/// The next item that can be read.
fn instead(dataset: &dyn Dataset, index: usize, random: &Random, epoch: u64) -> Option<Item> {
    (1..=INSTEAD.min(dataset.len() - 1)).find_map(|i| dataset.get((index + i) % dataset.len(), random, epoch).ok())
}

fn none_left(error: &Error) -> Error {
    Error::Run(format!(
        "{error}. None of the next {INSTEAD} items can be read either; the dataset is not what it should be"
    ))
}

/// Refuses a batch of which more than half could not be read. One item alone is no share.
fn few(batch: Batch, asked: usize) -> Result<Batch> {
    match batch.skipped.first() {
        Some(first) if batch.skipped.len() > (asked / 2).max(1) => Err(Error::Run(format!(
            "{} of {asked} items of a batch cannot be read. The first: {first}",
            batch.skipped.len()
        ))),
        _ => Ok(batch),
    }
}

/// The items `indices` as they are, without those that cannot be read.
///
/// # Errors
/// If more than half of them cannot be read.
pub fn readable(dataset: &dyn Dataset, indices: &[usize]) -> Result<Batch> {
    few(readable_or_none(dataset, indices), indices.len())
}

/// The items `indices` as they are, without those that cannot be read, how many these may be.
pub fn readable_or_none(dataset: &dyn Dataset, indices: &[usize]) -> Batch {
    let plain = |index: &usize| MatmulPrecision::Highest.within(|| dataset.plain(*index));
    let read: Vec<Result<Item>> = indices.par_iter().map(plain).collect();
    let (mut items, mut skipped) = (Vec::new(), Vec::new());
    for item in read {
        match item {
            Ok(item) => items.push(item),
            Err(error) => skipped.push(error.to_string()),
        }
    }
    Batch::of(items, skipped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{DatasetInfo, ItemKind};

    /// Items that hold their index; the bad ones cannot be read.
    #[derive(Debug)]
    struct Holes {
        len: usize,
        bad: Vec<usize>,
    }

    impl Dataset for Holes {
        fn info(&self) -> DatasetInfo {
            DatasetInfo { items: ItemKind::Images([1, 1, 1]), num_classes: None, captions: false }
        }
        fn len(&self) -> usize {
            self.len
        }
        fn get(&self, index: usize, _: &Random, _: u64) -> Result<Item> {
            self.plain(index)
        }
        fn plain(&self, index: usize) -> Result<Item> {
            match self.bad.contains(&index) {
                true => Err(Error::Run(format!("item {index} is broken"))),
                false => Ok(Item { values: vec![index as f32], label: Label::None }),
            }
        }
    }

    #[test]
    fn the_next_item_stands_in_for_one_that_cannot_be_read() {
        let random = Random::new(1);
        let dataset = Holes { len: 10, bad: vec![3, 4, 9] };
        let places = Order::new(random, 10).batch(10, 0);
        let order: Vec<usize> = places.iter().map(|(index, _)| *index).collect();
        let expected: Vec<f32> = order
            .iter()
            .map(|index| match index {
                3 | 4 => 5.0,
                9 => 0.0,
                index => *index as f32,
            })
            .collect();
        let batch = read(&dataset, &random, &places).unwrap();
        assert_eq!(batch.values, expected);
        assert_eq!(batch.skipped.len(), 3);
        assert!(batch.skipped.contains(&"item 9 is broken".to_string()));
        // Any number of threads reads the same.
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(|| read(&dataset, &random, &places)).unwrap();
            assert_eq!((again.values, again.skipped), (batch.values.clone(), batch.skipped.clone()));
        }
        // Alone in its batch it is replaced as well.
        assert!(places.iter().all(|place| read(&dataset, &random, &[*place]).is_ok()));
    }

    #[test]
    fn a_batch_of_which_most_is_broken_is_refused() {
        let random = Random::new(1);
        let first = |dataset: &Holes, size| read(dataset, &random, &Order::new(random, dataset.len).batch(size, 0));
        let error = |dataset: &Holes, size: usize| first(dataset, size).unwrap_err().to_string();
        let most = Holes { len: 8, bad: vec![0, 1, 2, 3, 4] };
        assert!(error(&most, 8).starts_with("5 of 8 items of a batch cannot be read. The first: item "));
        let all = Holes { len: 2, bad: vec![0, 1] };
        assert!(error(&all, 1).contains("None of the next"));
        let half = Holes { len: 8, bad: vec![0, 1, 2, 3] };
        assert_eq!(first(&half, 8).unwrap().skipped.len(), 4);
        let plain = readable(&half, &[0, 4, 1, 5]).unwrap();
        assert_eq!((plain.values, plain.skipped.len()), (vec![4.0, 5.0], 2));
        assert!(readable(&most, &[0, 1, 5]).is_err());
        let rest = readable_or_none(&most, &[0, 1, 5]);
        assert_eq!((rest.values, rest.skipped.len()), (vec![5.0], 2));
    }

    #[test]
    fn every_epoch_holds_every_item_once() {
        let random = Random::new(5);
        // 4 batches of 6 over 8 items: three epochs.
        let mut order = Order::new(random, 8);
        let all: Vec<(usize, u64)> = (0..4).flat_map(|batch| order.batch(6, batch)).collect();
        for epoch in 0..3 {
            let mut seen: Vec<usize> = all.iter().filter(|(_, e)| *e == epoch).map(|(i, _)| *i).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..8).collect::<Vec<_>>());
        }
        // From the middle, as a resumed run reads.
        assert_eq!(Order::new(random, 8).batch(6, 3), all[18..]);
        assert_ne!(all[..8], all[8..16].iter().map(|(i, _)| (*i, 0)).collect::<Vec<_>>());
    }

    #[test]
    fn items_are_spread_evenly() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, 100), [0, 1, 2]);
        assert_eq!(spread(7, 0), [0]);
        assert_eq!(spread(0, 5), [0; 0]);
    }
}

//! Batches in an order that depends only on (seed, position), read ahead on threads.
//!
//! An unreadable item does not end a run: the next readable item replaces it. The batch is still a function
//! of the dataset alone, and it reports the items that it skipped.

use crate::data::dataset::{Dataset, Item, Label};
use crate::error::{Error, Result};
use crate::nn::precision::MatmulPrecision;
use crate::random::{Random, permutation};
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// The items of one batch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Values of all items, concatenated.
    pub values: Vec<f32>,
    /// Conditions of the items.
    pub labels: Vec<Label>,
    /// The items that could not be read. Other items replace them.
    pub skipped: Vec<Unreadable>,
}

/// An item that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The error, which names the file.
    pub error: String,
    /// Epoch of the attempt. Every item is read in epoch 0 once, so the attempts of that epoch count the items.
    pub epoch: u64,
}

impl Batch {
    fn of(items: Vec<Item>, skipped: Vec<Unreadable>) -> Self {
        let mut batch = Self { skipped, ..Self::default() };
        for item in items {
            batch.values.extend(item.values);
            batch.labels.push(item.label);
        }
        batch
    }
}

/// The order in which a run reads a dataset. Every epoch is a permutation, and a batch may cross from one
/// epoch into the next.
pub struct Order {
    random: Random,
    len: usize,
    /// The cached epoch. To permute a large dataset takes longer than to read a batch.
    epoch: u64,
    permutation: Vec<usize>,
}

impl Order {
    /// Creates the order of `len` items, at least one.
    pub fn new(random: Random, len: usize) -> Self {
        let permutation = permutation(&random, "epoch", 0, len);
        Self { random, len, epoch: 0, permutation }
    }

    /// Returns the (index, epoch) pairs of batch `batch`.
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

/// Returns at most `most` indices of `len` items, evenly spaced and in order.
pub fn spread(len: usize, most: usize) -> Vec<usize> {
    let count = len.min(most.max(1));
    (0..count).map(|i| (i as u128 * len as u128 / count as u128) as usize).collect()
}

/// Reads batches in order, ahead of the trainer.
pub struct Loader {
    batches: Receiver<Result<Batch>>,
}

impl Loader {
    /// Number of batches read ahead.
    const AHEAD: usize = 4;

    /// Starts reading the batches with these numbers, on a thread.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        random: Random,
        batch_size: usize,
        numbers: impl Iterator<Item = u64> + Send + 'static,
    ) -> Self {
        let (sender, batches) = sync_channel(Self::AHEAD);
        std::thread::spawn(move || {
            let mut order = Order::new(random, dataset.len());
            for batch in numbers {
                // The channel is closed if the trainer stopped.
                if sender.send(read(&*dataset, &random, &order.batch(batch_size, batch))).is_err() {
                    return;
                }
            }
        });
        Self { batches }
    }

    /// Returns the next batch.
    ///
    /// # Errors
    /// If more than half of its items cannot be read, or an unreadable item has no replacement.
    ///
    /// # Panics
    /// If all batches were already returned.
    pub fn next_batch(&self) -> Result<Batch> {
        self.batches.recv().expect("the trainer requests no more batches than the loader was created with")
    }
}

/// Number of items that are tried as a replacement for an unreadable one.
const INSTEAD: usize = 64;

/// Reads the batch at these (index, epoch) pairs. It reads items in parallel; the result does not depend on
/// the number of threads.
fn read(dataset: &dyn Dataset, random: &Random, places: &[(usize, u64)]) -> Result<Batch> {
    let get = |(index, epoch): (usize, u64)| match dataset.get(index, random, epoch) {
        Ok(item) => Ok((item, None)),
        Err(error) => match instead(dataset, index, random, epoch) {
            Some(item) => Ok((item, Some(error))),
            None => Err(none_left(&error, dataset.len() - 1)),
        },
    };
    // rayon may run this item on a thread that is blocked inside a reduced-precision pass. Reset the
    // thread-local precision first.
    let read: Vec<(Item, Option<Error>)> =
        places.par_iter().map(|place| MatmulPrecision::Highest.within(|| get(*place))).collect::<Result<_>>()?;
    let (items, errors): (Vec<Item>, Vec<Option<Error>>) = read.into_iter().unzip();
    let unreadable = |(error, (_, epoch)): (Option<Error>, &(usize, u64))| {
        error.map(|error| Unreadable { error: error.to_string(), epoch: *epoch })
    };
    let skipped = errors.into_iter().zip(places).filter_map(unreadable).collect();
    few(Batch::of(items, skipped), places.len(), FEWEST)
}

/// Returns the next readable item after `index`.
fn instead(dataset: &dyn Dataset, index: usize, random: &Random, epoch: u64) -> Option<Item> {
    (1..=INSTEAD.min(dataset.len() - 1)).find_map(|i| dataset.get((index + i) % dataset.len(), random, epoch).ok())
}

/// Describes an unreadable item without a replacement, in a dataset with this many other items.
fn none_left(error: &Error, others: usize) -> Error {
    let rest = match others {
        0 => "It is the only item of the dataset".to_string(),
        _ if others <= INSTEAD => format!("None of the {others} other items can be read either"),
        _ => format!("None of the next {INSTEAD} items can be read either"),
    };
    Error::Run(format!("{error}. {rest}; check the files of the dataset"))
}

/// Number of unreadable items that a batch of training may always contain. Half of a small batch may be bad luck.
const FEWEST: usize = 3;

/// Refuses a batch if more than half of its items, and more than `allowed` items, cannot be read.
fn few(batch: Batch, asked: usize, allowed: usize) -> Result<Batch> {
    match batch.skipped.first() {
        Some(first) if batch.skipped.len() > (asked / 2).max(allowed) => Err(Error::Run(format!(
            "{} of {asked} items of a batch cannot be read. First error: {first}",
            batch.skipped.len(),
            first = first.error
        ))),
        _ => Ok(batch),
    }
}

/// Reads the items `indices` without augmentation and leaves out unreadable ones.
///
/// # Errors
/// If more than half of the items cannot be read.
pub fn readable(dataset: &dyn Dataset, indices: &[usize]) -> Result<Batch> {
    few(readable_or_none(dataset, indices), indices.len(), 1)
}

/// Reads the items `indices` without augmentation and leaves out unreadable ones, however many they are.
pub fn readable_or_none(dataset: &dyn Dataset, indices: &[usize]) -> Batch {
    let plain = |index: &usize| MatmulPrecision::Highest.within(|| dataset.plain(*index));
    let read: Vec<Result<Item>> = indices.par_iter().map(plain).collect();
    let (mut items, mut skipped) = (Vec::new(), Vec::new());
    for item in read {
        match item {
            Ok(item) => items.push(item),
            Err(error) => skipped.push(Unreadable { error: error.to_string(), epoch: 0 }),
        }
    }
    Batch::of(items, skipped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::{DatasetInfo, ItemKind};

    /// Items whose value is their index; the bad ones cannot be read.
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
        assert!(batch.skipped.contains(&Unreadable { error: "item 9 is broken".to_string(), epoch: 0 }));
        // The attempt names its epoch.
        let later = read(&dataset, &random, &[(9, 1)]).unwrap();
        assert_eq!(later.skipped, [Unreadable { error: "item 9 is broken".to_string(), epoch: 1 }]);
        // The result is the same for any number of threads.
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(|| read(&dataset, &random, &places)).unwrap();
            assert_eq!((again.values, again.skipped), (batch.values.clone(), batch.skipped.clone()));
        }
        // A bad item that is alone in its batch is replaced too.
        assert!(places.iter().all(|place| read(&dataset, &random, &[*place]).is_ok()));
    }

    #[test]
    fn a_batch_of_which_most_is_broken_is_refused() {
        let random = Random::new(1);
        let first = |dataset: &Holes, size| read(dataset, &random, &Order::new(random, dataset.len).batch(size, 0));
        let error = |dataset: &Holes, size: usize| first(dataset, size).unwrap_err().to_string();
        let most = Holes { len: 8, bad: vec![0, 1, 2, 3, 4] };
        assert!(error(&most, 8).starts_with("5 of 8 items of a batch cannot be read. First error: item "));
        let all = Holes { len: 2, bad: vec![0, 1] };
        assert!(error(&all, 1).contains("None of the 1 other items can be read either"));
        assert!(error(&Holes { len: 1, bad: vec![0] }, 1).contains("It is the only item of the dataset"));
        let large = Holes { len: 100, bad: (0..100).collect() };
        assert!(error(&large, 1).contains("None of the next 64 items can be read either"));
        let half = Holes { len: 8, bad: vec![0, 1, 2, 3] };
        assert_eq!(first(&half, 8).unwrap().skipped.len(), 4);
        // Two broken items that meet in a batch of two do not end the run.
        let pair = Holes { len: 8, bad: vec![0, 1] };
        assert_eq!(read(&pair, &random, &[(0, 0), (1, 0)]).unwrap().values, [2.0, 2.0]);
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
        // A resumed run starts in the middle of the order.
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

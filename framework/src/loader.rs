//! Batches in an order that is a function of (seed, position), read ahead on a thread.

use crate::dataset::{Dataset, Item, Label};
use crate::error::Result;
use crate::random::{Random, permutation};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// The items of one batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Numbers of all items, item after item.
    pub values: Vec<f32>,
    /// Their conditions.
    pub labels: Vec<Label>,
}

/// The indices (and epochs) of batch `batch`: every epoch is one permutation, and batches run on across epochs.
pub fn batch_indices(random: &Random, len: usize, batch_size: usize, batch: u64) -> Vec<(usize, u64)> {
    let first = batch * batch_size as u64;
    let mut order: Option<(u64, Vec<usize>)> = None;
    (first..first + batch_size as u64)
        .map(|place| {
            let epoch = place / len as u64;
            if order.as_ref().is_none_or(|(of, _)| *of != epoch) {
                order = Some((epoch, permutation(random, "epoch", epoch, len)));
            }
            let (_, order) = order.as_ref().expect("set above");
            (order[(place % len as u64) as usize], epoch)
        })
        .collect()
}

/// Reads batches `from..to` ahead of the trainer, in order. Ends with the first error.
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
            for batch in from..to {
                // A closed channel is a trainer that stopped.
                if sender.send(read(&*dataset, &random, batch_size, batch)).is_err() {
                    return;
                }
            }
        });
        Self { batches }
    }

    /// The next batch.
    ///
    /// # Errors
    /// If an item cannot be read.
    ///
    /// # Panics
    /// If called more often than there are batches.
    pub fn next_batch(&self) -> Result<Batch> {
        self.batches.recv().expect("the trainer asks for as many batches as it announced")
    }
}

fn read(dataset: &dyn Dataset, random: &Random, batch_size: usize, batch: u64) -> Result<Batch> {
    let items = batch_indices(random, dataset.len(), batch_size, batch)
        .into_iter()
        .map(|(index, epoch)| dataset.get(index, random, epoch))
        .collect::<Result<Vec<Item>>>()?;
    let values = items.iter().flat_map(|item| item.values.iter().copied()).collect();
    Ok(Batch { values, labels: items.into_iter().map(|item| item.label).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_holds_every_item_once() {
        let random = Random::new(5);
        // 4 batches of 6 over 8 items: three epochs.
        let all: Vec<(usize, u64)> = (0..4).flat_map(|batch| batch_indices(&random, 8, 6, batch)).collect();
        for epoch in 0..3 {
            let mut seen: Vec<usize> = all.iter().filter(|(_, e)| *e == epoch).map(|(i, _)| *i).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..8).collect::<Vec<_>>());
        }
        assert_ne!(all[..8], all[8..16].iter().map(|(i, _)| (*i, 0)).collect::<Vec<_>>());
    }
}

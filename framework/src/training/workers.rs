//! Workers, which run the forward passes of one step. All data parallelism is in this file.
//!
//! A pass depends only on the weights before the step and on the index of the pass. Gradients are added in an order that
//! depends only on the indices. So every distribution over threads gives the same bits, and the training loop does not
//! depend on it. [`crate::ranks`] distributes passes over processes.

use crate::error::Result;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// Loss, gradient and logged means of one forward pass. Loss and means stay on the device until the step reads them.
pub type Pass = (Tensor<1>, GradientsParams, BTreeMap<String, Tensor<1>>);

/// Runs the passes of a step.
pub trait Workers: Send + Sync {
    /// Calls `pass` for every index in `0..count`. Gives the results to `take` in the order of the indices.
    ///
    /// # Errors
    /// The error of the first pass that fails.
    fn run(
        &self,
        count: usize,
        pass: &(dyn Fn(usize) -> Result<Pass> + Sync),
        take: &mut dyn FnMut(Pass),
    ) -> Result<()>;
}

/// Runs passes one after the other.
struct InOrder;

impl Workers for InOrder {
    fn run(
        &self,
        count: usize,
        pass: &(dyn Fn(usize) -> Result<Pass> + Sync),
        take: &mut dyn FnMut(Pass),
    ) -> Result<()> {
        (0..count).try_for_each(|i| pass(i).map(&mut *take))
    }
}

/// Runs this number of passes at a time, each on its own thread.
struct Threads(usize);

impl Workers for Threads {
    fn run(
        &self,
        count: usize,
        pass: &(dyn Fn(usize) -> Result<Pass> + Sync),
        take: &mut dyn FnMut(Pass),
    ) -> Result<()> {
        for first in (0..count).step_by(self.0) {
            let results: Vec<Result<Pass>> = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (first..count.min(first + self.0)).map(|i| scope.spawn(move || pass(i))).collect();
                // A panic in a pass is a bug; propagate it.
                let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Pass>>| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                threads.into_iter().map(join).collect()
            });
            for result in results {
                take(result?);
            }
        }
        Ok(())
    }
}

/// Returns workers that use `threads` threads of this process.
pub fn workers(threads: usize) -> Box<dyn Workers> {
    if threads > 1 { Box::new(Threads(threads)) } else { Box::new(InOrder) }
}

//! Who runs the forward passes of one step: the one place that data parallelism touches.
//!
//! A step's passes depend on nothing but the weights before it and their own number, and their gradients are added in
//! the order of their numbers. So any division of labour gives the same bits, and the training loop does not know it.

use crate::error::Result;
use burn::optim::GradientsParams;
use std::collections::BTreeMap;

/// Loss, gradient and logged means of one forward pass.
pub type Pass = (f64, GradientsParams, BTreeMap<String, f64>);

/// Runs the passes of a step.
pub trait Workers: Send + Sync {
    /// Calls `pass` for every number in `0..count` and hands the results to `take` in the order of their numbers.
    ///
    /// # Errors
    /// The first error of a pass.
    fn run(
        &self,
        count: usize,
        pass: &(dyn Fn(usize) -> Result<Pass> + Sync),
        take: &mut dyn FnMut(Pass),
    ) -> Result<()>;
}

/// One after the other.
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

/// So many at a time, each on a thread of its own.
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
                // A panic of a pass is a bug, and goes on as one.
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

/// The division of labour over `threads` threads of this process.
pub fn workers(threads: usize) -> Box<dyn Workers> {
    if threads > 1 { Box::new(Threads(threads)) } else { Box::new(InOrder) }
}

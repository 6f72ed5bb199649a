//! Messages between the ranks of a job.

use std::fmt::Debug;

/// The processes that train one run together, seen from one of them. All ranks make the same calls in the same order,
/// from the thread that trains; [`Collective::abort`] may be called from any thread.
///
/// A failed call ends the process: a job that lost a rank cannot continue.
pub trait Collective: Debug + Send + Sync {
    /// Returns the index of this process, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of processes.
    fn size(&self) -> usize;

    /// Adds the vectors of all ranks in a binary tree over the ranks ([`super::tree::add_parts`]), and returns this
    /// rank's part of the sum. The parts follow each other in the vector; `counts` holds the length of each.
    fn reduce_scatter(&self, values: Vec<f32>, counts: &[usize]) -> Vec<f32>;

    /// Returns the parts of all ranks, one after the other. `counts` holds the length of each.
    fn all_gather(&self, part: Vec<f32>, counts: &[usize]) -> Vec<f32>;

    /// Returns the values of all ranks, one rank after the other, on every rank. Every rank passes the same number of
    /// values.
    fn gather(&self, values: &[f64]) -> Vec<f64>;

    /// Returns the bytes of all ranks on rank 0, and nothing on the others.
    fn collect(&self, bytes: Vec<u8>) -> Vec<Vec<u8>>;

    /// Returns the bytes that rank 0 passed. The other ranks' bytes are ignored.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Ends all ranks at once with this exit code.
    fn abort(&self, code: i32) -> !;

    /// Returns once every rank has called it.
    fn barrier(&self) {
        self.gather(&[]);
    }
}

/// The only process of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn reduce_scatter(&self, values: Vec<f32>, _: &[usize]) -> Vec<f32> {
        values
    }
    fn all_gather(&self, part: Vec<f32>, _: &[usize]) -> Vec<f32> {
        part
    }
    fn gather(&self, values: &[f64]) -> Vec<f64> {
        values.to_vec()
    }
    fn collect(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        vec![bytes]
    }
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }
    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}

//! The job that a run belongs to: its ranks, and what happens when one of them hangs.

use crate::ranks::collective::{Alone, Collective};
use crate::ranks::watchdog::Hanging;
use std::sync::Arc;
use std::time::Duration;

/// The ranks of a run.
#[derive(Clone)]
pub struct Job {
    /// Messages between the ranks.
    pub ranks: Arc<dyn Collective>,
    /// Time that a step may take; `None` = by the durations of the steps before it.
    pub step_timeout: Option<Duration>,
    /// Called when a step takes too long. It must end the process.
    pub hanging: Hanging,
}

impl Job {
    /// Creates the job of a single process, whose steps have no limit.
    pub fn alone() -> Self {
        Self { ranks: Arc::new(Alone), step_timeout: None, hanging: Arc::new(|_| {}) }
    }

    /// Returns whether this is the only process.
    pub fn is_alone(&self) -> bool {
        self.ranks.size() == 1
    }

    /// Returns whether this process writes the files of the run.
    pub fn is_first(&self) -> bool {
        self.ranks.rank() == 0
    }
}

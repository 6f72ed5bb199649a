//! Reports of the trainer during a run.

use crate::data::loader::Unreadable;
use crate::error::Result;
use crate::network::backbone::BoxBackbone;
use std::collections::BTreeMap;
use std::path::Path;

/// The trainer's report of one step.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// Number of completed steps, from 1.
    pub step: usize,
    /// Mean training loss of the step.
    pub loss: f64,
    /// L2 norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Number of samples in the step.
    pub samples: usize,
    /// The items that could not be read. Other items replaced them.
    pub skipped: Vec<Unreadable>,
    /// Duration of the step, in seconds.
    pub seconds: f64,
    /// Means of the values that the objective logged, and the values of its memory, by name.
    pub logged: BTreeMap<String, f64>,
}

/// Callbacks of the trainer. The command line prints, plots and samples in them.
pub trait Events {
    /// Called after each step.
    ///
    /// # Errors
    /// An error ends the run.
    fn step(&mut self, report: &StepReport) -> Result<()>;

    /// Called every `sample_every` steps with the averaged weights after `step` steps, or with the weights in training
    /// if there is no average.
    ///
    /// # Errors
    /// An error ends the run.
    fn sample(&mut self, network: &BoxBackbone, step: usize) -> Result<()>;

    /// Called with the results of the document's metrics after `step` steps, by name, and the duration of sampling and
    /// measuring in seconds.
    ///
    /// # Errors
    /// An error ends the run.
    fn measured(&mut self, results: &BTreeMap<String, f64>, step: usize, seconds: f64) -> Result<()> {
        let _ = (results, step, seconds);
        Ok(())
    }

    /// Called after a checkpoint was written.
    fn saved(&mut self, path: &Path, step: usize);
}

/// Measures a network during training: every `evaluate_every` steps, and for objectives that follow a measurement.
pub trait Evaluator {
    /// Returns the document's metrics on samples of the network after `step` steps, by name.
    ///
    /// # Errors
    /// An error ends the run.
    fn evaluate(&mut self, network: &BoxBackbone, step: usize) -> Result<BTreeMap<String, f64>>;
}

/// The way a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Done,
    /// The run was asked to stop and wrote a checkpoint after this number of steps.
    Interrupted(usize),
}

//! Training objectives: the trait, the context that a loss reads ([`context`]) and the statement of its
//! optimum ([`optimum`]).
//! A new objective is one file in `plugins/objectives` and needs no change in this folder.

pub mod context;
pub mod optimum;

use crate::error::Problems;
use crate::process::{Family, Process};
use burn::tensor::Tensor;
use context::{Context, Memory};
use optimum::Optimum;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// The requirements of an objective on the pipeline. They are checked before the build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A network with a null condition.
    pub null_condition: bool,
    /// A network that reads a guidance number.
    pub guidance_input: bool,
    /// An exponential moving average of the weights, used as the teacher.
    pub ema: bool,
    /// A frozen copy of the initial weights, or a teacher.
    pub reference: bool,
    /// The null prediction of the reference.
    pub reference_null: bool,
    /// Conditions that do not belong to the sample.
    pub negatives: bool,
    /// A known number of classes, to choose other classes from.
    pub classes: bool,
    /// The log-likelihood per sample, or a bound.
    pub likelihood: bool,
    /// The document's metrics, measured on generated samples during training.
    pub measurements: bool,
}

/// State of the network's null prediction after training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NullPrediction {
    /// Trained, and read at this guidance number; `None` = without a number.
    TrainedAt(Option<f64>),
    /// Never trained, and why.
    Untrained(&'static str),
}

impl NullPrediction {
    /// Returns the guidance number at which the null prediction is read.
    pub fn number(self) -> Option<f64> {
        match self {
            Self::TrainedAt(number) => number,
            Self::Untrained(_) => None,
        }
    }
}

/// A training objective. Its document entry deserializes into it.
pub trait Objective: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns what users should know before they train with these settings, although the settings are allowed.
    /// `check` and `train` print it.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns what the pipeline must provide.
    fn needs(&self) -> Needs;

    /// Computes the loss per sample, `[B]`. Training minimises its mean.
    fn loss(&self, context: &Context<'_>) -> Tensor<1>;

    /// Reads the metrics of samples from the current network. The trainer calls it every `sample_every`
    /// steps.
    ///
    /// # Errors
    /// If a measurement is missing. The text names it.
    fn measured(&self, memory: &mut Memory, measurements: &BTreeMap<String, f64>) -> Result<(), String> {
        let _ = (memory, measurements);
        Ok(())
    }

    /// Returns the state of the null prediction after training. The checks convert or refuse guidance rules that
    /// read it accordingly.
    fn null(&self) -> NullPrediction;

    /// States what the minimiser samples, on a process of this family.
    fn optimum(&self, family: Family) -> Optimum;

    /// Returns the optimizer step from which [`Objective::optimum`] holds: the end of a warm-up. The loss must have the
    /// same optimum at every later step.
    fn settles_at(&self) -> usize {
        0
    }

    /// Returns why training on this family is an extension that the paper does not define; `None` if the
    /// paper defines it.
    fn extension(&self, family: Family) -> Option<&'static str> {
        let _ = family;
        None
    }

    /// Returns the problems of this entry with the backbone's process. Pointers are relative to the entry.
    fn check_process(&self, process: &dyn Process) -> Problems {
        let _ = process;
        Problems::new()
    }

    /// Returns the guidance number at which one pass samples scale `scale`; `None` if the objective trains no
    /// guidance input.
    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        let _ = scale;
        None
    }

    /// Returns the scale of a guidance number: the inverse of [`Objective::guidance_of_scale`].
    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        let _ = guidance;
        None
    }

    /// Returns the smallest and largest scale that the guidance input is trained at; `None` if there is no
    /// input or no bound.
    fn trained_scales(&self) -> Option<[f64; 2]> {
        None
    }

    /// Returns the number of gradient-free network passes per training step, in addition to the tracked pass.
    fn extra_passes(&self) -> usize;
}

//! A training objective: its loss, what it needs, and the distribution its minimiser samples.

use crate::backbone::Control;
use crate::condition::Condition;
use crate::error::Problems;
use crate::process::{Example, Input, Process};
use burn::tensor::Tensor;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// What an objective needs from the pipeline. Checked before anything is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The network must know a null condition.
    pub null_condition: bool,
    /// The network must read a guidance number.
    pub guidance_input: bool,
    /// An exponential moving average of the weights, as teacher.
    pub ema: bool,
    /// A frozen copy of the weights the run starts from, or a teacher.
    pub reference: bool,
    /// Conditions that do not belong to the sample.
    pub negatives: bool,
    /// The log-likelihood of samples, or a bound.
    pub likelihood: bool,
}

/// The distribution that the minimiser of an objective samples. The laws check it.
#[derive(Clone, Debug, PartialEq)]
pub enum Optimum {
    /// `p(x | c)` and `p(x)`; guided at sampling by any rule.
    Conditional,
    /// One pass samples what guidance samples at `scale`, where `scale` is read from the guidance number
    /// by [`Objective::scale_of_guidance`].
    TiltedByGuidance,
    /// One pass samples what guidance samples at this fixed scale.
    Tilted(f64),
}

/// Which weights answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The weights in training, tracked by the gradient tape.
    Online,
    /// The same weights without the tape: `sg[..]`.
    Stopped,
    /// Their exponential moving average.
    Ema,
    /// The frozen reference or teacher.
    Reference,
}

/// The networks a loss may call. The trainer and the laws implement it.
pub trait Models {
    /// The prediction of the weights `role`, `[B, position, channel]`.
    fn predict(&self, role: Role, input: &Input, condition: &Condition, control: &Control) -> Tensor<3>;
}

/// The random choices a loss may make. The trainer draws them; the laws enumerate them.
pub trait Draw {
    /// One number uniform in [low, high) a sample.
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64>;
    /// True with probability `p`, one a sample.
    fn bernoulli(&self, purpose: &str, p: f64, n: usize) -> Vec<bool>;
    /// An index below `choices`, one a sample.
    fn index(&self, purpose: &str, choices: usize, n: usize) -> Vec<usize>;
}

/// What a loss sees of one batch. Every random choice goes through it, so a run resumes exactly.
pub struct Context<'a> {
    /// The batch's one corruption draw.
    pub example: &'a Example,
    /// The true conditions.
    pub condition: &'a Condition,
    /// Share of training done, in [0, 1].
    pub progress: f64,
    /// Optimizer steps done.
    pub step: usize,
    process: &'a dyn Process,
    models: &'a dyn Models,
    draw: &'a dyn Draw,
    log: RefCell<BTreeMap<String, Tensor<1>>>,
}

impl<'a> Context<'a> {
    /// The context of one batch.
    pub fn new(
        example: &'a Example,
        condition: &'a Condition,
        process: &'a dyn Process,
        models: &'a dyn Models,
        draw: &'a dyn Draw,
        (step, steps): (usize, usize),
    ) -> Self {
        let progress = step as f64 / steps.max(1) as f64;
        Self { example, condition, progress, step, process, models, draw, log: RefCell::default() }
    }

    /// Number of samples.
    pub fn batch(&self) -> usize {
        self.condition.len()
    }

    /// The weights in training, tracked. Shapes: `[B, position, channel]`.
    pub fn online(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        self.model(Role::Online, condition, guidance)
    }

    /// The same weights with the gradient stopped: `sg[f(x_t, condition, guidance)]`.
    pub fn stopped(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        self.model(Role::Stopped, condition, guidance)
    }

    /// Any of the networks on the batch's input.
    pub fn model(&self, role: Role, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        let control = Control::guided(guidance.map(<[f64]>::to_vec));
        self.models.predict(role, &self.example.input, condition, &control)
    }

    /// Null in place of each condition with probability `p`; and which were dropped.
    pub fn drop_condition(&self, p: f64) -> (Condition, Vec<bool>) {
        let dropped = self.draw.bernoulli("drop", p, self.batch());
        (self.condition.dropped(&dropped), dropped)
    }

    /// One number uniform in [low, high) a sample. `purpose` names the stream.
    pub fn uniform(&self, purpose: &str, low: f64, high: f64) -> Vec<f64> {
        self.draw.uniform(purpose, low, high, self.batch())
    }

    /// An index below `choices`, one a sample. `purpose` names the stream.
    pub fn index(&self, purpose: &str, choices: usize) -> Vec<usize> {
        self.draw.index(purpose, choices, self.batch())
    }

    /// The process's loss of each sample against the batch's target, `[B]`.
    pub fn loss(&self, prediction: Tensor<3>) -> Tensor<1> {
        self.process.loss(prediction, self.example)
    }

    /// The process's log-likelihood (or bound) of each sample, `[B]`, nats.
    pub fn log_likelihood(&self, prediction: Tensor<3>) -> Tensor<1> {
        self.process.log_likelihood(prediction, self.example)
    }

    /// Records a number of each sample under `name`; its mean appears in the run's metrics.
    pub fn log(&self, name: &str, value: Tensor<1>) {
        self.log.borrow_mut().insert(name.to_string(), value.inner().mean());
    }

    /// What [`Context::log`] recorded: means, `[1]`.
    pub fn into_log(self) -> BTreeMap<String, Tensor<1>> {
        self.log.into_inner()
    }
}

/// A training objective. The document entry is the objective.
pub trait Objective: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// What the pipeline must provide.
    fn needs(&self) -> Needs;

    /// Loss of each sample, `[B]`; its mean is minimised.
    fn loss(&self, context: &Context<'_>) -> Tensor<1>;

    /// What the minimiser samples.
    fn optimum(&self) -> Optimum;

    /// The guidance number at which one pass samples scale `scale`; `None` if the objective trains no
    /// guidance input.
    fn guidance_of_scale(&self, scale: f64) -> Option<f64> {
        let _ = scale;
        None
    }

    /// The inverse of [`Objective::guidance_of_scale`].
    fn scale_of_guidance(&self, guidance: f64) -> Option<f64> {
        let _ = guidance;
        None
    }

    /// Network passes of one training step without gradient, beside the tracked one.
    fn extra_passes(&self) -> usize;
}

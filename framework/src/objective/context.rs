//! The context of a loss: networks, conditions, random choices and likelihoods of one batch.

use crate::network::backbone::Control;
use crate::network::condition::Condition;
use crate::nn;
use crate::process::{Example, Input, Process, Progress, Target, divergence, squared_error};
use crate::random::tensor;
use burn::tensor::Tensor;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Values that an objective keeps between measurements. They are saved with the run.
pub type Memory = BTreeMap<String, f64>;

/// The weights that a prediction uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The weights in training, tracked by the gradient tape.
    Online,
    /// The weights in training, without the gradient tape: `sg[..]`.
    Stopped,
    /// The exponential moving average of the weights in training.
    Ema,
    /// The frozen reference or teacher.
    Reference,
}

/// The networks that a loss may evaluate. The trainer and the laws implement it.
pub trait Models {
    /// Evaluates the network with the weights `role`. Returns `[B, position, channel]`.
    fn predict(&self, role: Role, input: &Input, condition: &Condition, control: &Control) -> Tensor<3>;

    /// Evaluates the network on the `wanted` samples and may skip the others. The trainer skips them; the
    /// laws evaluate all samples, exactly as the formula is written.
    fn predict_where(
        &self,
        wanted: &[bool],
        role: Role,
        input: &Input,
        condition: &Condition,
        control: &Control,
    ) -> Partial {
        Partial { found: Some(self.predict(role, input, condition, control)), rows: (0..wanted.len()).collect() }
    }
}

/// A prediction for some samples of a batch. [`Partial::or`] fills in the others.
#[derive(Debug)]
pub struct Partial {
    /// The prediction, `[rows, position, channel]`; `None` if there are no rows.
    pub(crate) found: Option<Tensor<3>>,
    /// Indices of the predicted samples, in the order of `found`.
    pub(crate) rows: Vec<usize>,
}

impl Partial {
    /// Fills the rows that were not evaluated with `known`, detached. Shapes: `[B, position, channel]`.
    pub fn or(self, known: &Tensor<3>) -> Tensor<3> {
        let known = if known.device().is_autodiff() { known.clone().inner() } else { known.clone() };
        let ([batch, ..], rows) = (known.dims(), self.rows);
        match self.found {
            None => known,
            Some(found) if rows.len() == batch => found,
            Some(found) => {
                // Indices >= batch refer to the freshly evaluated rows.
                let mut order: Vec<usize> = (0..batch).collect();
                rows.into_iter().enumerate().for_each(|(i, row)| order[row] = batch + i);
                nn::rows(Tensor::cat(vec![known, found], 0), order)
            }
        }
    }
}

/// The random choices that a loss may make. The trainer makes them at random; the laws enumerate them.
pub trait RandomChoices {
    /// Returns one random number per sample, uniform in [low, high).
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64>;
    /// Returns one random index per sample, with these probabilities.
    fn choice(&self, purpose: &str, probabilities: &[f64], n: usize) -> Vec<usize>;
    /// Returns the condition of another random sample for each sample, independent of the sample's own
    /// condition.
    fn negative(&self, purpose: &str, condition: &Condition) -> Condition;
}

/// The context of a loss on one batch. Every random choice goes through it, so a resumed run repeats it
/// exactly.
pub struct Context<'a> {
    /// The batch's corrupted example. A batch is corrupted once.
    pub example: &'a Example,
    /// The true conditions.
    pub condition: &'a Condition,
    /// Completed share of training, in [0, 1].
    pub progress: f64,
    /// Completed optimizer steps.
    pub step: usize,
    /// Number of classes, if conditions are classes.
    pub num_classes: Option<usize>,
    memory: Option<&'a Memory>,
    process: &'a dyn Process,
    models: &'a dyn Models,
    choices: &'a dyn RandomChoices,
    log: RefCell<BTreeMap<String, Tensor<1>>>,
    remembered: RefCell<BTreeSet<String>>,
}

impl<'a> Context<'a> {
    /// Creates the context of one batch.
    pub fn new(
        example: &'a Example,
        (condition, num_classes): (&'a Condition, Option<usize>),
        process: &'a dyn Process,
        models: &'a dyn Models,
        choices: &'a dyn RandomChoices,
        (step, steps): (usize, usize),
    ) -> Self {
        let progress = step as f64 / steps.max(1) as f64;
        Self {
            example,
            condition,
            num_classes,
            memory: None,
            progress,
            step,
            process,
            models,
            choices,
            log: RefCell::default(),
            remembered: RefCell::default(),
        }
    }

    /// Returns the same context with the values that [`measured`](crate::objective::Objective::measured) has stored.
    pub fn with_memory(self, memory: &'a Memory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// Returns a value that [`measured`](crate::objective::Objective::measured) has stored; `None` before the first
    /// measurement.
    pub fn remembered(&self, name: &str) -> Option<f64> {
        self.remembered.borrow_mut().insert(name.to_string());
        self.memory?.get(name).copied()
    }

    /// Returns the names that the loss has passed to [`Context::remembered`].
    pub fn names_remembered(&self) -> BTreeSet<String> {
        self.remembered.borrow().clone()
    }

    /// Returns the number of samples.
    pub fn batch(&self) -> usize {
        self.condition.len()
    }

    /// Evaluates the weights in training, tracked by the gradient tape. Returns `[B, position, channel]`.
    pub fn online(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        self.model(Role::Online, condition, guidance)
    }

    /// Evaluates the weights in training, detached: `sg[f(x_t, condition, guidance)]`.
    pub fn stopped(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        self.model(Role::Stopped, condition, guidance)
    }

    /// Evaluates [`Context::stopped`] on the `wanted` samples. The trainer skips the other samples, and
    /// [`Partial::or`] fills in their predictions.
    ///
    /// Call it before [`Context::online`]. Its activations are then freed before the gradient tape grows, so
    /// peak memory does not rise.
    pub fn stopped_where(&self, wanted: &[bool], condition: &Condition, guidance: Option<&[f64]>) -> Partial {
        let control = Control::guided(guidance.map(<[f64]>::to_vec));
        self.models.predict_where(wanted, Role::Stopped, &self.example.input, condition, &control)
    }

    /// Evaluates any of the networks on the batch's input.
    pub fn model(&self, role: Role, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        let control = Control::guided(guidance.map(<[f64]>::to_vec));
        self.models.predict(role, &self.example.input, condition, &control)
    }

    /// Replaces each condition by null with probability `p`. Also returns which conditions were dropped.
    pub fn drop_condition(&self, p: f64) -> (Condition, Vec<bool>) {
        let dropped: Vec<bool> = self.choice("drop", &[p, 1.0 - p]).into_iter().map(|choice| choice == 0).collect();
        (self.condition.dropped(&dropped), dropped)
    }

    /// Returns one random number per sample, uniform in [low, high). `purpose` names the random stream.
    pub fn uniform(&self, purpose: &str, low: f64, high: f64) -> Vec<f64> {
        self.choices.uniform(purpose, low, high, self.batch())
    }

    /// Returns one random index per sample, with these probabilities. `purpose` names the random stream.
    pub fn choice(&self, purpose: &str, probabilities: &[f64]) -> Vec<usize> {
        self.choices.choice(purpose, probabilities, self.batch())
    }

    /// Replaces each condition by the condition of another sample, which may have the same value.
    pub fn negative(&self, purpose: &str) -> Condition {
        self.choices.negative(purpose, self.condition)
    }

    /// Replaces each condition by a random class. All classes are equally likely.
    ///
    /// # Panics
    /// If there are no classes. The check phase refuses this if `needs().classes` is set.
    pub fn any_class(&self, purpose: &str) -> Condition {
        let n = self.num_classes.expect("the check phase refuses objectives that choose classes if there are none");
        Condition::Class(self.choice(purpose, &vec![1.0 / n as f64; n]).into_iter().map(Some).collect())
    }

    /// Replaces each class by another random class. All others are equally likely, and null stays null.
    ///
    /// # Panics
    /// If there are no classes. The check phase refuses this if `needs().classes` is set.
    pub fn other_class(&self, purpose: &str) -> Condition {
        let (Some(n), Condition::Class(own)) = (self.num_classes, self.condition) else {
            panic!("the check phase refuses objectives that choose classes if there are none")
        };
        let others = self.choice(purpose, &vec![1.0 / (n - 1) as f64; n - 1]);
        let other = |(own, other): (&Option<usize>, usize)| own.map(|own| other + usize::from(other >= own));
        Condition::Class(own.iter().zip(others).map(other).collect())
    }

    /// Computes a weight per prediction from (sample, progress). Returns `[B, 1, 1]` or `[B, position, 1]`,
    /// to be multiplied with `like`.
    pub fn weights(&self, like: &Tensor<3>, weight: impl Fn(usize, f64) -> f64) -> Tensor<3> {
        let batch = self.batch();
        let (values, positions): (Vec<f64>, usize) = match &self.example.progress {
            Progress::PerSample(all) => (all.iter().enumerate().map(|(i, p)| weight(i, *p)).collect(), 1),
            Progress::PerPosition(all) => (
                (0..batch).flat_map(|i| all.iter().map(move |p| (i, *p))).map(|(i, p)| weight(i, p)).collect(),
                all.len(),
            ),
        };
        tensor(&values, [batch, positions, 1], like.dtype(), &like.device().inner())
    }

    /// Combines two predictions with `combine` on the latent's channels. The channels after them (a learned variance) are
    /// the channels of `first`: guidance acts on the mean alone, as in [`crate::sampling::guidance::mix`]. Shapes:
    /// `[B, position, channel]`.
    pub fn combine(
        &self,
        first: Tensor<3>,
        second: Tensor<3>,
        combine: impl FnOnce(Tensor<3>, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let total = first.dims()[2];
        let channels = match &self.example.target {
            Target::Values(target) => target.dims()[2],
            Target::Ids(_) => total,
        };
        if channels >= total {
            return combine(first, second);
        }
        let latent = combine(first.clone().narrow(2, 0, channels), second.narrow(2, 0, channels));
        Tensor::cat(vec![latent, first.narrow(2, channels, total - channels)], 2)
    }

    /// Computes the process's loss per sample against the batch's target, `[B]`.
    pub fn loss(&self, prediction: Tensor<3>) -> Tensor<1> {
        self.process.loss(prediction, self.example)
    }

    /// Computes the mean squared difference of two predictions per sample, `[B]`.
    pub fn squared_error(&self, prediction: Tensor<3>, other: Tensor<3>) -> Tensor<1> {
        squared_error(prediction, other, self.example)
    }

    /// Computes `KL(softmax(teacher) | softmax(student))` per sample in nats, `[B]`.
    pub fn divergence(&self, student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
        divergence(student, teacher, self.example)
    }

    /// Computes the process's log-likelihood (or its bound) per sample in nats, `[B]`.
    pub fn log_likelihood(&self, prediction: Tensor<3>) -> Tensor<1> {
        self.process.log_likelihood(prediction, self.example)
    }

    /// Records one value per sample under `name`. The mean appears in the run's metrics.
    pub fn log(&self, name: &str, value: Tensor<1>) {
        self.log.borrow_mut().insert(name.to_string(), value.inner().mean());
    }

    /// Returns the means that [`Context::log`] recorded, `[1]` each.
    pub fn into_log(self) -> BTreeMap<String, Tensor<1>> {
        self.log.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device};

    #[test]
    fn samples_that_are_not_wanted_keep_what_is_known() {
        let of = |values: &[f64]| tensor::<3>(values, [values.len(), 1, 1], DType::F64, &Device::flex());
        let known = of(&[1.0, 2.0, 3.0, 4.0]);
        let asked = |rows: &[usize]| {
            let found: Vec<f64> = rows.iter().map(|i| 10.0 + *i as f64).collect();
            let part = Partial { found: (!rows.is_empty()).then(|| of(&found)), rows: rows.to_vec() };
            part.or(&known).into_data().try_into_vec::<f64>().unwrap()
        };
        assert_eq!(asked(&[0, 3]), [10.0, 2.0, 3.0, 13.0]);
        assert_eq!(asked(&[1, 2]), [1.0, 11.0, 12.0, 4.0]);
        assert_eq!(asked(&[0, 1, 2, 3]), [10.0, 11.0, 12.0, 13.0]);
        assert_eq!(asked(&[]), [1.0, 2.0, 3.0, 4.0]);
    }
}

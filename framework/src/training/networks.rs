//! The networks and the random choices of one training step, for the context of an objective.

use crate::blame;
use crate::network::backbone::{Backbone, BoxBackbone, Control};
use crate::network::condition::Condition;
use crate::network::microbatch;
use crate::nn::dropout::Dropout;
use crate::nn::precision::MatmulPrecision;
use crate::objective::context::{Models, Partial, RandomChoices, Role};
use crate::process::Input;
use crate::random::Random;
use burn::tensor::{DType, Tensor};
use rand::RngExt;

/// A frozen reference or teacher, with the guidance numbers on which it was trained.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Network of the reference.
    pub network: BoxBackbone,
    /// Guidance number of a prediction without guidance; `None` = the network reads no guidance number.
    pub conditional: Option<f64>,
    /// Guidance number at which the null prediction was trained; `None` = the network reads no guidance number.
    pub null: Option<f64>,
}

impl Reference {
    /// Wraps a network that reads no guidance number.
    pub fn plain(network: BoxBackbone) -> Self {
        Self { network, conditional: None, null: None }
    }

    /// Adds guidance numbers to `control` if the objective sets none: each sample gets the number at which its
    /// condition was trained.
    fn control(&self, condition: &Condition, control: &Control) -> Control {
        let Some(conditional) = self.conditional.filter(|_| control.guidance.is_none()) else { return control.clone() };
        let number = |is_null: bool| if is_null { self.null.unwrap_or(conditional) } else { conditional };
        Control { guidance: Some(condition.is_null().into_iter().map(number).collect()), ..control.clone() }
    }
}

/// The networks of one step.
pub struct Networks<'a> {
    /// Name of the backbone, for panic messages.
    pub name: &'a str,
    /// Weights in training, on the gradient tape.
    pub online: BoxBackbone,
    /// The same weights without the tape.
    pub stopped: BoxBackbone,
    /// Exponential moving average of the weights.
    pub ema: Option<&'a BoxBackbone>,
    /// Frozen reference or teacher.
    pub reference: Option<&'a Reference>,
    /// Masks of dropout and drop path of the tracked pass.
    pub dropout: Dropout,
    /// Precision of matrix products in passes without the tape.
    pub stopped_precision: MatmulPrecision,
}

impl Models for Networks<'_> {
    fn predict(&self, role: Role, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let (network, control) = match role {
            Role::Online => (&self.online, Control { dropout: self.dropout, ..control.clone() }),
            Role::Stopped => (&self.stopped, control.clone()),
            Role::Ema => (self.ema.expect("an objective that reads the EMA must state it in `needs`"), control.clone()),
            Role::Reference => {
                let reference = self.reference.expect("an objective that reads the reference must state it in `needs`");
                (&reference.network, reference.control(condition, control))
            }
        };
        let prediction = blame::named(self.name, || match role {
            Role::Online => network.predict(input, condition, &control),
            _ => self.stopped_precision.within(|| microbatch::predict(network, input, condition, &control)),
        });
        // Objectives compute in f32, even if the network computes in bf16.
        if prediction.dtype() == DType::BF16 { prediction.cast(DType::F32) } else { prediction }
    }

    fn predict_where(
        &self,
        wanted: &[bool],
        role: Role,
        input: &Input,
        condition: &Condition,
        control: &Control,
    ) -> Partial {
        let rows: Vec<usize> = (0..wanted.len()).filter(|row| wanted[*row]).collect();
        let found = match rows.len() {
            0 => None,
            all if all == wanted.len() => Some(self.predict(role, input, condition, control)),
            _ => Some(self.predict(role, &input.select(&rows), &condition.select(&rows), &control.select(&rows))),
        };
        Partial { found, rows }
    }
}

/// Random choices as a function of (seed, purpose, draw index).
pub struct Choices<'a> {
    /// Random streams of the run.
    pub random: &'a Random,
    /// Index of the forward pass since the start of the run.
    pub draw_index: u64,
}

impl RandomChoices for Choices<'_> {
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64> {
        self.random.uniform(purpose, 0, self.draw_index, n).into_iter().map(|u| low + (high - low) * u).collect()
    }

    fn choice(&self, purpose: &str, probabilities: &[f64], n: usize) -> Vec<usize> {
        let choose = |u: f64| {
            let mut rest = u;
            let found = probabilities.iter().position(|p| {
                rest -= p;
                rest < 0.0
            });
            // Rounded probabilities may sum to slightly less than 1. Assign the remainder to the last possible choice.
            found.unwrap_or_else(|| probabilities.iter().rposition(|p| *p > 0.0).unwrap_or_default())
        };
        self.random.uniform(purpose, 0, self.draw_index, n).into_iter().map(choose).collect()
    }

    /// Returns, for each sample, the condition of a later sample of the batch, cyclically. The offset depends on
    /// `purpose`.
    fn negative(&self, purpose: &str, condition: &Condition) -> Condition {
        let n = condition.len();
        // Batches have a random order, so a fixed offset selects a random other sample. The offset depends on the
        // purpose, so that different purposes do not always select the same sample.
        let ahead = 1 + self.random.stream(purpose, 0, 0).random_range(0..n.max(2) - 1);
        condition.select(&(0..n).map(|i| (i + ahead) % n).collect::<Vec<_>>())
    }
}

//! Finite worlds: joint distributions over conditions and over the training examples of a process.

use framework::objective::optimum::{Against, Of, Tilt};
use framework::process::Family;
use proptest::prelude::*;
use std::fmt::Write;
use std::ops::RangeInclusive;

/// Number of conditions of every world.
pub const CONDITIONS: usize = 3;
/// Channels of a continuous world's predictions.
pub const CHANNELS: usize = 2;

/// A joint distribution over conditions and outcomes. An outcome consists of inputs and their targets.
///
/// - Continuous: an outcome is an input `x_t` and a regression target. Data and noise affect the loss only through
///   these.
/// - Masked: as continuous, but with two positions. The input determines which positions are scored.
/// - Next token: an outcome is a sequence. Its prefixes are the inputs, its tokens the targets.
/// - Next level: the first token is level 1, the others are level 2. The input of a level-2 token is the first token
///   together with the position.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Family of the process.
    pub family: Family,
    /// Number of inputs per position (continuous, masked), or length of the sequences (tokens).
    pub size: usize,
    /// Probability of (condition, outcome), row-major; sums to 1.
    pub joint: Vec<f64>,
    /// Targets of a continuous world, `CHANNELS` values per outcome.
    pub targets: Vec<f64>,
    /// Values of each input `x_t` of a continuous world, `CHANNELS` values per input and position.
    pub values: Vec<f64>,
    /// Progress of each input of a continuous world, in [0, 1].
    pub progress: Vec<f64>,
    /// Predictions of the frozen reference, row-major by (condition, input), with the null condition last.
    pub reference: Vec<f64>,
    /// The two points in (0, 1) that replace a uniform random number.
    pub quantiles: [f64; 2],
}

/// Number of outcomes per input of a continuous world.
const OUTCOMES: usize = 3;

impl World {
    /// Creates a world without contents. Its sizes follow from `family` and `size` alone.
    fn empty(family: Family, size: usize) -> Self {
        let (joint, targets, values) = (Vec::new(), Vec::new(), Vec::new());
        let (progress, reference) = (Vec::new(), Vec::new());
        Self { family, size, joint, targets, values, progress, reference, quantiles: [0.0; 2] }
    }

    /// Returns the sequence length to test a token family with. An objective that uses likelihoods is tested on
    /// sequences of one token: its statement is about p(x | c) of whole sequences, and the likelihood of a longer
    /// sequence is a product over its tokens.
    pub fn length(family: Family, likelihood: bool) -> usize {
        match family {
            _ if likelihood => 1,
            Family::NextLevel => 3,
            _ => 2,
        }
    }

    /// Returns a strategy for random worlds of a family. Token worlds have sequences of `length` tokens.
    pub fn strategy(family: Family, length: usize) -> impl Strategy<Value = Self> {
        Self::of_sizes(family, if family.has_logits() { length..=length } else { 1..=3 })
    }

    /// Returns a strategy for random worlds whose size is in a range.
    pub fn of_sizes(family: Family, sizes: RangeInclusive<usize>) -> impl Strategy<Value = Self> {
        sizes.prop_flat_map(move |size| {
            let empty = Self::empty(family, size);
            let (outcomes, inputs, width) = (empty.outcomes(), empty.inputs(), empty.width());
            let rounded = |range: std::ops::Range<i32>| range.prop_map(|n| f64::from(n) / 10.0);
            (
                prop::collection::vec(rounded(1..11), CONDITIONS * outcomes),
                prop::collection::vec(rounded(-20..21), outcomes * CHANNELS),
                prop::collection::vec(rounded(-20..21), inputs * CHANNELS),
                prop::collection::vec(rounded(0..11), inputs),
                prop::collection::vec(rounded(-10..11), (CONDITIONS + 1) * inputs * width),
                [rounded(1..6), rounded(6..10)],
            )
                .prop_map(move |(mass, targets, values, progress, reference, quantiles)| {
                    let total: f64 = mass.iter().sum();
                    let joint = mass.into_iter().map(|m| m / total).collect();
                    Self { family, size, joint, targets, values, progress, reference, quantiles }.last_logit_at_zero()
                })
        })
    }

    /// Replaces the reference with the data's own predictions, as of a perfectly pretrained network.
    pub fn pretrained(mut self) -> Self {
        self.reference = Vec::new();
        for condition in (0..CONDITIONS).map(Some).chain([None]) {
            for input in 0..self.inputs() {
                let data = self.data(condition, input);
                self.reference.extend(data);
            }
        }
        self.last_logit_at_zero()
    }

    /// Shifts the reference's logits so that the last one is zero, as in the table. A constant added to all logits has
    /// no effect.
    fn last_logit_at_zero(mut self) -> Self {
        if self.tokens() {
            let width = self.width();
            for row in self.reference.chunks_mut(width) {
                let last = row[width - 1];
                row.iter_mut().for_each(|logit| *logit -= last);
            }
        }
        self
    }

    /// Returns whether the predictions are logits.
    pub fn tokens(&self) -> bool {
        self.family.has_logits()
    }

    /// Returns the width of a prediction: the number of channels, or the vocabulary size.
    pub fn width(&self) -> usize {
        match self.family {
            Family::NextToken => 3,
            Family::NextLevel => 2,
            Family::Continuous | Family::Masked => CHANNELS,
        }
    }

    /// Returns the number of positions per sample.
    pub fn positions(&self) -> usize {
        match self.family {
            Family::Continuous => 1,
            Family::Masked => 2,
            Family::NextToken | Family::NextLevel => self.size,
        }
    }

    /// Returns the number of inputs, over all positions.
    pub fn inputs(&self) -> usize {
        match self.family {
            Family::NextToken => self.prefixes(self.size),
            Family::NextLevel => 1 + self.width() * (self.size - 1),
            Family::Continuous | Family::Masked => self.positions() * self.size,
        }
    }

    /// Returns the number of outcomes per condition.
    pub fn outcomes(&self) -> usize {
        if self.tokens() { self.sequences(self.size) } else { self.size * OUTCOMES }
    }

    fn sequences(&self, length: usize) -> usize {
        self.width().pow(length as u32)
    }

    /// Returns the number of prefixes of length 0 to `length - 1`.
    fn prefixes(&self, length: usize) -> usize {
        (0..length).map(|length| self.sequences(length)).sum()
    }

    /// Returns whether the prediction at an input is scored.
    pub fn scored_at(&self, input: usize) -> bool {
        // In a masked world, inputs cycle through three masks: both positions hidden, only the first, only the second.
        self.family != Family::Masked || (input % self.size) % 3 != 2 - input / self.size
    }

    /// Returns `p(c, outcome)`.
    pub fn probability(&self, condition: usize, outcome: usize) -> f64 {
        self.joint[condition * self.outcomes() + outcome]
    }

    /// Returns `p(c)`.
    pub fn prior(&self, condition: usize) -> f64 {
        (0..self.outcomes()).map(|outcome| self.probability(condition, outcome)).sum()
    }

    /// Returns the tokens of an outcome, in order.
    pub fn tokens_of(&self, outcome: usize) -> Vec<usize> {
        (0..self.size).map(|place| outcome / self.sequences(self.size - 1 - place) % self.width()).collect()
    }

    /// Returns the input at each position of an outcome.
    pub fn inputs_of(&self, outcome: usize) -> Vec<usize> {
        let prefix = |length: usize| self.prefixes(length) + outcome / self.sequences(self.size - length);
        let first = || self.tokens_of(outcome)[0];
        let at = |position: usize| match (self.family, position) {
            (Family::NextToken, length) => prefix(length),
            (Family::NextLevel, 0) => 0,
            (Family::NextLevel, position) => position + first() * (self.size - 1),
            (Family::Continuous | Family::Masked, position) => position * self.size + outcome / OUTCOMES,
        };
        (0..self.positions()).map(at).collect()
    }

    /// Returns the target of an outcome at a position of a continuous world.
    pub fn target_of(&self, outcome: usize, position: usize) -> &[f64] {
        &self.targets[(outcome + position) % self.outcomes() * CHANNELS..][..CHANNELS]
    }

    /// Returns the values of an input of a continuous world.
    pub fn values_at(&self, input: usize) -> &[f64] {
        &self.values[input * CHANNELS..][..CHANNELS]
    }

    /// Returns the progress at an input.
    pub fn progress_at(&self, input: usize) -> f64 {
        match self.family {
            Family::Continuous | Family::Masked => self.progress[input % self.size],
            Family::NextLevel => f64::from(u8::from(input > 0)),
            Family::NextToken => {
                let length = (0..self.size).rev().find(|length| input >= self.prefixes(*length)).unwrap_or(0);
                length as f64 / self.size as f64
            }
        }
    }

    /// Computes the prediction that minimises the plain loss at an input, with outcomes weighted by `weight(c)`: the
    /// mean of the targets, or the log-probabilities of the next token.
    fn minimiser(&self, input: usize, weight: &dyn Fn(usize) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.width()];
        let mut total = 0.0;
        for c in 0..CONDITIONS {
            for outcome in 0..self.outcomes() {
                let Some(position) = self.inputs_of(outcome).iter().position(|at| *at == input) else { continue };
                let mass = weight(c) * self.probability(c, outcome);
                total += mass;
                if self.tokens() {
                    sums[self.tokens_of(outcome)[position]] += mass;
                } else {
                    let target = self.target_of(outcome, position);
                    sums.iter_mut().zip(target).for_each(|(sum, target)| *sum += mass * target);
                }
            }
        }
        sums.iter().map(|sum| if self.tokens() { (sum / total).ln() } else { sum / total }).collect()
    }

    /// Computes the data's prediction for a condition; `None` = unconditional.
    pub fn data(&self, condition: Option<usize>, input: usize) -> Vec<f64> {
        self.minimiser(input, &|c| f64::from(u8::from(condition.is_none_or(|condition| c == condition))))
    }

    /// Returns the reference's prediction for a condition; `None` = null.
    pub fn referred(&self, condition: Option<usize>, input: usize) -> &[f64] {
        let row = condition.unwrap_or(CONDITIONS) * self.inputs() + input;
        &self.reference[row * self.width()..][..self.width()]
    }

    /// Computes the prediction that a tilt states for a condition at an input.
    pub fn tilted(&self, tilt: &Tilt, condition: usize, input: usize, guidance: Option<f64>) -> Vec<f64> {
        let of = |of: Of, condition: Option<usize>| match of {
            Of::Data => self.data(condition, input),
            Of::Reference => self.referred(condition, input).to_vec(),
        };
        let mean = |classes: Vec<usize>| -> Vec<f64> {
            let all: Vec<Vec<f64>> = classes.iter().map(|c| of(tilt.of, Some(*c))).collect();
            (0..self.width()).map(|i| all.iter().map(|p| p[i]).sum::<f64>() / all.len() as f64).collect()
        };
        let against = match tilt.against {
            Against::Null => of(tilt.of, None),
            Against::MeanOfClasses => mean((0..CONDITIONS).collect()),
            Against::MeanOfOtherClasses => mean((0..CONDITIONS).filter(|c| *c != condition).collect()),
            Against::Others => self.minimiser(input, &|c| f64::from(u8::from(c != condition))),
            Against::Reference => self.referred(Some(condition), input).to_vec(),
            Against::Made { from, .. } => from(&of(tilt.of, Some(condition)), &of(tilt.of, None)),
        };
        let scale = (tilt.scale)(guidance, self.progress_at(input));
        let (from, toward) = (of(tilt.from, Some(condition)), of(tilt.of, Some(condition)));
        (0..self.width()).map(|i| from[i] + (scale - 1.0) * (toward[i] - against[i])).collect()
    }

    /// Formats the world as a table, one line per outcome, with its probability under each condition.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let what = if self.tokens() { "tokens" } else { "progress, x_t -> target" };
        let _ = writeln!(text, "  outcome  p(c = 0, 1, 2; outcome)  {what}");
        for outcome in 0..self.outcomes() {
            let what = if self.tokens() {
                format!("{:?}", self.tokens_of(outcome))
            } else {
                let at = |(position, input): (usize, usize)| {
                    let hidden = if self.scored_at(input) { "" } else { " (not scored)" };
                    let (progress, values) = (self.progress_at(input), self.values_at(input));
                    format!("{progress}, {values:?} -> {:?}{hidden}", self.target_of(outcome, position))
                };
                self.inputs_of(outcome).into_iter().enumerate().map(at).collect::<Vec<_>>().join("; ")
            };
            let mass = (0..CONDITIONS).map(|c| format!("{:.4}", self.probability(c, outcome)));
            let _ = writeln!(text, "  {outcome:>7}  {:<25}  {what}", mass.collect::<Vec<_>>().join("  "));
        }
        text
    }
}

//! Finite worlds: a joint distribution over conditions and everything a process can make of data and noise.

use crate::objective::{Against, Of, Tilt};
use crate::process::Family;
use proptest::prelude::*;
use std::fmt::Write;

/// Number of conditions of every world.
pub const CONDITIONS: usize = 3;
/// Channels of a continuous world's predictions.
pub const CHANNELS: usize = 2;

/// What can happen: an input the network sees, and the target it is scored against.
///
/// Of a continuous process, data and noise matter through the input `x_t` and the regression target alone; so a world
/// lists those. A masked one has two positions, of which its input says which are scored. Of a token process an outcome is
/// a sequence: its prefixes are the inputs, its tokens the targets. Of a pyramid the first token is the first level and
/// the others are the second: their inputs are the first token and their own place.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// The family of process.
    pub family: Family,
    /// Inputs of the first position of a continuous world; length of the sequences of a token world.
    pub size: usize,
    /// Probability of (condition, outcome), condition after condition; sums to one.
    pub joint: Vec<f64>,
    /// Target of each outcome of a continuous world, `CHANNELS` numbers each.
    pub targets: Vec<f64>,
    /// Progress of each input of a continuous world, above 0 and at most 1.
    pub progress: Vec<f64>,
    /// What a frozen reference predicts, by (condition or null, input).
    pub reference: Vec<f64>,
    /// Where uniform draws fall: two points in (0, 1).
    pub quantiles: [f64; 2],
}

/// Outcomes an input of a continuous world can have.
const OUTCOMES: usize = 3;

impl World {
    /// A world of a family and size that holds nothing yet: what follows from the two alone.
    fn empty(family: Family, size: usize) -> Self {
        let (joint, targets, progress, reference) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { family, size, joint, targets, progress, reference, quantiles: [0.0; 2] }
    }

    /// Length of the sequences that show what there is to show of a token family. Likelihoods of sequences are products:
    /// what an objective of likelihoods says of p(x | c) it says of sequences of one token.
    pub fn length(family: Family, likelihood: bool) -> usize {
        match family {
            _ if likelihood => 1,
            Family::NextLevel => 3,
            _ => 2,
        }
    }

    /// Random worlds of a family. Token worlds have sequences of `length` tokens.
    pub fn strategy(family: Family, length: usize) -> impl Strategy<Value = Self> {
        let sizes = if family.has_logits() { length..=length } else { 1..=3_usize };
        sizes.prop_flat_map(move |size| {
            let empty = Self::empty(family, size);
            let (outcomes, inputs, width) = (empty.outcomes(), empty.inputs(), empty.width());
            let rounded = |range: std::ops::Range<i32>| range.prop_map(|n| f64::from(n) / 10.0);
            (
                prop::collection::vec(rounded(1..11), CONDITIONS * outcomes),
                prop::collection::vec(rounded(-20..21), outcomes * CHANNELS),
                prop::collection::vec(rounded(1..11), inputs),
                prop::collection::vec(rounded(-10..11), (CONDITIONS + 1) * inputs * width),
                [rounded(1..6), rounded(6..10)],
            )
                .prop_map(move |(mass, targets, progress, reference, quantiles)| {
                    let total: f64 = mass.iter().sum();
                    let joint = mass.into_iter().map(|m| m / total).collect();
                    Self { family, size, joint, targets, progress, reference, quantiles }.last_logit_at_zero()
                })
        })
    }

    /// The same world with the data's own predictions as reference: a perfectly pretrained network.
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

    /// A constant added to all logits changes nothing: the last one of the reference is zero, as that of the table is.
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

    /// Whether its predictions are logits.
    pub fn tokens(&self) -> bool {
        self.family.has_logits()
    }

    /// Numbers of one prediction: channels, or tokens of the vocabulary.
    pub fn width(&self) -> usize {
        match self.family {
            Family::NextToken => 3,
            Family::NextLevel => 2,
            Family::Continuous | Family::Masked => CHANNELS,
        }
    }

    /// Positions of one sample.
    pub fn positions(&self) -> usize {
        match self.family {
            Family::Continuous => 1,
            Family::Masked => 2,
            Family::NextToken | Family::NextLevel => self.size,
        }
    }

    /// Inputs a prediction is made at.
    pub fn inputs(&self) -> usize {
        match self.family {
            Family::NextToken => self.prefixes(self.size),
            Family::NextLevel => 1 + self.width() * (self.size - 1),
            Family::Continuous | Family::Masked => self.positions() * self.size,
        }
    }

    /// Outcomes a condition can have.
    pub fn outcomes(&self) -> usize {
        if self.tokens() { self.sequences(self.size) } else { self.size * OUTCOMES }
    }

    fn sequences(&self, length: usize) -> usize {
        self.width().pow(length as u32)
    }

    /// Prefixes of length 0 to `length - 1`.
    fn prefixes(&self, length: usize) -> usize {
        (0..length).map(|length| self.sequences(length)).sum()
    }

    /// Whether the prediction at an input is scored.
    pub fn scored_at(&self, input: usize) -> bool {
        // Of three first inputs, one has both positions hidden, one the first alone, one the second.
        self.family != Family::Masked || (input % self.size) % 3 != 2 - input / self.size
    }

    /// `p(c, outcome)`.
    pub fn probability(&self, condition: usize, outcome: usize) -> f64 {
        self.joint[condition * self.outcomes() + outcome]
    }

    /// `p(c)`.
    pub fn prior(&self, condition: usize) -> f64 {
        (0..self.outcomes()).map(|outcome| self.probability(condition, outcome)).sum()
    }

    /// Tokens of an outcome, first to last.
    pub fn tokens_of(&self, outcome: usize) -> Vec<usize> {
        (0..self.size).map(|place| outcome / self.sequences(self.size - 1 - place) % self.width()).collect()
    }

    /// The input at each position of an outcome.
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

    /// Target of an outcome at a position of a continuous world.
    pub fn target_of(&self, outcome: usize, position: usize) -> &[f64] {
        &self.targets[(outcome + position) % self.outcomes() * CHANNELS..][..CHANNELS]
    }

    /// Progress at an input.
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

    /// What the minimiser of the plain loss predicts at an input, over outcomes weighted by `weight(c)`: the mean of the
    /// targets, or the log-probabilities of the next token.
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

    /// The data's prediction for a condition, or unconditionally.
    pub fn data(&self, condition: Option<usize>, input: usize) -> Vec<f64> {
        self.minimiser(input, &|c| f64::from(u8::from(condition.is_none_or(|condition| c == condition))))
    }

    /// The reference's prediction.
    pub fn referred(&self, condition: Option<usize>, input: usize) -> &[f64] {
        let row = condition.unwrap_or(CONDITIONS) * self.inputs() + input;
        &self.reference[row * self.width()..][..self.width()]
    }

    /// What a tilt says the network predicts for a condition at an input.
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
            Against::Made { from, .. } => from(&of(tilt.of, Some(condition)), &of(tilt.of, None)),
        };
        let scale = (tilt.scale)(guidance, self.progress_at(input));
        let (from, toward) = (of(tilt.from, Some(condition)), of(tilt.of, Some(condition)));
        (0..self.width()).map(|i| from[i] + (scale - 1.0) * (toward[i] - against[i])).collect()
    }

    /// The world as a table that a person can read.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "  condition  outcome    probability  {}",
            if self.tokens() { "tokens" } else { "input, progress -> target" }
        );
        for c in 0..CONDITIONS {
            for outcome in 0..self.outcomes() {
                let what = if self.tokens() {
                    format!("{:?}", self.tokens_of(outcome))
                } else {
                    let at = |(position, input): (usize, usize)| {
                        let hidden = if self.scored_at(input) { "" } else { " (not scored)" };
                        format!(
                            "{input}, {} -> {:?}{hidden}",
                            self.progress_at(input),
                            self.target_of(outcome, position)
                        )
                    };
                    self.inputs_of(outcome).into_iter().enumerate().map(at).collect::<Vec<_>>().join("; ")
                };
                let _ = writeln!(text, "  {c:>9}  {outcome:>7}    {:>11.4}  {what}", self.probability(c, outcome));
            }
        }
        text
    }
}

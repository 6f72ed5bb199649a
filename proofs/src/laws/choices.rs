//! Random choices of a loss: recorded first, then enumerated.

use super::world::{CONDITIONS, World};
use framework::network::condition::Condition;
use framework::objective::context::RandomChoices;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A random choice that a loss requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    Uniform(f64, f64),
    Choice(Vec<f64>),
    Negative,
}

/// Records the random choices that a loss requests. Answers each with its first possibility.
#[derive(Default)]
pub struct Recorder(pub RefCell<Vec<(String, Asked)>>);

impl Recorder {
    fn note(&self, purpose: &str, asked: Asked) {
        let mut all = self.0.borrow_mut();
        if !all.iter().any(|(known, _)| known == purpose) {
            all.push((purpose.to_string(), asked));
        }
    }
}

impl RandomChoices for Recorder {
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64> {
        self.note(purpose, Asked::Uniform(low, high));
        vec![low; n]
    }
    fn choice(&self, purpose: &str, probabilities: &[f64], n: usize) -> Vec<usize> {
        self.note(purpose, Asked::Choice(probabilities.to_vec()));
        vec![0; n]
    }
    fn negative(&self, purpose: &str, condition: &Condition) -> Condition {
        self.note(purpose, Asked::Negative);
        condition.clone()
    }
}

/// Answers to every random choice, by purpose: one per sample.
#[derive(Default)]
pub struct Answers(pub BTreeMap<String, Vec<f64>>);

impl Answers {
    fn of(&self, purpose: &str) -> &[f64] {
        self.0.get(purpose).unwrap_or_else(|| {
            panic!(
                "the loss requests \"{purpose}\" only in some cases; its random choices must not depend on each other"
            )
        })
    }
}

impl RandomChoices for Answers {
    fn uniform(&self, purpose: &str, _: f64, _: f64, _: usize) -> Vec<f64> {
        self.of(purpose).to_vec()
    }
    fn choice(&self, purpose: &str, _: &[f64], _: usize) -> Vec<usize> {
        self.of(purpose).iter().map(|index| *index as usize).collect()
    }
    fn negative(&self, purpose: &str, _: &Condition) -> Condition {
        Condition::Class(self.of(purpose).iter().map(|class| Some(*class as usize)).collect())
    }
}

/// The values that replace a uniform random number.
#[derive(Clone, Debug, Default)]
pub enum Points {
    /// Two interior points, chosen by the world.
    #[default]
    Interior,
    /// Both ends of the range and these quantiles between them.
    Ends(Vec<f64>),
    /// This value where the range contains it, and the middle of the range.
    At(f64),
}

impl Points {
    fn of(&self, world: &World, low: f64, high: f64) -> Vec<f64> {
        let at = |quantile: &f64| low + (high - low) * quantile;
        match self {
            Self::Interior => world.quantiles.iter().map(at).collect(),
            Self::Ends(between) => [0.0, 1.0].iter().chain(between).map(at).collect(),
            Self::At(value) if (low..=high).contains(value) => vec![*value, at(&0.5)],
            Self::At(_) => world.quantiles.iter().map(at).collect(),
        }
    }
}

/// One outcome with its condition and one answer to each random choice.
#[derive(Clone)]
pub struct Case {
    pub world: usize,
    pub condition: usize,
    pub outcome: usize,
    /// Probability within its world.
    pub weight: f64,
    pub answers: Vec<f64>,
}

impl Case {
    /// Splits this case by the possible answers to one more random choice.
    pub fn answered(self, asked: &Asked, worlds: &[World], points: &Points) -> Vec<Self> {
        let world = &worlds[self.world];
        let answers: Vec<(f64, f64)> = match asked {
            Asked::Uniform(low, high) if low == high => vec![(*low, 1.0)],
            Asked::Uniform(low, high) => {
                let values = points.of(world, *low, *high);
                let share = 1.0 / values.len() as f64;
                values.into_iter().map(|value| (value, share)).collect()
            }
            Asked::Choice(all) => {
                all.iter().enumerate().map(|(i, p)| (i as f64, *p)).filter(|(_, p)| *p > 0.0).collect()
            }
            Asked::Negative => (0..CONDITIONS).map(|c| (c as f64, world.prior(c))).collect(),
        };
        let with = |(answer, probability): (f64, f64)| {
            let mut case = self.clone();
            case.answers.push(answer);
            case.weight *= probability;
            case
        };
        answers.into_iter().map(with).collect()
    }
}

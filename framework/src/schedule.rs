//! Curves over progress, shared by objectives and guidance rules.

use crate::error::{Problem, Problems};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The share of guidance that applies at progress `p` (0 = noise or first token, 1 = data).
///
/// A rule at share `f` guides at scale `1 + (scale - 1) f`.
///
/// Source: arXiv:2404.02905 (linear in VAR's level), arXiv:2303.14389 (power cosine), arXiv:2404.07724 (interval).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Share 1 at every progress.
    #[default]
    Constant,
    /// Share p.
    Linear,
    /// Share p^exponent: 0 = constant, 1 = linear. GFT's pyramid for VAR; published exponents are 1 and 1.5.
    Power {
        /// Exponent, 0 to 100.
        #[schemars(range(min = 0.0, max = 100.0))]
        exponent: f64,
    },
    /// Share (1 - cos(pi p)) / 2.
    Cosine,
    /// Share (1 - cos(pi p^power)) / 2.
    PowerCosine {
        /// Exponent, 0.001 to 100. Published: at most 4.
        #[schemars(range(min = 1e-3, max = 100.0))]
        power: f64,
    },
    /// Share 1 where from <= p <= to, otherwise 0. A step with share 0 has no guidance and no second pass.
    Interval {
        /// Progress at which guidance starts, in [0, 1].
        #[schemars(range(min = 0.0, max = 1.0))]
        from: f64,
        /// Progress at which guidance ends, in [0, 1].
        #[schemars(range(min = 0.0, max = 1.0))]
        to: f64,
    },
}

impl Schedule {
    /// Returns the share at progress `p`, in [0, 1].
    pub fn at(self, p: f64) -> f64 {
        let cosine = |p: f64| 0.5 * (1.0 - (PI * p).cos());
        match self {
            Self::Constant => 1.0,
            Self::Linear => p,
            Self::Power { exponent } => p.powf(exponent),
            Self::Cosine => cosine(p),
            Self::PowerCosine { power } => cosine(p.powf(power)),
            Self::Interval { from, to } => f64::from(u8::from((from..=to).contains(&p))),
        }
    }

    /// Returns the problems of the schedule; pointers are relative to it.
    pub fn check(&self) -> Problems {
        match self {
            Self::Interval { from, to } if from > to => {
                let what = format!("the interval ends at {to}, before it starts at {from}");
                vec![Problem::new("/from", what).and_at("/to").accepts("from <= to")]
            }
            _ => Problems::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        for (schedule, expected) in [
            (Schedule::Constant, [1.0, 1.0, 1.0]),
            (Schedule::Linear, [0.0, 0.25, 1.0]),
            (Schedule::Power { exponent: 0.0 }, [1.0, 1.0, 1.0]),
            (Schedule::Power { exponent: 1.5 }, [0.0, 0.125, 1.0]),
            (Schedule::Cosine, [0.0, (1.0 - 0.5_f64.sqrt()) / 2.0, 1.0]),
            (Schedule::PowerCosine { power: 0.5 }, [0.0, 0.5, 1.0]),
            (Schedule::Interval { from: 0.2, to: 0.3 }, [0.0, 1.0, 0.0]),
        ] {
            let got = [0.0, 0.25, 1.0].map(|p| schedule.at(p));
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{schedule:?}: {got:?}");
        }
    }

    #[test]
    fn an_interval_that_ends_before_it_starts_is_refused() {
        assert_eq!(Schedule::Interval { from: 0.5, to: 0.4 }.check().len(), 1);
        assert!(Schedule::Interval { from: 0.5, to: 0.5 }.check().is_empty());
    }
}

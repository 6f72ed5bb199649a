//! Schedules: functions of the progress that objectives and guidance rules share.

use crate::error::{Problem, Problems};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The share of guidance that applies at progress `p` (0 = noise or first token, 1 = data).
///
/// A rule at share `f` guides at scale `1 + (scale - 1) f`, unless it offers another [`ScheduleForm`]. Published weight
/// schedules are normalised to mean 1 and have the form `scale f`: `linear`, `inverse_linear`, `cosine`, `sine`,
/// `lambda_shape` and `v_shape` with weight w are these shares at scale 2 w.
///
/// Source: arXiv:2404.02905 (linear in VAR's level), arXiv:2303.14389 (power cosine), arXiv:2404.07724 (interval),
/// arXiv:2404.13040 (the mean-1 schedules and the lower bound), arXiv:2502.10574 (beta density).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Share 1 at every progress.
    #[default]
    Constant,
    /// Share p.
    Linear,
    /// Share 1 - p.
    InverseLinear,
    /// Share max(floor, p).
    ClampLinear {
        /// Smallest share, in [0, 1].
        #[schemars(range(min = 0.0, max = 1.0))]
        floor: f64,
    },
    /// Share p^exponent: 0 = constant, 1 = linear. GFT's pyramid for VAR; published exponents are 1 and 1.5.
    Power {
        /// Exponent, 0 to 100.
        #[schemars(range(min = 0.0, max = 100.0))]
        exponent: f64,
    },
    /// Share (1 - cos(pi p)) / 2.
    Cosine,
    /// Share (1 + cos(pi p)) / 2: the cosine, reversed.
    Sine,
    /// Share (1 - cos(pi p^power)) / 2.
    PowerCosine {
        /// Exponent, 0.001 to 100. Published: at most 4.
        #[schemars(range(min = 1e-3, max = 100.0))]
        power: f64,
    },
    /// Share 1 - |2 p - 1|: 0 at both ends, 1 in the middle.
    LambdaShape,
    /// Share |2 p - 1|: 1 at both ends, 0 in the middle.
    VShape,
    /// Density of the beta distribution at p. Its mean over progress is 1, so the share may exceed 1. With a > 1 and
    /// b > 1 it is 0 at both ends.
    BetaDensity {
        /// First parameter, 1 to 100. A larger value moves the share toward the data.
        #[schemars(range(min = 1.0, max = 100.0))]
        a: f64,
        /// Second parameter, 1 to 100. A larger value moves the share toward the noise.
        #[schemars(range(min = 1.0, max = 100.0))]
        b: f64,
    },
    /// Share 1 if from <= p <= to, otherwise 0. Steps outside are conditional, or unconditional with the form
    /// `from_unconditional`, and need one pass.
    Interval {
        /// Progress at which guidance starts, in [0, 1].
        #[schemars(range(min = 0.0, max = 1.0))]
        from: f64,
        /// Progress at which guidance ends, in [0, 1].
        #[schemars(range(min = 0.0, max = 1.0))]
        to: f64,
    },
}

/// The scale at share `f`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleForm {
    /// `1 + (scale - 1) f`: a share of 0 is the conditional prediction.
    #[default]
    FromConditional,
    /// `scale f`: a share of 0 is the unconditional prediction.
    FromUnconditional,
}

impl ScheduleForm {
    /// Returns the scale at share `share`.
    pub fn scale(self, scale: f64, share: f64) -> f64 {
        match self {
            Self::FromConditional => 1.0 + (scale - 1.0) * share,
            Self::FromUnconditional => scale * share,
        }
    }
}

impl Schedule {
    /// Returns the share at progress `p`: in [0, 1], except for [`Schedule::BetaDensity`], which has no upper bound.
    pub fn at(self, p: f64) -> f64 {
        let cosine = |p: f64| 0.5 * (1.0 - (PI * p).cos());
        match self {
            Self::Constant => 1.0,
            Self::Linear => p,
            Self::InverseLinear => 1.0 - p,
            Self::ClampLinear { floor } => p.max(floor),
            Self::Power { exponent } => p.powf(exponent),
            Self::Cosine => cosine(p),
            Self::Sine => 1.0 - cosine(p),
            Self::PowerCosine { power } => cosine(p.powf(power)),
            Self::LambdaShape => 1.0 - (2.0 * p - 1.0).abs(),
            Self::VShape => (2.0 * p - 1.0).abs(),
            Self::BetaDensity { a, b } => {
                let beta = ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b);
                p.powf(a - 1.0) * (1.0 - p).powf(b - 1.0) * (-beta).exp()
            }
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

/// Computes the logarithm of the gamma function at `x` > 0.
///
/// `log Gamma(x) = log Gamma(x + n) - log(x (x + 1) .. (x + n - 1))`, with the Stirling series at `x + n >= 15`, whose
/// first omitted term is below 1e-12 there.
fn ln_gamma(mut x: f64) -> f64 {
    let mut factors = 0.0;
    while x < 15.0 {
        factors += x.ln();
        x += 1.0;
    }
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3)) + 1.0 / (1260.0 * x.powi(5)) - 1.0 / (1680.0 * x.powi(7));
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * PI).ln() + series - factors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        for (schedule, expected) in [
            (Schedule::Constant, [1.0, 1.0, 1.0]),
            (Schedule::Linear, [0.0, 0.25, 1.0]),
            (Schedule::InverseLinear, [1.0, 0.75, 0.0]),
            (Schedule::ClampLinear { floor: 0.5 }, [0.5, 0.5, 1.0]),
            (Schedule::Sine, [1.0, (1.0 + 0.5_f64.sqrt()) / 2.0, 0.0]),
            (Schedule::LambdaShape, [0.0, 0.5, 0.0]),
            (Schedule::VShape, [1.0, 0.5, 1.0]),
            // The density 6 p (1 - p), the density 2 p, and the uniform one.
            (Schedule::BetaDensity { a: 2.0, b: 2.0 }, [0.0, 1.125, 0.0]),
            (Schedule::BetaDensity { a: 2.0, b: 1.0 }, [0.0, 0.5, 2.0]),
            (Schedule::BetaDensity { a: 1.0, b: 1.0 }, [1.0, 1.0, 1.0]),
            (Schedule::Power { exponent: 0.0 }, [1.0, 1.0, 1.0]),
            (Schedule::Power { exponent: 1.5 }, [0.0, 0.125, 1.0]),
            (Schedule::Cosine, [0.0, (1.0 - 0.5_f64.sqrt()) / 2.0, 1.0]),
            (Schedule::PowerCosine { power: 0.5 }, [0.0, 0.5, 1.0]),
            (Schedule::Interval { from: 0.2, to: 0.3 }, [0.0, 1.0, 0.0]),
        ] {
            let got = [0.0, 0.25, 1.0].map(|p| schedule.at(p));
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-11), "{schedule:?}: {got:?}");
        }
    }

    #[test]
    fn published_schedules_at_scale_2_w_have_mean_w() {
        let steps = 1_000;
        for schedule in [
            Schedule::Linear,
            Schedule::InverseLinear,
            Schedule::Cosine,
            Schedule::Sine,
            Schedule::LambdaShape,
            Schedule::VShape,
        ] {
            // Midpoints, at which sums of these symmetric curves are exact.
            let scale = |i: usize| {
                ScheduleForm::FromUnconditional.scale(2.0 * 3.0, schedule.at((i as f64 + 0.5) / steps as f64))
            };
            let mean = (0..steps).map(scale).sum::<f64>() / steps as f64;
            assert!((mean - 3.0).abs() < 1e-9, "{schedule:?}: {mean}");
        }
    }

    #[test]
    fn forms_differ_at_scale_one_and_agree_at_share_one() {
        let [cond, uncond] = [ScheduleForm::FromConditional, ScheduleForm::FromUnconditional];
        assert_eq!([cond.scale(1.0, 0.25), uncond.scale(1.0, 0.25)], [1.0, 0.25]);
        assert_eq!([cond.scale(3.0, 0.25), uncond.scale(3.0, 0.25)], [1.5, 0.75]);
        assert_eq!([cond.scale(3.0, 1.0), uncond.scale(3.0, 1.0)], [3.0, 3.0]);
    }

    #[test]
    fn ln_gamma_is_the_logarithm_of_the_factorial() {
        let mut factorial = 1.0_f64;
        for n in 1..=20 {
            assert!((ln_gamma(f64::from(n)) - factorial.ln()).abs() < 1e-11, "{n}");
            factorial *= f64::from(n);
        }
        assert!((ln_gamma(0.5) - 0.5 * PI.ln()).abs() < 1e-11);
    }

    #[test]
    fn an_interval_that_ends_before_it_starts_is_refused() {
        assert_eq!(Schedule::Interval { from: 0.5, to: 0.4 }.check().len(), 1);
        assert!(Schedule::Interval { from: 0.5, to: 0.5 }.check().is_empty());
    }
}

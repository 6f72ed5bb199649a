//! Euler's method on the flow.
//!
//!   x' = x_t + (t' - t) velocity(x_t, t)
//!
//! Source: arXiv:2210.02747 sec. 5; time shift: arXiv:2403.03206 eq. 23.

use crate::flow::{FlowSpacing, needs_path, velocity};
use crate::zero_steps;
use framework::guidance::Denoiser;
use framework::prelude::*;
use framework::process::Latent;
use framework::sampler::{NoiseSource, Observer, Progress, Sampler};

/// First order, deterministic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Euler {
    /// Steps.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Moves times toward the noise (above 1) or the data (below); 1 = even.
    #[serde(default = "one")]
    #[schemars(range(min = 0.01, max = 100.0))]
    pub shift: f64,
    /// How times are spread before they are moved.
    #[serde(default)]
    pub spacing: FlowSpacing,
}

fn one() -> f64 {
    1.0
}

framework::register!(sampler "euler" => Euler, "arXiv:2210.02747");

impl Sampler for Euler {
    fn check(&self) -> Vec<Problem> {
        zero_steps(self.steps)
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        needs_path(process, "euler")
    }

    fn is_stochastic(&self) -> bool {
        false
    }

    fn serves(&self, family: Family) -> bool {
        family == Family::Continuous
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps
    }

    fn sample(&self, model: &mut Denoiser<'_>, noise: &mut dyn NoiseSource, observer: &mut dyn Observer) -> Latent {
        let path = model.process().path().expect("the check phase refuses other families");
        let times = self.spacing.times(self.steps, path.interval(), self.shift);
        let mut x_t = noise.normal(0);
        for (k, pair) in times.windows(2).enumerate() {
            x_t = x_t.clone() + velocity(model, &x_t, pair[0]) * (pair[1] - pair[0]);
            observer.step(&Progress { step: k + 1, steps: self.steps, t: pair[0], state: Some(&x_t) });
        }
        Latent::Values(x_t)
    }
}

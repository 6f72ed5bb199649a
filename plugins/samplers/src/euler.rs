//! Euler's method for flows.
//!
//!   x' = x_t + (t' - t) velocity(x_t, t)
//!
//! Source: arXiv:2210.02747 sec. 5; time shift: arXiv:2403.03206 eq. 23.

use crate::flow::{FlowSpacing, needs_path, velocity};
use crate::zero_steps;
use framework::prelude::*;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};

/// Euler's method: first order, deterministic, one evaluation per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["steps"]))]
pub struct Euler {
    /// Number of steps.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Time shift. Above 1 moves the times toward noise, below 1 toward data; 1 = no shift.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub shift: f64,
    /// Spacing of the times before the shift.
    pub spacing: FlowSpacing,
}

impl Default for Euler {
    fn default() -> Self {
        Self { steps: 0, shift: 1.0, spacing: FlowSpacing::default() }
    }
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

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps
    }
}

impl ContinuousSampler for Euler {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let times = self.spacing.times(self.steps, path.interval(), self.shift);
        let mut x_t = noise.normal(0);
        for (k, pair) in times.windows(2).enumerate() {
            x_t = x_t.clone() + velocity(model, path, &x_t, pair[0]) * (pair[1] - pair[0]);
            observer.step(&SamplerStep { step: k + 1, steps: self.steps, t: pair[0], state: Some(&x_t) });
        }
        x_t
    }
}

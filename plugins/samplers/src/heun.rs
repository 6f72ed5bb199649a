//! Heun's method for flows: an Euler step, then a step along the mean of the velocities at both ends.
//!
//!   x^ = x_t + (t' - t) velocity(x_t, t),   x' = x_t + (t' - t) (velocity(x_t, t) + velocity(x^, t')) / 2
//!
//! Source: arXiv:2206.00364 algorithm 1 (without noise); time shift: arXiv:2403.03206 eq. 23.

use crate::flow::{FlowSpacing, needs_path, velocity};
use crate::zero_steps;
use framework::prelude::*;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};

/// Heun's method: second order, deterministic, two evaluations per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["steps"]))]
pub struct Heun {
    /// Number of steps.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Time shift. Above 1 moves the times toward noise, below 1 toward data; 1 = no shift.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub shift: f64,
    /// Spacing of the times before the shift.
    pub spacing: FlowSpacing,
}

impl Default for Heun {
    fn default() -> Self {
        Self { steps: 0, shift: 1.0, spacing: FlowSpacing::default() }
    }
}

framework::register!(sampler "heun" => Heun, "arXiv:2206.00364");

impl Sampler for Heun {
    fn check(&self) -> Vec<Problem> {
        zero_steps(self.steps)
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        needs_path(process, "heun")
    }

    fn is_stochastic(&self) -> bool {
        false
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        2 * self.steps
    }
}

impl ContinuousSampler for Heun {
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
            let step = pair[1] - pair[0];
            let here = velocity(model, path, &x_t, pair[0]);
            let there = velocity(model, path, &(x_t.clone() + here.clone() * step), pair[1]);
            x_t = x_t + (here + there) * (step / 2.0);
            observer.step(&SamplerStep { step: k + 1, steps: self.steps, t: pair[0], state: Some(&x_t) });
        }
        x_t
    }
}

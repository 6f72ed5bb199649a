//! Stochastic sampling of flows: the drift combines velocity and score, and every step adds noise of a chosen size.
//!
//!   x' = x_t + h (-velocity + D score) + sqrt(2 D h) noise,   h = t - t' > 0,   D = D(t)
//!
//! Any D >= 0 keeps the marginals of the flow. The last step has its own size and adds no noise.
//! Source: arXiv:2401.08740 eq. 7 and app. B; the forms of D and the last steps follow its released code.

use crate::flow::{needs_path, velocity, velocity_and_score};
use crate::zero_steps;
use framework::prelude::*;
use framework::process::path::Coefficients;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};
use std::f64::consts::PI;

/// Noise size `D(t)`; t = 0 is data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Diffusion {
    /// norm
    Constant,
    /// norm times the noise size of the forward process with these marginals
    Sbdm,
    /// norm sigma_t
    #[default]
    Sigma,
    /// norm t
    Linear,
    /// (1 - norm cos(pi t))^2 / 4
    Decreasing,
    /// norm sin^2(pi t)
    IncreasingDecreasing,
}

impl Diffusion {
    fn at(self, t: f64, c: Coefficients, norm: f64) -> f64 {
        match self {
            Self::Constant => norm,
            Self::Sbdm => norm * (c.sigma * c.d_sigma - c.d_alpha / c.alpha * c.sigma * c.sigma),
            Self::Sigma => norm * c.sigma,
            Self::Linear => norm * t,
            Self::Decreasing => 0.25 * (1.0 - norm * (PI * t).cos()).powi(2),
            Self::IncreasingDecreasing => norm * (PI * t).sin().powi(2),
        }
    }
}

/// Integration method of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Euler-Maruyama: one evaluation per step.
    #[default]
    Euler,
    /// Heun: adds the noise first, then follows the mean of the drifts at both ends. Two evaluations per step.
    Heun,
}

/// Last step of a trajectory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LastStep {
    /// A step along the drift, without noise.
    #[default]
    Mean,
    /// The expected clean latent, `(x_t + sigma^2 score) / alpha`.
    Tweedie,
    /// A step along the velocity.
    Euler,
    /// No separate last step: the noisy steps go all the way to data.
    None,
}

/// Stochastic sampling of flows with a chosen noise size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["steps"]))]
pub struct EulerMaruyama {
    /// Number of steps, including the last one.
    #[schemars(range(min = 2, max = 100_000))]
    pub steps: usize,
    /// Form of the noise size D(t).
    pub diffusion: Diffusion,
    /// `norm` in D(t), at least 0.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub diffusion_norm: f64,
    /// Integration method of a step.
    pub method: Method,
    /// Last step of the trajectory.
    pub last_step: LastStep,
    /// Size of the last step in time, 1e-6 to 0.5.
    #[schemars(range(min = 1e-6, max = 0.5))]
    pub last_step_size: f64,
}

impl Default for EulerMaruyama {
    fn default() -> Self {
        Self {
            steps: 0,
            diffusion: Diffusion::default(),
            diffusion_norm: 1.0,
            method: Method::default(),
            last_step: LastStep::default(),
            last_step_size: 0.04,
        }
    }
}

framework::register!(sampler "euler_maruyama" => EulerMaruyama, "arXiv:2401.08740");

impl EulerMaruyama {
    /// Returns the number of noisy steps.
    fn noisy(&self) -> usize {
        if self.last_step == LastStep::None { self.steps } else { self.steps - 1 }
    }

    /// Returns the drift toward data and the noise size D(t).
    fn drift(&self, model: &mut Denoiser<'_>, path: &dyn NoisePath, x_t: &Tensor<3>, t: f64) -> (Tensor<3>, f64) {
        let at = path.at(t);
        let size = self.diffusion.at(t, at, self.diffusion_norm);
        let (velocity, score) = velocity_and_score(model, path, x_t, t);
        (score * size - velocity, size)
    }
}

impl Sampler for EulerMaruyama {
    fn check(&self) -> Vec<Problem> {
        let mut problems = zero_steps(self.steps.saturating_sub(1));
        if self.last_step == LastStep::None && self.last_step_size != Self::default().last_step_size {
            let what = "`last_step_size` has no effect without a last step";
            problems
                .push(Problem::new("/last_step_size", what).and_at("/last_step").accepts("a last step, or no size"));
        }
        problems
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        let problems = needs_path(process, "euler_maruyama");
        let Some(path) = process.path() else { return problems };
        let [_, noise] = path.interval();
        if self.diffusion == Diffusion::Sbdm && path.at(noise).alpha == 0.0 {
            let what = "the noise size \"sbdm\" is infinite at pure noise of this process, where sampling starts";
            return vec![Problem::new("/diffusion", what).and_at("/backbone").accepts("another form, or a vp path")];
        }
        problems
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        let each = if self.method == Method::Heun { 2 } else { 1 };
        self.noisy() * each + (self.steps - self.noisy())
    }
}

impl ContinuousSampler for EulerMaruyama {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let [data, start] = path.interval();
        let end = if self.last_step == LastStep::None { data } else { self.last_step_size };
        let count = self.noisy();
        let h = (start - end) / count as f64;
        let mut x_t = noise.normal(0);
        for k in 0..count {
            let t = start - h * k as f64;
            let draw = noise.normal(k + 1);
            x_t = match self.method {
                Method::Euler => {
                    let (drift, size) = self.drift(model, path, &x_t, t);
                    x_t + drift * h + draw * (2.0 * size * h).sqrt()
                }
                Method::Heun => {
                    let size = self.diffusion.at(t, path.at(t), self.diffusion_norm);
                    let noisy = x_t + draw * (2.0 * size * h).sqrt();
                    let here = self.drift(model, path, &noisy, t).0;
                    let there = self.drift(model, path, &(noisy.clone() + here.clone() * h), t - h).0;
                    noisy + (here + there) * (h / 2.0)
                }
            };
            observer.step(&SamplerStep { step: k + 1, steps: self.steps, t, state: Some(&x_t) });
        }
        let at = path.at(end);
        x_t = match self.last_step {
            LastStep::None => return x_t,
            LastStep::Mean => x_t.clone() + self.drift(model, path, &x_t, end).0 * end,
            LastStep::Euler => x_t.clone() - velocity(model, path, &x_t, end) * end,
            LastStep::Tweedie => {
                let score = velocity_and_score(model, path, &x_t, end).1;
                (x_t + score * at.sigma.powi(2)) / at.alpha
            }
        };
        observer.step(&SamplerStep { step: self.steps, steps: self.steps, t: end, state: Some(&x_t) });
        x_t
    }
}

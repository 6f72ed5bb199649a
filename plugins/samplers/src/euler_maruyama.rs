//! The stochastic flow: drift by velocity and score, noise of a chosen size at every step.
//!
//!   x' = x_t + h (-velocity + D score) + sqrt(2 D h) noise,   h = t - t' > 0,   D = D(t)
//!
//! Any D >= 0 keeps the marginals of the flow. The last step, of its own size, adds no noise.
//! Source: arXiv:2401.08740 eq. 7 and app. B; its forms of D and last steps are those of its released code.

use crate::flow::{needs_path, velocity, velocity_and_score};
use crate::zero_steps;
use framework::guidance::Denoiser;
use framework::path::Coefficients;
use framework::prelude::*;
use framework::process::Latent;
use framework::sampler::{NoiseSource, Observer, Progress, Sampler};
use std::f64::consts::PI;

/// The size of the noise, `D(t)`; t = 0 is data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Diffusion {
    /// norm
    Constant,
    /// That of the forward process with these marginals, times norm.
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

/// How a step is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// One evaluation a step.
    #[default]
    Euler,
    /// Noise first, then the mean of the drifts at both ends: two evaluations a step.
    Heun,
}

/// What ends a trajectory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LastStep {
    /// The drift alone.
    #[default]
    Mean,
    /// The expected clean latent, `(x_t + sigma^2 score) / alpha`.
    Tweedie,
    /// Along the velocity.
    Euler,
    /// Nothing: the noisy steps go all the way.
    None,
}

/// Steps with noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EulerMaruyama {
    /// Steps, the last one included.
    #[schemars(range(min = 2, max = 100_000))]
    pub steps: usize,
    /// The form of the noise's size.
    #[serde(default)]
    pub diffusion: Diffusion,
    /// Scales it, at least 0.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub diffusion_norm: f64,
    /// How a step is taken.
    #[serde(default)]
    pub method: Method,
    /// What ends the trajectory.
    #[serde(default)]
    pub last_step: LastStep,
    /// Size of the last step in time, in (0, 1).
    #[serde(default = "published")]
    #[schemars(range(min = 1e-6, max = 0.5))]
    pub last_step_size: f64,
}

fn one() -> f64 {
    1.0
}
fn published() -> f64 {
    0.04
}

framework::register!(sampler "euler_maruyama" => EulerMaruyama, "arXiv:2401.08740");

impl EulerMaruyama {
    /// Noisy steps.
    fn noisy(&self) -> usize {
        if self.last_step == LastStep::None { self.steps } else { self.steps - 1 }
    }

    /// The drift toward the data and the size of the noise.
    fn drift(&self, model: &mut Denoiser<'_>, x_t: &Tensor<3>, t: f64) -> (Tensor<3>, f64) {
        let at = model.process().path().expect("the check phase refuses other families").at(t);
        let size = self.diffusion.at(t, at, self.diffusion_norm);
        let (velocity, score) = velocity_and_score(model, x_t, t);
        (score * size - velocity, size)
    }
}

impl Sampler for EulerMaruyama {
    fn check(&self) -> Vec<Problem> {
        let mut problems = zero_steps(self.steps.saturating_sub(1));
        if self.last_step == LastStep::None && self.last_step_size != published() {
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
            let what = "\"sbdm\" has no end at the noise of this process, where the network is asked first";
            return vec![Problem::new("/diffusion", what).and_at("/backbone").accepts("another form, or a vp path")];
        }
        problems
    }

    fn serves(&self, family: Family) -> bool {
        family == Family::Continuous
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        let each = if self.method == Method::Heun { 2 } else { 1 };
        self.noisy() * each + (self.steps - self.noisy())
    }

    fn sample(&self, model: &mut Denoiser<'_>, noise: &mut dyn NoiseSource, observer: &mut dyn Observer) -> Latent {
        let path = model.process().path().expect("the check phase refuses other families");
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
                    let (drift, size) = self.drift(model, &x_t, t);
                    x_t + drift * h + draw * (2.0 * size * h).sqrt()
                }
                Method::Heun => {
                    let size = self.diffusion.at(t, path.at(t), self.diffusion_norm);
                    let noisy = x_t + draw * (2.0 * size * h).sqrt();
                    let here = self.drift(model, &noisy, t).0;
                    let there = self.drift(model, &(noisy.clone() + here.clone() * h), t - h).0;
                    noisy + (here + there) * (h / 2.0)
                }
            };
            observer.step(&Progress { step: k + 1, steps: self.steps, t, state: Some(&x_t) });
        }
        let at = path.at(end);
        x_t = match self.last_step {
            LastStep::None => return Latent::Values(x_t),
            LastStep::Mean => x_t.clone() + self.drift(model, &x_t, end).0 * end,
            LastStep::Euler => x_t.clone() - velocity(model, &x_t, end) * end,
            LastStep::Tweedie => {
                let score = velocity_and_score(model, &x_t, end).1;
                (x_t + score * at.sigma.powi(2)) / at.alpha
            }
        };
        observer.step(&Progress { step: self.steps, steps: self.steps, t: end, state: Some(&x_t) });
        Latent::Values(x_t)
    }
}

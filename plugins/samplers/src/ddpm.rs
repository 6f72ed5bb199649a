//! DDPM: ancestral sampling on a table of training times, which may be respaced.
//!
//!   x' = c_x x + c_t x_t + exp(log_variance / 2) noise
//!   c_x = beta alpha' / sigma^2,   c_t = sigma'^2 sqrt(1 - beta) / sigma^2,   beta = 1 - alpha^2 / alpha'^2
//!
//! Source: arXiv:2006.11239 eq. 7; learned variance: arXiv:2102.09672 eq. 15.

use crate::grid::TableSpacing;
use crate::{evaluate, zero_steps};
use framework::prelude::*;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};

/// Variance of the noise that a step adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// Posterior variance. It is exact if the data is a single point.
    #[default]
    FixedSmall,
    /// beta. It is exact if the data is standard normal noise.
    FixedLarge,
    /// Interpolation between the two by the network's extra channels (`learn_sigma`).
    LearnedRange,
}

/// DDPM's ancestral sampling on a table of training times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ddpm {
    /// Number of steps, 1 to the number of training times.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Variance of the noise that a step adds.
    #[serde(default)]
    pub variance: Variance,
    /// Spacing of the training times.
    #[serde(default)]
    pub spacing: TableSpacing,
    /// Clips the predicted clean latent to [-1, 1]. For pixels only.
    #[serde(default)]
    pub clip: bool,
}

framework::register!(sampler "ddpm" => Ddpm, "arXiv:2006.11239", "arXiv:2102.09672");

impl Sampler for Ddpm {
    fn check(&self) -> Vec<Problem> {
        zero_steps(self.steps)
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        match process.path().and_then(NoisePath::table) {
            Some(table) => self.spacing.indices(self.steps, table).err().into_iter().collect(),
            None => vec![Problem::new("", "ddpm needs a process with a table of training times")],
        }
    }

    fn needs_variance(&self) -> Option<&'static str> {
        (self.variance == Variance::LearnedRange).then_some("/variance")
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps
    }
}

impl ContinuousSampler for Ddpm {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let table = path.table().expect("the check phase refuses processes without a table");
        let indices = self.spacing.indices(self.steps, table).expect("the check phase places the steps");
        let time = |index: usize| (index + 1) as f64 / table as f64;
        // alpha_bar and beta of the respaced chain, from noise to data.
        let alpha_bar: Vec<f64> = indices.iter().map(|i| path.at(time(*i)).alpha.powi(2)).collect();
        let before = |k: usize| alpha_bar.get(k + 1).copied().unwrap_or(1.0);
        let beta = |k: usize| 1.0 - alpha_bar[k] / before(k);
        let posterior = |k: usize| beta(k) * (1.0 - before(k)) / (1.0 - alpha_bar[k]);
        let last = indices.len() - 1;
        // The last posterior variance is 0. Use the logarithm of the previous step's variance instead, as published.
        let log_posterior = |k: usize| posterior(if k == last { last.saturating_sub(1) } else { k }).ln();
        let mut x_t = noise.normal(0);
        for (k, index) in indices.iter().enumerate() {
            let predicted = evaluate(model, &x_t, time(*index), path.at(time(*index)), self.clip);
            let (ab, ab_before, beta_k) = (alpha_bar[k], before(k), beta(k));
            let mean = predicted.x * (beta_k * ab_before.sqrt() / (1.0 - ab))
                + x_t * ((1.0 - ab_before) * (1.0 - beta_k).sqrt() / (1.0 - ab));
            x_t = if k == last {
                mean
            } else {
                let deviation = |log_variance: f64| (0.5 * log_variance).exp();
                let noise = noise.normal(k + 1);
                mean + match self.variance {
                    Variance::FixedSmall => noise * deviation(log_posterior(k)),
                    Variance::FixedLarge => noise * deviation(beta_k.ln()),
                    Variance::LearnedRange => {
                        let v = predicted.extra.expect("the check phase requires `learn_sigma`");
                        let share = (v + 1.0) * 0.5;
                        let log_variance = share * (beta_k.ln() - log_posterior(k)) + log_posterior(k);
                        noise * (log_variance * 0.5).exp()
                    }
                }
            };
            observer.step(&SamplerStep { step: k + 1, steps: indices.len(), t: time(*index), state: Some(&x_t) });
        }
        x_t
    }
}

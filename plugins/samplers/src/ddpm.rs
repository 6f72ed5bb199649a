//! DDPM: ancestral sampling on a (respaced) table.
//!
//!   x' = c_x x + c_t x_t + exp(log_variance / 2) noise
//!   c_x = beta alpha' / sigma^2,   c_t = sigma'^2 sqrt(1 - beta) / sigma^2,   beta = 1 - alpha^2 / alpha'^2
//!
//! Source: arXiv:2006.11239 eq. 7; learned variance: arXiv:2102.09672 eq. 15.

use crate::grid::TableSpacing;
use crate::{evaluate, zero_steps};
use framework::guidance::Denoiser;
use framework::prelude::*;
use framework::process::Latent;
use framework::sampler::{NoiseSource, Observer, Progress, Sampler};

/// The variance of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The posterior's: right if the data were one point.
    #[default]
    FixedSmall,
    /// beta: right if the data were noise.
    FixedLarge,
    /// Between the two, as the network's extra channels say (`learn_sigma`).
    LearnedRange,
}

/// Ancestral sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ddpm {
    /// Steps, 1 to the number of training times.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Variance of a step.
    #[serde(default)]
    pub variance: Variance,
    /// Which training times are visited.
    #[serde(default)]
    pub spacing: TableSpacing,
    /// Clip the predicted clean latent to [-1, 1]: for pixels.
    #[serde(default)]
    pub clip: bool,
}

framework::register!(sampler "ddpm" => Ddpm, "arXiv:2006.11239", "arXiv:2102.09672");

impl Sampler for Ddpm {
    fn check(&self) -> Vec<Problem> {
        zero_steps(self.steps)
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        match process.path().and_then(Path::table) {
            Some(table) => self.spacing.indices(self.steps, table).err().into_iter().collect(),
            None => vec![Problem::new("", "ddpm needs a process with a table of training times")],
        }
    }

    fn needs_variance(&self) -> Option<&'static str> {
        (self.variance == Variance::LearnedRange).then_some("/variance")
    }

    fn serves(&self, family: Family) -> bool {
        family == Family::Continuous
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps
    }

    fn sample(&self, model: &mut Denoiser<'_>, noise: &mut dyn NoiseSource, observer: &mut dyn Observer) -> Latent {
        let path = model.process().path().expect("the check phase refuses other families");
        let table = path.table().expect("the check phase refuses processes without a table");
        let indices = self.spacing.indices(self.steps, table).expect("the check phase places the steps");
        let time = |index: usize| (index + 1) as f64 / table as f64;
        // alpha_bar and beta of the respaced chain, from noise to data.
        let alpha_bar: Vec<f64> = indices.iter().map(|i| path.at(time(*i)).alpha.powi(2)).collect();
        let before = |k: usize| alpha_bar.get(k + 1).copied().unwrap_or(1.0);
        let beta = |k: usize| 1.0 - alpha_bar[k] / before(k);
        let posterior = |k: usize| beta(k) * (1.0 - before(k)) / (1.0 - alpha_bar[k]);
        let last = indices.len() - 1;
        // The last posterior variance is 0; its logarithm is taken from the step before it, as published.
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
                        let v = predicted.extra.expect("the check phase asks for `learn_sigma`");
                        let share = (v + 1.0) * 0.5;
                        let log_variance = share * (beta_k.ln() - log_posterior(k)) + log_posterior(k);
                        noise * (log_variance * 0.5).exp()
                    }
                }
            };
            observer.step(&Progress { step: k + 1, steps: indices.len(), t: time(*index), state: Some(&x_t) });
        }
        Latent::Values(x_t)
    }
}

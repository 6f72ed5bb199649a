//! DDIM: each step predicts the clean latent and adds the predicted noise of the next time.
//!
//!   x' = alpha' x + sqrt(sigma'^2 - s^2) eps + s noise,
//!   s  = eta sqrt(sigma'^2 / sigma^2) sqrt(1 - alpha^2 / alpha'^2)
//!
//! eta = 0 is deterministic, eta = 1 has the variance of DDPM. Source: arXiv:2010.02502 eq. 12 and 16.

use crate::grid::TableSpacing;
use crate::{evaluate, zero_steps};
use framework::prelude::*;
use framework::process::path::Coefficients;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};

/// DDIM on a table of training times, or on evenly spaced times of a flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ddim {
    /// Number of steps. With a table, at most the number of training times.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Share of DDPM's noise that each step adds, in [0, 1].
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub eta: f64,
    /// Spacing of the training times.
    #[serde(default)]
    pub spacing: TableSpacing,
    /// Ends the last step at the first training time instead of at clean data, as latent diffusion was published.
    #[serde(default)]
    pub end_at_first_time: bool,
    /// Clips the predicted clean latent to [-1, 1]. For pixels only.
    #[serde(default)]
    pub clip: bool,
}

framework::register!(sampler "ddim" => Ddim, "arXiv:2010.02502");

impl Ddim {
    /// Returns the times of the evaluations, from noise to data. The end of the last step is not included.
    fn times(&self, path: &dyn NoisePath) -> Vec<f64> {
        match path.table() {
            Some(table) => {
                let indices = self.spacing.indices(self.steps, table).expect("the check phase places the steps");
                indices.into_iter().map(|index| (index + 1) as f64 / table as f64).collect()
            }
            None => {
                let [_, noise] = path.interval();
                (0..self.steps).map(|k| noise * (self.steps - k) as f64 / self.steps as f64).collect()
            }
        }
    }
}

impl Sampler for Ddim {
    fn check(&self) -> Vec<Problem> {
        zero_steps(self.steps)
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        match process.path().map(NoisePath::table) {
            Some(Some(table)) => self.spacing.indices(self.steps, table).err().into_iter().collect(),
            Some(None) if self.spacing != TableSpacing::Uniform => {
                let what = "this spacing selects training times, but the process has no table of training times";
                vec![Problem::new("/spacing", what).accepts("\"uniform\"")]
            }
            Some(None) => Vec::new(),
            None => vec![Problem::new("", "ddim needs a process with a path from data to noise")],
        }
    }

    fn renoises(&self) -> bool {
        true
    }

    fn is_stochastic(&self) -> bool {
        self.eta > 0.0
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps
    }
}

impl ContinuousSampler for Ddim {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let times = self.times(path);
        let clean = Coefficients { alpha: 1.0, sigma: 0.0, d_alpha: 0.0, d_sigma: 0.0 };
        // A flow has no first training time. Use 1/1000, where published tables begin.
        let first = 1.0 / path.table().unwrap_or(1000) as f64;
        let end = if self.end_at_first_time { path.at(first) } else { clean };
        let mut x_t = noise.normal(0);
        for (k, t) in times.iter().enumerate() {
            let at = path.at(*t);
            let next = times.get(k + 1).map_or(end, |next| path.at(*next));
            let predicted = evaluate(model, &x_t, *t, at, self.clip);
            let variance = (next.sigma / at.sigma).powi(2) * (1.0 - (at.alpha / next.alpha).powi(2));
            let s = self.eta * variance.max(0.0).sqrt();
            x_t = predicted.x * next.alpha + predicted.eps * (next.sigma.powi(2) - s * s).max(0.0).sqrt();
            if s > 0.0 {
                x_t = x_t + noise.normal(k + 1) * s;
            }
            observer.step(&SamplerStep { step: k + 1, steps: times.len(), t: *t, state: Some(&x_t) });
        }
        x_t
    }
}

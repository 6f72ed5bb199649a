//! Pseudo linear multistep (PLMS): a DDIM step along a combination of the last four noise predictions.
//!
//!   eps' = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24,   x' = alpha' (x_t - sigma eps') / alpha + sigma' eps'
//!
//! The first step is taken twice. The second time it follows the mean of the noise predictions at its two ends.
//! Source: arXiv:2202.09778 eq. 12 and alg. 2, without the Runge-Kutta start, as in the code of latent diffusion.

use crate::grid::TableSpacing;
use crate::{evaluate, zero_steps};
use framework::prelude::*;
use framework::process::path::Coefficients;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};

/// PLMS on a table of training times. The number of evaluations is `steps + 1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pndm {
    /// Number of steps, 2 to the number of training times.
    #[schemars(range(min = 2, max = 100_000))]
    pub steps: usize,
    /// Spacing of the training times.
    #[serde(default)]
    pub spacing: TableSpacing,
    /// Ends the last step at the first training time instead of at clean data, as latent diffusion was published.
    #[serde(default)]
    pub end_at_first_time: bool,
}

framework::register!(sampler "pndm" => Pndm, "arXiv:2202.09778");

/// Weights of the known noise predictions, newest first. Entry n - 1 applies when n are known; divide by the sum.
const WEIGHTS: [&[f64]; 4] = [&[1.0], &[3.0, -1.0], &[23.0, -16.0, 5.0], &[55.0, -59.0, 37.0, -9.0]];

impl Sampler for Pndm {
    fn check(&self) -> Vec<Problem> {
        let mut problems = zero_steps(self.steps);
        if problems.is_empty() && self.steps < 2 {
            problems.push(Problem::new("/steps", "pndm needs at least two steps").accepts("2 or more"));
        }
        problems
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        match process.path().and_then(NoisePath::table) {
            Some(table) => self.spacing.indices(self.steps, table).err().into_iter().collect(),
            None => vec![Problem::new("", "pndm needs a process with a table of training times")],
        }
    }

    fn is_stochastic(&self) -> bool {
        false
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps + 1
    }
}

impl ContinuousSampler for Pndm {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let table = path.table().expect("the check phase refuses processes without a table");
        let indices = self.spacing.indices(self.steps, table).expect("the check phase places the steps");
        let times: Vec<f64> = indices.into_iter().map(|index| (index + 1) as f64 / table as f64).collect();
        let clean = Coefficients { alpha: 1.0, sigma: 0.0, d_alpha: 0.0, d_sigma: 0.0 };
        let end = if self.end_at_first_time { path.at(1.0 / table as f64) } else { clean };
        let at = |k: usize| times.get(k).map_or(end, |t| path.at(*t));
        let step = |x_t: Tensor<3>, eps: Tensor<3>, k: usize| {
            let (from, to) = (at(k), at(k + 1));
            let x = (x_t - eps.clone() * from.sigma) / from.alpha;
            x * to.alpha + eps * to.sigma
        };
        let total = times.len() + 1;
        let mut done = 0;
        let see = |model: &mut Denoiser<'_>, x_t: &Tensor<3>, k: usize| {
            let at = path.at(times[k]);
            evaluate(model, x_t, times[k], at, false).eps
        };
        let mut tell = |observer: &mut dyn Observer, k: usize, x_t: &Tensor<3>| {
            done += 1;
            observer.step(&SamplerStep { step: done, steps: total, t: times[k], state: Some(x_t) });
        };
        let start = noise.normal(0);
        let first = see(model, &start, 0);
        let guess = step(start.clone(), first.clone(), 0);
        tell(observer, 0, &guess);
        // Newest first. The noise prediction at the end of the first attempt is not kept.
        let mut past = vec![first.clone()];
        let mean = (see(model, &guess, 1) + first) / 2.0;
        let mut x_t = step(start, mean, 0);
        tell(observer, 0, &x_t);
        for k in 1..times.len() {
            past.insert(0, see(model, &x_t, k));
            past.truncate(WEIGHTS.len());
            let weights = WEIGHTS[past.len() - 1];
            let sum: f64 = weights.iter().sum();
            let terms = past.iter().zip(weights).map(|(eps, weight)| eps.clone() * (weight / sum));
            let eps = terms.reduce(|a, b| a + b).expect("`past` is not empty");
            x_t = step(x_t, eps, k);
            tell(observer, k, &x_t);
        }
        x_t
    }
}

//! The samplers of k-diffusion: steps in the sigma of unscaled data, called s here.
//! A method can change in its own file; only the table of sigmas and the list of methods are shared.
//!
//!   y = x_t / alpha_t,   s = sigma_t / alpha_t,   d y / d s = eps = (y - D) / s,   D = the predicted clean latent
//!
//! Every path from data to noise has this form, so each of these samplers works with every continuous network.
//! Source: arXiv:2206.00364 (Euler, Heun, churn, Karras' sigmas), arXiv:2206.00927 (dpm2), arXiv:2211.01095 (dpmpp),
//! and the released code of k-diffusion for the ancestral forms, lms and the other sigmas.
//!
//! Each method is one file; [`sigmas`] has the table of sigmas. A new method is a file, a variant of [`KMethod`] and an
//! arm of the loop here.

mod dpm2;
mod dpmpp2m;
mod dpmpp2s_ancestral;
mod euler;
mod heun;
mod lms;
mod network;
pub mod sigmas;

use crate::flow::needs_path;
use crate::zero_steps;
use framework::prelude::*;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};
use network::{Network, Step, ancestral};
use sigmas::Spacing;

/// Method of a step from one sigma to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KMethod {
    /// A step along the slope at its start.
    #[default]
    Euler,
    /// A step along the mean of the slopes at both ends.
    Heun,
    /// A step along the slope at the midpoint in log sigma.
    Dpm2,
    /// Linear multistep, order 4.
    Lms,
    /// Second order in the clean latent, with the previous step's prediction. Known as "DPM++ 2M".
    Dpmpp2m,
    /// An Euler step to a lower sigma, then fresh noise.
    EulerAncestral,
    /// A second-order step in the clean latent to a lower sigma, then fresh noise.
    Dpmpp2sAncestral,
}

/// Noise that Karras' stochastic sampler adds before a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(example = framework::serde_json::json!({ "amount": 10.0 }))]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["amount"]))]
pub struct Churn {
    /// Relative growth of sigma, summed over all steps, 0 to 10000. Each step adds at most sqrt(2) - 1.
    #[schemars(range(min = 0.0, max = 10_000.0))]
    pub amount: f64,
    /// Lowest sigma at which noise is added.
    #[schemars(range(min = 0.0))]
    pub from: f64,
    /// Highest sigma at which noise is added; null = no bound.
    #[schemars(range(min = 0.0))]
    pub to: Option<f64>,
    /// Factor on the added noise, 0 to 10.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Self { amount: 0.0, from: 0.0, to: None, noise: 1.0 }
    }
}

/// Samplers of k-diffusion, which step from sigma to sigma.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KDiffusion {
    /// Number of steps.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Method of a step.
    #[serde(default)]
    pub method: KMethod,
    /// Spacing of the sigmas.
    #[serde(default)]
    pub sigmas: Spacing,
    /// Lowest sigma before clean data, above 0; null = the sigma of the first training time, or of t = 0.001 without a
    /// table.
    #[serde(default)]
    #[schemars(range(min = 1e-9))]
    pub least: Option<f64>,
    /// Highest sigma, where sampling starts; null = the sigma of the last training time, or of t = 0.999 without a
    /// table.
    #[serde(default)]
    #[schemars(range(min = 1e-9))]
    pub greatest: Option<f64>,
    /// Noise added before each step of `euler`, `heun` and `dpm2`; null = none.
    #[serde(default)]
    pub churn: Option<Churn>,
    /// Rounds times to whole training times before they are passed to the network.
    #[serde(default)]
    pub quantize: bool,
}

framework::register!(sampler "k_diffusion" => KDiffusion, "arXiv:2206.00364", "arXiv:2206.00927", "arXiv:2211.01095");

impl KDiffusion {
    /// Returns the `steps + 1` sigmas from noise to data. The last one is 0.
    pub fn sigmas(&self, path: &dyn NoisePath) -> Vec<f64> {
        self.sigmas.sigmas(path, self.steps, [self.least, self.greatest])
    }

    /// Returns whether the method needs two evaluations in every step but the last.
    fn is_doubled(&self) -> bool {
        matches!(self.method, KMethod::Heun | KMethod::Dpm2 | KMethod::Dpmpp2sAncestral)
    }

    fn is_ancestral(&self) -> bool {
        matches!(self.method, KMethod::EulerAncestral | KMethod::Dpmpp2sAncestral)
    }
}

impl Sampler for KDiffusion {
    fn check(&self) -> Vec<Problem> {
        let mut problems = zero_steps(self.steps);
        if let (Some(least), Some(greatest)) = (self.least, self.greatest)
            && least >= greatest
        {
            let what = format!("`least` = {least} is not below `greatest` = {greatest}");
            problems.push(Problem::new("/least", what).and_at("/greatest").accepts("least < greatest"));
        }
        let takes_churn = matches!(self.method, KMethod::Euler | KMethod::Heun | KMethod::Dpm2);
        if self.churn.is_some() && !takes_churn {
            let what = "`churn` has no effect: this method adds no noise before a step";
            let problem = Problem::new("/churn", what).and_at("/method");
            problems.push(problem.accepts("`churn` with euler, heun or dpm2"));
        }
        let fixed = matches!(self.sigmas, Spacing::Vp(_) | Spacing::Table);
        if fixed && (self.least.is_some() || self.greatest.is_some()) {
            let at = if self.least.is_some() { "/least" } else { "/greatest" };
            let what = "`least` and `greatest` have no effect: the times of these sigmas fix both ends";
            problems.push(Problem::new(at, what).and_at("/sigmas").accepts("null, or sigmas with a range"));
        }
        problems
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        let mut problems = needs_path(process, "k_diffusion");
        let table = process.path().and_then(NoisePath::table);
        for (at, needs) in [("/sigmas", self.sigmas == Spacing::Table), ("/quantize", self.quantize)] {
            if problems.is_empty() && needs && table.is_none() {
                problems.push(Problem::new(at, "the process has no table of training times"));
            }
        }
        problems
    }

    fn renoises(&self) -> bool {
        !matches!(self.method, KMethod::Heun | KMethod::Dpm2 | KMethod::Lms)
    }

    fn is_stochastic(&self) -> bool {
        self.is_ancestral() || self.churn.is_some_and(|churn| churn.amount > 0.0)
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        if self.is_doubled() { 2 * self.steps - 1 } else { self.steps }
    }
}

impl ContinuousSampler for KDiffusion {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let sigmas = self.sigmas(path);
        let mut network = Network { model, path, quantize: self.quantize };
        let mut y = noise.normal(0) * sigmas[0];
        // History: slopes for `lms` (newest first), the previous clean latent for `dpmpp2m`.
        let (mut slopes, mut before) = (Vec::new(), None);
        for (k, pair) in sigmas.windows(2).enumerate() {
            let [mut from, to] = [pair[0], pair[1]];
            if let Some(churn) = self.churn
                && (churn.from..=churn.to.unwrap_or(f64::INFINITY)).contains(&from)
            {
                let grown = from * (1.0 + (churn.amount / self.steps as f64).min(2.0_f64.sqrt() - 1.0));
                if grown > from {
                    y = y + noise.normal(k + 1) * (churn.noise * (grown * grown - from * from).sqrt());
                }
                from = grown;
            }
            let seen = network.see(&y, from);
            let [down, up] = if self.is_ancestral() { ancestral(from, to) } else { [to, 0.0] };
            let step = Step { k, from, to: down, sigmas: &sigmas };
            y = match self.method {
                KMethod::Euler | KMethod::EulerAncestral => euler::step(y, seen, step),
                KMethod::Heun => heun::step(&mut network, y, seen, step),
                KMethod::Dpm2 => dpm2::step(&mut network, y, seen, step),
                KMethod::Lms => lms::step(y, seen, step, &mut slopes),
                KMethod::Dpmpp2m => dpmpp2m::step(y, seen, step, &mut before),
                KMethod::Dpmpp2sAncestral => dpmpp2s_ancestral::step(&mut network, y, seen, step),
            };
            if up > 0.0 {
                y = y + noise.normal(k + 1) * up;
            }
            let alpha = if to > 0.0 { network.place(to).1.alpha } else { 1.0 };
            let x_t = y.clone() * alpha;
            let t = network.place(from).0;
            observer.step(&SamplerStep { step: k + 1, steps: self.steps, t, state: Some(&x_t) });
        }
        y
    }
}

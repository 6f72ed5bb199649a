//! DPM-Solver++, multistep, orders 1 to 3, in data prediction.
//!
//!   x' = (sigma' / sigma) x - alpha' (e^-h - 1) (m_0 + D_1 / 2),   h = lambda' - lambda,   D_1 = (m_0 - m_1) h / h_0
//!
//! This is order 2 (2M). m_0 and m_1 are the clean latents predicted at this step and at the one before it. Order 3
//! adds the second difference. For Karras' sigmas, use `k_diffusion` with the method `dpmpp2m`.
//! Source: arXiv:2211.01095 algorithm 2 and app. B.

use crate::{evaluate, zero_steps};
use framework::prelude::*;
use framework::process::path::Coefficients;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{ContinuousSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};

/// Spacing of a trajectory's times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Spacing {
    /// Evenly spaced in t.
    #[default]
    Uniform,
    /// Evenly spaced in lambda = log(alpha / sigma).
    LogSnr,
    /// Evenly spaced in the square root of t.
    Quadratic,
    /// Evenly spaced over the training times and rounded to whole ones, with clean data at the end.
    Timesteps {
        /// Added to the training time passed to the network, 0 or 1. GFT's published DiT sampler uses 1.
        #[serde(default)]
        #[schemars(range(max = 1))]
        network_offset: u8,
    },
}

/// DPM-Solver++, multistep, in data prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["steps"]))]
pub struct DpmSolverPp {
    /// Number of steps, at least `order`.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Order of the solver, 1 to 3.
    #[schemars(range(min = 1, max = 3))]
    pub order: usize,
    /// Spacing of the times.
    pub spacing: Spacing,
    /// Lowers the order in the last steps if the trajectory has fewer than 10 steps.
    pub lower_order_final: bool,
    /// Adds one evaluation at the last time and returns its clean latent.
    pub denoise_to_zero: bool,
}

impl Default for DpmSolverPp {
    fn default() -> Self {
        Self { steps: 0, order: 2, spacing: Spacing::default(), lower_order_final: true, denoise_to_zero: false }
    }
}

framework::register!(sampler "dpm_solver_pp" => DpmSolverPp, "arXiv:2211.01095");

/// One point of a trajectory: its schedule, its lambda, and the time passed to the network.
#[derive(Clone, Copy)]
struct Point {
    at: Coefficients,
    lambda: f64,
    t: f64,
}

impl DpmSolverPp {
    /// Returns the `steps + 1` points from noise to data.
    fn points(&self, path: &dyn NoisePath) -> Vec<Point> {
        let n = self.steps;
        // Continuous paths have no first training time. End at 1/1000, where published tables begin. Start 1/1000 below
        // pure noise, where lambda may be infinite.
        let table = path.table().unwrap_or(1000) as f64;
        let (start, end) = (if path.table().is_some() { 1.0 } else { 1.0 - 1.0 / table }, 1.0 / table);
        let even = |from: f64, to: f64, i: usize| from + (to - from) * i as f64 / n as f64;
        let point = |t: f64| Point { at: path.at(t), lambda: path.lambda(t), t };
        match self.spacing {
            Spacing::Uniform => (0..=n).map(|i| point(even(start, end, i))).collect(),
            Spacing::Quadratic => (0..=n).map(|i| point(even(start.sqrt(), end.sqrt(), i).powi(2))).collect(),
            Spacing::LogSnr => {
                let (from, to) = (path.lambda(start), path.lambda(end));
                (0..=n).map(|i| point(path.t_of_lambda(even(from, to, i)))).collect()
            }
            Spacing::Timesteps { network_offset } => {
                let index = |i: usize| ((table - 1.0) * (n - i) as f64 / n as f64).round_ties_even();
                let clean = Coefficients { alpha: 1.0, sigma: 0.0, d_alpha: 0.0, d_sigma: 0.0 };
                (0..n)
                    .map(|i| {
                        let point = point((index(i) + 1.0) / table);
                        Point { t: (index(i) + 1.0 + f64::from(network_offset)) / table, ..point }
                    })
                    .chain([Point { at: clean, lambda: f64::INFINITY, t: 0.0 }])
                    .collect()
            }
        }
    }

    fn order_of_step(&self, step: usize) -> usize {
        let order = self.order.min(step + 1);
        if self.lower_order_final && self.steps < 10 { order.min(self.steps - step) } else { order }
    }
}

impl Sampler for DpmSolverPp {
    fn check(&self) -> Vec<Problem> {
        let mut problems = zero_steps(self.steps);
        if self.steps < self.order {
            let what = format!("{} steps cannot reach order {}", self.steps, self.order);
            problems.push(Problem::new("/order", what).and_at("/steps").accepts("order <= steps"));
        }
        if self.denoise_to_zero && matches!(self.spacing, Spacing::Timesteps { .. }) {
            problems.push(
                Problem::new(
                    "/denoise_to_zero",
                    "`denoise_to_zero` has no effect: the spacing `timesteps` already ends at clean data",
                )
                .and_at("/spacing"),
            );
        }
        problems
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        match (process.path().map(|path| path.table()), self.spacing) {
            (None, _) => vec![Problem::new("", "dpm_solver_pp needs a continuous process")],
            (Some(None), Spacing::Timesteps { .. }) => {
                vec![Problem::new("/spacing", "`timesteps` needs a process with a table of training times")]
            }
            (Some(Some(table)), Spacing::Timesteps { .. }) if self.steps > table - 1 => {
                let what = format!("{} steps do not fit into {table} training times", self.steps);
                vec![Problem::new("/steps", what).accepts(format!("1 to {}", table - 1))]
            }
            _ => Vec::new(),
        }
    }

    fn renoises(&self) -> bool {
        // No paper states the third order for two predictions.
        self.order <= 2
    }

    fn is_stochastic(&self) -> bool {
        false
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Continuous(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps + usize::from(self.denoise_to_zero)
    }
}

impl ContinuousSampler for DpmSolverPp {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let points = self.points(path);
        let steps = self.evaluations(model.shape());
        let mut x_t = noise.normal(0);
        // The last predicted clean latents with their lambda, newest first.
        let mut past: Vec<(Tensor<3>, f64)> = Vec::new();
        for k in 0..self.steps {
            let (from, to) = (points[k], points[k + 1]);
            let predicted = evaluate(model, &x_t, from.t, from.at, false);
            let m0 = predicted.x;
            let h = to.lambda - from.lambda;
            let decay = (-h).exp();
            // A plain rule gives m0 - e^-h m0. CFG++ uses its second prediction in the second term.
            let mut next = m0.clone() - predicted.x_of_eps.clone() * decay;
            // At clean data h is infinite, and the differences vanish relative to m0.
            let order = if h.is_finite() { self.order_of_step(k) } else { 1 };
            let phi1 = (-h).exp_m1();
            if order >= 2 {
                let r0 = (from.lambda - past[0].1) / h;
                let d10 = (m0.clone() - past[0].0.clone()) / r0;
                if order == 2 {
                    next = next - d10 * (0.5 * phi1);
                } else {
                    let r1 = (past[0].1 - past[1].1) / h;
                    let d11 = (past[0].0.clone() - past[1].0.clone()) / r1;
                    let bend = d10.clone() - d11;
                    let d1 = d10 + bend.clone() * (r0 / (r0 + r1));
                    let d2 = bend / (r0 + r1);
                    let phi2 = phi1 / h + 1.0;
                    let phi3 = phi2 / h - 0.5;
                    next = next + d1 * phi2 - d2 * phi3;
                }
            }
            x_t = next * to.at.alpha + x_t * (to.at.sigma / from.at.sigma);
            past.insert(0, (predicted.x_of_eps, from.lambda));
            past.truncate(2);
            observer.step(&SamplerStep { step: k + 1, steps, t: from.t, state: Some(&x_t) });
        }
        if self.denoise_to_zero {
            let end = points[self.steps];
            x_t = evaluate(model, &x_t, end.t, end.at, false).x;
            observer.step(&SamplerStep { step: steps, steps, t: end.t, state: Some(&x_t) });
        }
        x_t
    }
}

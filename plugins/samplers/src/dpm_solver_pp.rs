//! DPM-Solver++, multistep, orders 1 to 3, in data prediction.
//!
//!   x' = (sigma' / sigma) x - alpha' (e^-h - 1) (m_0 + D_1 / 2),   h = lambda' - lambda,   D_1 = (m_0 - m_1) h / h_0
//!
//! for order 2 (2M), with m_i the clean latents predicted now and before; order 3 adds the second difference.
//! Source: arXiv:2211.01095 algorithm 2 and app. B. On Karras' levels: `k_diffusion` with the method `dpmpp2m`.

use crate::{evaluate, zero_steps};
use framework::guidance::Denoiser;
use framework::path::Coefficients;
use framework::prelude::*;
use framework::process::Latent;
use framework::sampler::{NoiseSource, Observer, Progress, Sampler};

/// Where the times of a trajectory lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Spacing {
    /// Evenly in t.
    #[default]
    Uniform,
    /// Evenly in lambda = log(alpha / sigma).
    LogSnr,
    /// Evenly in the root of t.
    Quadratic,
    /// Evenly over the training times, rounded to whole ones, and clean data at the end.
    Timesteps {
        /// Added to the training time that the network is told; GFT's published DiT sampler: 1.
        #[serde(default)]
        #[schemars(range(max = 1))]
        network_offset: u8,
    },
}

fn two() -> usize {
    2
}
fn yes() -> bool {
    true
}

/// The multistep solver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DpmSolverPp {
    /// Steps, at least the order.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// Order, 1 to 3.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 3))]
    pub order: usize,
    /// Where the times lie.
    #[serde(default)]
    pub spacing: Spacing,
    /// Lower the order in the last steps of a trajectory of fewer than 10 steps.
    #[serde(default = "yes")]
    pub lower_order_final: bool,
    /// One more evaluation at the last time, whose clean latent is the result.
    #[serde(default)]
    pub denoise_to_zero: bool,
}

framework::register!(sampler "dpm_solver_pp" => DpmSolverPp, "arXiv:2211.01095");

/// One point of a trajectory: its schedule, lambda, and the time the network is told.
#[derive(Clone, Copy)]
struct Point {
    at: Coefficients,
    lambda: f64,
    t: f64,
}

impl DpmSolverPp {
    /// From noise to data, `steps + 1` points.
    fn points(&self, path: &dyn Path) -> Vec<Point> {
        let n = self.steps;
        // Continuous paths have no first training time: a thousandth, where published tables begin, and as far from pure
        // noise, where lambda may be infinite.
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
                    "`denoise_to_zero` has no effect: the spacing `timesteps` ends at clean data already",
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

    fn is_stochastic(&self) -> bool {
        false
    }

    fn serves(&self, family: Family) -> bool {
        family == Family::Continuous
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.steps + usize::from(self.denoise_to_zero)
    }

    fn sample(&self, model: &mut Denoiser<'_>, noise: &mut dyn NoiseSource, observer: &mut dyn Observer) -> Latent {
        let path = model.process().path().expect("the check phase refuses other families");
        let points = self.points(path);
        let steps = self.evaluations(model.shape());
        let mut x_t = noise.normal(0);
        // The latest predictions of the clean latent, newest first, with their lambda.
        let mut past: Vec<(Tensor<3>, f64)> = Vec::new();
        for k in 0..self.steps {
            let (from, to) = (points[k], points[k + 1]);
            let predicted = evaluate(model, &x_t, from.t, from.at, false);
            let m0 = predicted.x;
            let h = to.lambda - from.lambda;
            let decay = (-h).exp();
            // m0 - e^-h m0 of a plain rule; CFG++ renoises with its second prediction.
            let mut next = m0.clone() - predicted.x_of_eps.clone() * decay;
            // At clean data h is infinite and the differences vanish against m0.
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
            observer.step(&Progress { step: k + 1, steps, t: from.t, state: Some(&x_t) });
        }
        if self.denoise_to_zero {
            let end = points[self.steps];
            x_t = evaluate(model, &x_t, end.t, end.at, false).x;
            observer.step(&Progress { step: steps, steps, t: end.t, state: Some(&x_t) });
        }
        Latent::Values(x_t)
    }
}

//! The samplers of k-diffusion: steps in the noise level of data that are not scaled.
//!
//!   y = x_t / alpha_t,   s = sigma_t / alpha_t,   d y / d s = eps = (y - D) / s,   D = the predicted clean latent
//!
//! Any path from data to noise is one such curve, so any network is sampled by any of them.
//! Source: arXiv:2206.00364 (Euler, Heun, churn, Karras' levels), arXiv:2206.00927 (dpm2), arXiv:2211.01095 (dpmpp),
//! and the released code of k-diffusion for the ancestral forms, lms and the other levels.

use crate::flow::needs_path;
use crate::{evaluate, zero_steps};
use framework::guidance::Denoiser;
use framework::path::Coefficients;
use framework::prelude::*;
use framework::process::Latent;
use framework::sampler::{NoiseSource, Observer, Progress, Sampler};

/// How a step goes from one level to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KMethod {
    /// Along the slope.
    #[default]
    Euler,
    /// Along the mean of the slopes at both ends.
    Heun,
    /// Along the slope half-way, in the logarithm of the level.
    Dpm2,
    /// Linear multistep, order 4.
    Lms,
    /// Second order in the clean latent, from the step before: the popular "DPM++ 2M".
    Dpmpp2m,
    /// Euler to a lower level, then fresh noise.
    EulerAncestral,
    /// Second order in the clean latent within the step, to a lower level, then fresh noise.
    Dpmpp2sAncestral,
}

/// The levels s that are visited; the last step goes on to clean data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Levels {
    /// Evenly in s^(1 / rho).
    Karras {
        /// Published: 7.
        #[serde(default = "seven")]
        #[schemars(range(min = 0.1, max = 100.0))]
        rho: f64,
    },
    /// Evenly in log s.
    Exponential,
    /// As exponential, with a share of the way that is raised to rho.
    Polyexponential {
        /// 1 = exponential.
        #[serde(default = "one")]
        #[schemars(range(min = 0.1, max = 100.0))]
        rho: f64,
    },
    /// Evenly in the time of the variance-preserving diffusion, from 1 to 0.001.
    Vp {
        /// Slope of its noise rate.
        #[serde(default = "beta_d")]
        #[schemars(range(min = 0.001, max = 1000.0))]
        beta_d: f64,
        /// Its noise rate at the data.
        #[serde(default = "beta_min")]
        #[schemars(range(min = 0.0, max = 1000.0))]
        beta_min: f64,
    },
    /// Evenly over the training times of a table, both ends included.
    Table,
}

/// The noise that Karras' stochastic sampler adds before a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(example = framework::serde_json::json!({ "amount": 10.0 }))]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// How much over the whole trajectory, in units of the levels.
    #[schemars(range(min = 0.0, max = 10_000.0))]
    pub amount: f64,
    /// Lowest level at which it is added.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub from: f64,
    /// Highest level at which it is added; null = no bound.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub to: Option<f64>,
    /// Factor on the noise.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub noise: f64,
}

/// The family of samplers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KDiffusion {
    /// Steps.
    #[schemars(range(min = 1, max = 100_000))]
    pub steps: usize,
    /// How a step is made.
    #[serde(default)]
    pub method: KMethod,
    /// The levels visited.
    #[serde(default = "karras")]
    pub levels: Levels,
    /// Lowest level before clean data, > 0; null = that of the first training time, or of a thousandth of the time.
    #[serde(default)]
    #[schemars(range(min = 1e-9))]
    pub least: Option<f64>,
    /// Highest level, where sampling starts; null = that of the last training time, or of all but a thousandth.
    #[serde(default)]
    #[schemars(range(min = 1e-9))]
    pub greatest: Option<f64>,
    /// Noise added before each step, of `euler`, `heun` and `dpm2`; null = none.
    #[serde(default)]
    pub churn: Option<Churn>,
    /// Round times to whole training times before the network is told them.
    #[serde(default)]
    pub quantize: bool,
}

fn one() -> f64 {
    1.0
}
fn seven() -> f64 {
    7.0
}
fn beta_d() -> f64 {
    19.9
}
fn beta_min() -> f64 {
    0.1
}
fn karras() -> Levels {
    Levels::Karras { rho: seven() }
}

framework::register!(sampler "k_diffusion" => KDiffusion, "arXiv:2206.00364", "arXiv:2206.00927", "arXiv:2211.01095");

/// Order of `lms`.
const LMS_ORDER: usize = 4;
/// Distance from the ends of a path without a table.
const MARGIN: f64 = 1e-3;

impl KDiffusion {
    /// Lowest and highest level.
    fn range(&self, path: &dyn Path) -> [f64; 2] {
        let (first, last) = match path.table() {
            Some(table) => (1.0 / table as f64, 1.0),
            None => (MARGIN, 1.0 - MARGIN),
        };
        let level = |t: f64| (-path.lambda(t)).exp();
        [self.least.unwrap_or_else(|| level(first)), self.greatest.unwrap_or_else(|| level(last))]
    }

    /// The levels from noise to data, `steps + 1` of them; the last is 0.
    pub fn levels(&self, path: &dyn Path) -> Vec<f64> {
        let ([least, greatest], n) = (self.range(path), self.steps);
        // 0 at the noise, 1 at the data; a single step starts at the noise.
        let share = |k: usize| if n == 1 { 0.0 } else { k as f64 / (n - 1) as f64 };
        let level = |k: usize| match self.levels {
            Levels::Karras { rho } => {
                let root = |s: f64| s.powf(1.0 / rho);
                (root(greatest) + share(k) * (root(least) - root(greatest))).powf(rho)
            }
            Levels::Exponential => (greatest.ln() + share(k) * (least / greatest).ln()).exp(),
            Levels::Polyexponential { rho } => {
                ((1.0 - share(k)).powf(rho) * (greatest / least).ln() + least.ln()).exp()
            }
            Levels::Vp { beta_d, beta_min } => {
                let t = 1.0 + share(k) * (MARGIN - 1.0);
                (0.5 * beta_d * t * t + beta_min * t).exp_m1().sqrt()
            }
            Levels::Table => {
                let last = path.table().expect("the check phase refuses processes without a table") - 1;
                table_level(path, last as f64 * (1.0 - share(k)))
            }
        };
        (0..n).map(level).chain([0.0]).collect()
    }

    /// Whether the method makes two evaluations of every step but the last.
    fn is_doubled(&self) -> bool {
        matches!(self.method, KMethod::Heun | KMethod::Dpm2 | KMethod::Dpmpp2sAncestral)
    }

    fn is_ancestral(&self) -> bool {
        matches!(self.method, KMethod::EulerAncestral | KMethod::Dpmpp2sAncestral)
    }
}

/// The level at a place between training times: log s is linear there, as in the code of k-diffusion.
fn table_level(path: &dyn Path, index: f64) -> f64 {
    let table = path.table().expect("the check phase refuses processes without a table");
    let log = |i: usize| -path.lambda((i + 1) as f64 / table as f64);
    let low = (index.floor() as usize).min(table - 1);
    let (high, share) = ((low + 1).min(table - 1), index - low as f64);
    (log(low) * (1.0 - share) + log(high) * share).exp()
}

/// The trajectory: its sampler, the network, and what it has seen.
struct Steps<'a, 'b> {
    sampler: &'a KDiffusion,
    model: &'a mut Denoiser<'b>,
}

/// What the network says at a level: the clean latent, and the slope `d y / d s`.
struct Seen {
    clean: Tensor<3>,
    slope: Tensor<3>,
}

impl Steps<'_, '_> {
    /// The path's own time of a level, and its alpha.
    fn place(&self, level: f64) -> (f64, Coefficients) {
        let path = self.model.process().path().expect("the check phase refuses other families");
        let t = path.t_of_lambda(-level.ln());
        (t, path.at(t))
    }

    fn see(&mut self, y: &Tensor<3>, level: f64) -> Seen {
        let (t, at) = self.place(level);
        let table = self.model.process().path().and_then(Path::table).unwrap_or_default() as f64;
        let told = if self.sampler.quantize { (t * table).round().max(1.0) / table } else { t };
        let predicted = evaluate(self.model, &(y.clone() * at.alpha), told, at, false);
        Seen { clean: predicted.x, slope: predicted.eps }
    }
}

/// Where an ancestral step goes before it adds noise, and how much of it: `[down, up]`.
fn ancestral(from: f64, to: f64) -> [f64; 2] {
    let up = to.min((to.powi(2) * (from.powi(2) - to.powi(2)) / from.powi(2)).sqrt());
    [(to.powi(2) - up.powi(2)).max(0.0).sqrt(), up]
}

/// `y` from one level to another, where the clean latent stays what it is: exponential Euler.
fn toward(y: Tensor<3>, clean: Tensor<3>, from: f64, to: f64) -> Tensor<3> {
    y * (to / from) + clean * (1.0 - to / from)
}

/// The integral over `[from, to]` of the polynomial that is 1 at `levels[j]` and 0 at the others.
fn lagrange(levels: &[f64], j: usize, [from, to]: [f64; 2]) -> f64 {
    // Gauss-Legendre with four nodes: exact up to degree seven, and the polynomial has at most three.
    let (a, b) = ((3.0 / 7.0 - 2.0 / 7.0 * 1.2_f64.sqrt()).sqrt(), (3.0 / 7.0 + 2.0 / 7.0 * 1.2_f64.sqrt()).sqrt());
    let (inner, outer) = ((18.0 + 30.0_f64.sqrt()) / 36.0, (18.0 - 30.0_f64.sqrt()) / 36.0);
    let (half, middle) = ((to - from) / 2.0, (to + from) / 2.0);
    let value = |s: f64| -> f64 {
        let factor = |(k, level): (usize, &f64)| if k == j { 1.0 } else { (s - level) / (levels[j] - level) };
        levels.iter().enumerate().map(factor).product()
    };
    let nodes = [(-b, outer), (-a, inner), (a, inner), (b, outer)];
    nodes.into_iter().map(|(node, weight)| weight * value(middle + half * node)).sum::<f64>() * half
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
        let fixed = matches!(self.levels, Levels::Vp { .. } | Levels::Table);
        if fixed && (self.least.is_some() || self.greatest.is_some()) {
            let at = if self.least.is_some() { "/least" } else { "/greatest" };
            let what = "these levels begin and end where their times do";
            problems.push(Problem::new(at, what).and_at("/levels").accepts("null, or levels of a range"));
        }
        problems
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        let mut problems = needs_path(process, "k_diffusion");
        let table = process.path().and_then(Path::table);
        for (at, needs) in [("/levels", self.levels == Levels::Table), ("/quantize", self.quantize)] {
            if problems.is_empty() && needs && table.is_none() {
                problems.push(Problem::new(at, "the process has no table of training times"));
            }
        }
        problems
    }

    fn is_stochastic(&self) -> bool {
        self.is_ancestral() || self.churn.is_some_and(|churn| churn.amount > 0.0)
    }

    fn serves(&self, family: Family) -> bool {
        family == Family::Continuous
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        if self.is_doubled() { 2 * self.steps - 1 } else { self.steps }
    }

    fn sample(&self, model: &mut Denoiser<'_>, noise: &mut dyn NoiseSource, observer: &mut dyn Observer) -> Latent {
        let levels = self.levels(model.process().path().expect("the check phase refuses other families"));
        let mut steps = Steps { sampler: self, model };
        let mut y = noise.normal(0) * levels[0];
        // Newest first: slopes for lms, the clean latent for dpmpp_2m.
        let mut slopes: Vec<Tensor<3>> = Vec::new();
        let mut before: Option<Tensor<3>> = None;
        for (k, pair) in levels.windows(2).enumerate() {
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
            let seen = steps.see(&y, from);
            let [down, up] = if self.is_ancestral() { ancestral(from, to) } else { [to, 0.0] };
            y = match self.method {
                KMethod::Heun if to > 0.0 => {
                    let there = steps.see(&(y.clone() + seen.slope.clone() * (to - from)), to);
                    y + (seen.slope + there.slope) * ((to - from) / 2.0)
                }
                KMethod::Dpm2 if to > 0.0 => {
                    let middle = (from * to).sqrt();
                    let there = steps.see(&(y.clone() + seen.slope * (middle - from)), middle);
                    y + there.slope * (to - from)
                }
                KMethod::Lms => {
                    slopes.insert(0, seen.slope);
                    slopes.truncate(LMS_ORDER);
                    let known: Vec<f64> = (0..slopes.len()).map(|j| levels[k - j]).collect();
                    slopes
                        .iter()
                        .enumerate()
                        .fold(y, |y, (j, slope)| y + slope.clone() * lagrange(&known, j, [from, to]))
                }
                KMethod::Dpmpp2m => {
                    let clean = match before.take() {
                        Some(old) if to > 0.0 => {
                            let ratio = (levels[k - 1] / from).ln() / (from / to).ln();
                            seen.clean.clone() * (1.0 + 0.5 / ratio) - old * (0.5 / ratio)
                        }
                        _ => seen.clean.clone(),
                    };
                    before = Some(seen.clean);
                    toward(y, clean, from, to)
                }
                KMethod::Dpmpp2sAncestral if down > 0.0 => {
                    let middle = (from * down).sqrt();
                    let there = steps.see(&toward(y.clone(), seen.clean, from, middle), middle);
                    toward(y, there.clean, from, down)
                }
                _ => y + seen.slope * (down - from),
            };
            if up > 0.0 {
                y = y + noise.normal(k + 1) * up;
            }
            let (t, alpha) =
                if to > 0.0 { (steps.place(from).0, steps.place(to).1.alpha) } else { (steps.place(from).0, 1.0) };
            let x_t = y.clone() * alpha;
            observer.step(&Progress { step: k + 1, steps: self.steps, t, state: Some(&x_t) });
        }
        Latent::Values(y)
    }
}

//! The variance-preserving diffusion process of DDPM, extended to continuous time.
//!
//!   x_t = alpha_t x + sigma_t eps,   alpha_t^2 + sigma_t^2 = 1,   alpha_{t_i}^2 = prod_{j <= i} (1 - beta_j)
//!
//! `log alpha` is piecewise linear between the training times `t_i = (i + 1) / T`.
//!
//! Source: arXiv:2006.11239 eq. 4 (linear), arXiv:2102.09672 eq. 17 (cosine), arXiv:2206.00927 sec. 3
//! (interpolation).

use crate::error::{Problem, Problems};
use crate::process::learned_variance::{self, Step};
use crate::process::path::{Coefficients, NoisePath, Pair, Prediction, join};
use crate::process::{Example, Family, Input, Latent, Likelihood, Process, Progress, Target, mean_scored, score};
use crate::random::{Random, per_sample, tensor};
use burn::tensor::Tensor;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Noise schedule: the beta of each training time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Betas {
    /// Evenly spaced from 1e-4 to 0.02. The end points hold for 1000 steps and scale with 1000 / T.
    Linear,
    /// `alpha_bar(s) = cos^2((s + 0.008) / 1.008 pi / 2)`, with betas capped at 0.999.
    Cosine,
    /// Evenly spaced square roots from sqrt(0.00085) to sqrt(0.012), as in latent diffusion. The betas at the end
    /// points scale as in `linear`.
    ScaledLinear,
}

/// The quantity that the network of a variance-preserving process predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VpPrediction {
    /// The noise `eps`.
    Eps,
    /// `v = alpha_t eps - sigma_t x`.
    V,
    /// The clean latent `x`. A network narrower than its patches cannot represent their noise, so it cannot
    /// predict `eps` or `v`. It can predict `x`.
    /// Source: arXiv:2511.13720 sec. 3.
    X,
}

/// Settings of the variance-preserving process: noise schedule, number of training times, prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VpConfig {
    /// Noise schedule.
    pub betas: Betas,
    /// Number of training times T, 2 to 100000. Published models use 1000.
    #[schemars(range(min = 2, max = 100_000))]
    pub timesteps: usize,
    /// The quantity that the network predicts.
    pub prediction: VpPrediction,
    /// Rescales the schedule so that the last training time contains practically no signal: its signal-to-noise ratio
    /// is at most 2^-24. Requires the prediction "v" or "x", because noise alone does not determine the data.
    /// Source: arXiv:2305.08891 algorithm 1.
    pub zero_terminal_snr: bool,
    /// Also trains the variance channels of a `learn_sigma` network, with the variational bound of each step.
    pub variance_loss: bool,
}

impl Default for VpConfig {
    fn default() -> Self {
        Self {
            betas: Betas::Linear,
            timesteps: 1000,
            prediction: VpPrediction::Eps,
            zero_terminal_snr: false,
            variance_loss: false,
        }
    }
}

impl VpConfig {
    /// Computes the betas of the training times in f64, `[T]`.
    pub fn betas(&self) -> Vec<f64> {
        let n = self.timesteps;
        // The published end points hold for 1000 steps. Fewer steps need larger betas.
        let stretch = 1000.0 / n as f64;
        let even = |from: f64, to: f64| move |i: usize| from + (to - from) * i as f64 / (n - 1) as f64;
        match self.betas {
            Betas::Linear => (0..n).map(even(1e-4 * stretch, 0.02 * stretch)).map(|b| b.min(0.999)).collect(),
            Betas::ScaledLinear => (0..n)
                .map(even((0.00085 * stretch).sqrt(), (0.012 * stretch).sqrt()))
                .map(|b| (b * b).min(0.999))
                .collect(),
            Betas::Cosine => {
                let alpha_bar = |s: f64| ((s + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                (0..n)
                    .map(|i| (1.0 - alpha_bar((i + 1) as f64 / n as f64) / alpha_bar(i as f64 / n as f64)).min(0.999))
                    .collect()
            }
        }
    }

    /// Checks the settings among themselves. Pointers are relative to the entry.
    pub fn check(&self) -> Problems {
        if !self.zero_terminal_snr || self.prediction != VpPrediction::Eps {
            return Problems::new();
        }
        let what = "without signal at the last time, the predicted noise does not determine the data";
        let problem = Problem::new("/prediction", what).and_at("/zero_terminal_snr");
        vec![problem.accepts("\"prediction\": \"v\" or \"x\" with \"zero_terminal_snr\": true")]
    }

    /// Builds the process from these settings.
    pub fn process(&self) -> Vp {
        let mut log_alpha_bar = 0.0;
        let mut log_alpha: Vec<f64> = self
            .betas()
            .iter()
            .map(|beta| {
                log_alpha_bar += (1.0 - beta).ln();
                0.5 * log_alpha_bar
            })
            .collect();
        if self.zero_terminal_snr {
            log_alpha = without_terminal_signal(&log_alpha);
        }
        let prediction = match self.prediction {
            VpPrediction::Eps => Prediction::Eps,
            VpPrediction::V => Prediction::V,
            VpPrediction::X => Prediction::X,
        };
        Vp { log_alpha, prediction, variance_loss: self.variance_loss }
    }
}

/// Shifts and scales `alpha` so that the first time keeps its value and the last one is practically 0.
///
///   alpha'_i = (alpha_i - alpha_T) alpha_1 / (alpha_1 - alpha_T)
///
/// Source: arXiv:2305.08891 algorithm 1. The last value is 2^-12, or half of the value before it if that is smaller:
/// samplers read `log alpha`, which must be finite and decrease.
fn without_terminal_signal(log_alpha: &[f64]) -> Vec<f64> {
    let alpha: Vec<f64> = log_alpha.iter().map(|log| log.exp()).collect();
    let (first, last) = (alpha[0], alpha[alpha.len() - 1]);
    let mut moved: Vec<f64> = alpha.iter().map(|alpha| (alpha - last) * first / (first - last)).collect();
    let end = moved.len() - 1;
    moved[end] = 2_f64.powi(-12).min(0.5 * moved[end - 1]);
    moved.iter().map(|alpha| alpha.ln()).collect()
}

/// The variance-preserving process with its schedule computed, ready to corrupt latents and score
/// predictions.
#[derive(Clone, Debug)]
pub struct Vp {
    /// `log alpha` at `t_i = (i + 1) / T`.
    log_alpha: Vec<f64>,
    prediction: Prediction,
    variance_loss: bool,
}

impl Vp {
    /// Returns the time of table index `i`: `t = (i + 1) / T`. The index may be fractional.
    pub fn t_of_index(&self, i: f64) -> f64 {
        (i + 1.0) / self.log_alpha.len() as f64
    }

    /// Returns the table index of a time: `i = t T - 1`. Published networks read this index, which may be
    /// fractional.
    pub fn index_of_t(&self, t: f64) -> f64 {
        t * self.log_alpha.len() as f64 - 1.0
    }

    /// Returns the number of training times.
    pub fn times(&self) -> usize {
        self.log_alpha.len()
    }

    /// Returns the discrete step of the diffusion chain at the training time nearest to `t`.
    fn step_of(&self, t: f64) -> Step {
        let index = (self.index_of_t(t).round().max(0.0) as usize).min(self.log_alpha.len() - 1);
        let alpha = |i: usize| self.log_alpha[i].exp();
        let plain = |index: usize| Step {
            index,
            alpha: alpha(index),
            sigma: (-(2.0 * self.log_alpha[index]).exp_m1()).sqrt(),
            alpha_bar_before: if index == 0 { 1.0 } else { alpha(index - 1).powi(2) },
            log_posterior: 0.0,
        };
        // The first posterior variance is 0, so its logarithm is taken from the second time, as published.
        Step { log_posterior: plain(index.max(1)).posterior().ln(), ..plain(index) }
    }

    /// Returns `log alpha` at `t` and its derivative. It is piecewise linear between the training times and 0
    /// at t = 0.
    fn log_alpha_at(&self, t: f64) -> (f64, f64) {
        let n = self.log_alpha.len();
        let place = t * n as f64;
        // Rounding can move t T off its integer. A training time must still read its own table entry.
        let near = place.round();
        let place = if (place - near).abs() < 1e-9 * n as f64 { near } else { place };
        let upper = (place.ceil() as usize).clamp(1, n);
        let knot = |i: usize| if i == 0 { 0.0 } else { self.log_alpha[i - 1] };
        let slope = knot(upper) - knot(upper - 1);
        (knot(upper - 1) + slope * (place - (upper - 1) as f64), slope * n as f64)
    }
}

impl NoisePath for Vp {
    fn at(&self, t: f64) -> Coefficients {
        let (log_alpha, slope) = self.log_alpha_at(t);
        let alpha = log_alpha.exp();
        // `exp_m1` keeps sigma accurate where alpha is close to 1.
        let sigma = (-(2.0 * log_alpha).exp_m1()).max(0.0).sqrt();
        Coefficients { alpha, sigma, d_alpha: alpha * slope, d_sigma: -alpha * alpha * slope / sigma }
    }

    fn prediction(&self) -> Prediction {
        self.prediction
    }

    fn table(&self) -> Option<usize> {
        Some(self.log_alpha.len())
    }

    fn interval(&self) -> [f64; 2] {
        // Below the first training time the network is untrained, and the velocity is unbounded at t = 0.
        [1.0 / self.log_alpha.len() as f64, 1.0]
    }
}

impl Process for Vp {
    fn family(&self) -> Family {
        Family::Continuous
    }

    fn prediction(&self) -> Prediction {
        self.prediction
    }

    fn corrupt(&self, x: &Latent, random: &Random, step: u64) -> Example {
        let Latent::Values(x) = x else {
            panic!("a continuous process received tokens; the check phase refuses this pair")
        };
        let shape @ [batch, positions, channels] = x.dims();
        let mut stream = random.stream("t", 0, step);
        let t: Vec<f64> =
            (0..batch).map(|_| self.t_of_index(stream.random_range(0..self.log_alpha.len()) as f64)).collect();
        let noise = random.normal("eps", 0, step, batch * positions * channels);
        let noise: Vec<f64> = noise.into_iter().map(f64::from).collect();
        let eps = tensor(&noise, shape, x.dtype(), &x.device());
        self.example(x.clone(), eps, t)
    }

    fn loss(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let simple = score(prediction.clone(), example);
        if !self.variance_loss {
            return simple;
        }
        let (Input::Noisy { x_t, t } | Input::Masked { x_t, t, .. }, Target::Values(target)) =
            (&example.input, &example.target)
        else {
            panic!("a continuous process received tokens")
        };
        let channels = target.dims()[2];
        let steps: Vec<Step> = t.iter().map(|t| self.step_of(*t)).collect();
        let (predicted, extra) = (prediction.clone().narrow(2, 0, channels), prediction.narrow(2, channels, channels));
        let bound = learned_variance::bound(self.prediction, &steps, x_t.clone(), target.clone(), predicted, extra);
        simple + mean_scored(bound, example)
    }

    fn likelihood(&self) -> Likelihood {
        Likelihood::Bound
    }

    /// Computes minus half the squared error, summed over positions and channels. This is the bound of
    /// arXiv:2006.11239 eq. 12 with its weights set to one (eq. 14).
    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let Target::Values(target) = &example.target else { panic!("a continuous process received token targets") };
        let [_, positions, channels] = target.dims();
        score(prediction, example) * (-0.5 * (positions * channels) as f64)
    }

    fn path(&self) -> Option<&dyn NoisePath> {
        Some(self)
    }
}

impl Vp {
    /// Builds the example with the given noise and times. Shapes: `x`, `eps` `[B, position, channel]`; `t`
    /// `[B]`, or row-major `[B, position]` if each position has its own time.
    pub fn example(&self, x: Tensor<3>, eps: Tensor<3>, t: Vec<f64>) -> Example {
        let at: Vec<Coefficients> = t.iter().map(|t| self.at(*t)).collect();
        let alpha = per_sample(&at.iter().map(|c| c.alpha).collect::<Vec<_>>(), &x);
        let sigma = per_sample(&at.iter().map(|c| c.sigma).collect::<Vec<_>>(), &x);
        let x_t = x.clone() * alpha.clone() + eps.clone() * sigma.clone();
        let target = match self.prediction {
            Prediction::V => eps * alpha - x * sigma,
            kind => join(kind, Pair { x, eps }, at[0]),
        };
        Example {
            progress: Progress::PerSample(t.iter().map(|t| 1.0 - t).collect()),
            input: Input::Noisy { x_t, t },
            target: Target::Values(target),
            scored: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(betas: Betas, timesteps: usize) -> VpConfig {
        VpConfig { betas, timesteps, ..VpConfig::default() }
    }

    proptest! {
        #[test]
        fn schedule_is_monotone_and_variance_preserving(
            betas in prop_oneof![Just(Betas::Linear), Just(Betas::Cosine), Just(Betas::ScaledLinear)],
            timesteps in 20usize..1500, a in 0.0..1.0f64, b in 0.0..1.0f64,
        ) {
            let vp = config(betas, timesteps).process();
            let (low, high) = if a < b { (a, b) } else { (b, a) };
            let (at_low, at_high) = (vp.at(low), vp.at(high));
            prop_assert!(at_low.alpha >= at_high.alpha && at_low.sigma <= at_high.sigma);
            prop_assert!((at_low.alpha.powi(2) + at_low.sigma.powi(2) - 1.0).abs() < 1e-12);
        }

        #[test]
        fn t_of_lambda_inverts_lambda(t in 1e-4..1.0f64) {
            let vp = VpConfig::default().process();
            prop_assert!((vp.t_of_lambda(vp.lambda(t)) - t).abs() < 1e-9);
        }

        #[test]
        fn derivatives_are_slopes(i in 1usize..999, within in 0.2..0.8f64) {
            let vp = VpConfig::default().process();
            // Stay away from the knots, where log alpha has a corner.
            let t = (i as f64 + within) / 1000.0;
            let h = 1e-7;
            let (before, at, after) = (vp.at(t - h), vp.at(t), vp.at(t + h));
            prop_assert!(((after.alpha - before.alpha) / (2.0 * h) - at.d_alpha).abs() < 1e-5);
            prop_assert!(((after.sigma - before.sigma) / (2.0 * h) - at.d_sigma).abs() < 1e-5);
        }
    }

    #[test]
    fn end_points() {
        for betas in [Betas::Linear, Betas::Cosine, Betas::ScaledLinear] {
            let vp = config(betas, 1000).process();
            assert_eq!((vp.at(0.0).alpha, vp.at(0.0).sigma), (1.0, 0.0));
            assert!(vp.at(1.0).alpha < 0.1, "{betas:?} leaves signal at t = 1");
        }
    }

    #[test]
    fn zero_terminal_snr_keeps_the_first_time_and_ends_without_signal() {
        for (betas, timesteps) in
            [(Betas::Linear, 1000), (Betas::ScaledLinear, 1000), (Betas::Cosine, 1000), (Betas::Linear, 2)]
        {
            let plain = config(betas, timesteps).process();
            let zero = VpConfig { zero_terminal_snr: true, ..config(betas, timesteps) }.process();
            let at = |vp: &Vp, i: usize| vp.at((i + 1) as f64 / timesteps as f64).alpha;
            let (first, last) = (at(&plain, 0), at(&plain, timesteps - 1));
            for i in 0..timesteps - 1 {
                let expected = (at(&plain, i) - last) * first / (first - last);
                assert!((at(&zero, i) - expected).abs() < 1e-12, "{betas:?} {i}");
                assert!(at(&zero, i) > at(&zero, i + 1), "{betas:?} {i}");
            }
            // The table holds logarithms, so the value is rounded once more.
            let (end, most) = (zero.at(1.0), 2_f64.powi(-12) * (1.0 + 1e-12));
            assert!(end.alpha > 0.0 && end.alpha <= most && zero.lambda(1.0).is_finite(), "{betas:?}");
        }
        let wrong = VpConfig { zero_terminal_snr: true, ..VpConfig::default() };
        assert_eq!(wrong.check()[0].at, ["/prediction", "/zero_terminal_snr"]);
        assert!(VpConfig { prediction: VpPrediction::V, ..wrong }.check().is_empty());
    }

    #[test]
    fn linear_table_worked_by_hand() {
        // alpha_bar_0 = 1 - 1e-4; alpha_bar_1 = alpha_bar_0 (1 - (1e-4 + (0.02 - 1e-4) / 999)).
        let vp = VpConfig::default().process();
        let second = 1e-4 + (0.02 - 1e-4) / 999.0;
        assert!((vp.at(0.001).alpha.powi(2) - (1.0 - 1e-4)).abs() < 1e-15);
        assert!((vp.at(0.002).alpha.powi(2) - (1.0 - 1e-4) * (1.0 - second)).abs() < 1e-15);
        assert!((vp.index_of_t(vp.t_of_index(250.0)) - 250.0).abs() < 1e-9);
    }
}

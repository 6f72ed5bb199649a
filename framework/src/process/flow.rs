//! Flow processes along an interpolant between data and noise.
//!
//!   x_t = alpha_t x + sigma_t eps,   velocity = d x_t / d t = d_alpha_t x + d_sigma_t eps
//!
//!   linear: alpha = 1 - t, sigma = t      gvp: alpha = cos(pi t / 2), sigma = sin(pi t / 2)
//!   vp:     log alpha = -(b_1 - b_0) t^2 / 4 - b_0 t / 2, sigma^2 = 1 - alpha^2, b_0 = 0.1, b_1 = 20
//!
//! Source: arXiv:2401.08740 (SiT) sec. 2 and app. B, arXiv:2210.02747 (linear), arXiv:2011.13456 eq. 33 (vp).
//! These papers run from noise at 0 to data at 1: their time is 1 - t, and their velocity has the opposite
//! sign.

use crate::process::path::{Coefficients, NoisePath, Pair, Prediction, join};
use crate::process::{Example, Family, Input, Latent, Likelihood, Process, Progress, Target, score};
use crate::random::{Random, per_sample, tensor};
use burn::tensor::Tensor;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;

/// Curve `(alpha_t, sigma_t)` from data to noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// Straight line: `alpha = 1 - t`, `sigma = t`.
    #[default]
    Linear,
    /// Quarter circle: `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`.
    Gvp,
    /// Variance-preserving diffusion in continuous time.
    Vp,
}

/// The quantity that the network of a flow predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowPrediction {
    /// The velocity `d x_t / d t`.
    #[default]
    Velocity,
    /// The noise `eps`.
    Eps,
    /// The score `-eps / sigma_t`.
    Score,
}

/// Weight of the squared error of a noise or score prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// Weight 1 on the squared error of the noise.
    #[default]
    None,
    /// The weight at which the loss equals the squared error of the velocity.
    Velocity,
    /// The weight at which the loss bounds the likelihood.
    Likelihood,
}

/// Settings of a flow: its curve, the network's prediction, and the weight of its error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InterpolantConfig {
    /// The curve from data to noise.
    pub path: Curve,
    /// The quantity that the network predicts.
    pub prediction: FlowPrediction,
    /// Weight of the squared error. It applies to noise and score predictions only.
    pub weighting: Weighting,
}

impl InterpolantConfig {
    /// Builds the process from these settings.
    pub fn process(&self) -> Interpolant {
        Interpolant(self.clone())
    }
}

/// A flow process, ready to corrupt latents and score predictions.
#[derive(Clone, Debug)]
pub struct Interpolant(InterpolantConfig);

/// Published margin: noise and score predictions are trained and sampled this far from both ends of [0, 1].
const MARGIN: f64 = 1e-3;
/// Published margin: the vp curve is trained this far from the data.
const VP_MARGIN: f64 = 1e-5;

impl Interpolant {
    /// Returns the first and last training time.
    fn trained(&self) -> [f64; 2] {
        match (self.0.path, self.0.prediction) {
            (Curve::Vp, _) => [VP_MARGIN, 1.0],
            (_, FlowPrediction::Velocity) => [0.0, 1.0],
            _ => [MARGIN, 1.0 - MARGIN],
        }
    }

    /// Returns the weight of the squared error of a sample at time `t`.
    fn weight(&self, t: f64) -> f64 {
        let Coefficients { alpha, sigma, d_alpha, d_sigma } = self.at(t);
        // Half the squared diffusion coefficient of the forward process with these marginals.
        let diffusion = sigma * d_sigma - d_alpha / alpha * sigma * sigma;
        let of_noise = match self.0.weighting {
            Weighting::None => 1.0,
            Weighting::Velocity => (diffusion / sigma).powi(2),
            Weighting::Likelihood => diffusion / (sigma * sigma),
        };
        match self.0.prediction {
            FlowPrediction::Velocity => 1.0,
            FlowPrediction::Eps => of_noise,
            FlowPrediction::Score => of_noise * sigma * sigma,
        }
    }

    /// Builds the example with the given noise and times. Shapes: `x`, `eps` `[B, position, channel]`, `t`
    /// `[B]`.
    pub fn example(&self, x: Tensor<3>, eps: Tensor<3>, t: Vec<f64>) -> Example {
        let at: Vec<Coefficients> = t.iter().map(|t| self.at(*t)).collect();
        let each = |f: fn(&Coefficients) -> f64| per_sample(&at.iter().map(f).collect::<Vec<_>>(), &x);
        let x_t = x.clone() * each(|c| c.alpha) + eps.clone() * each(|c| c.sigma);
        let target = match NoisePath::prediction(self) {
            Prediction::Velocity => x.clone() * each(|c| c.d_alpha) + eps * each(|c| c.d_sigma),
            Prediction::Score => eps * each(|c| -1.0 / c.sigma),
            kind => join(kind, Pair { x: x.clone(), eps }, at[0]),
        };
        Example {
            progress: Progress::PerSample(t.iter().map(|t| 1.0 - t).collect()),
            input: Input::Noisy { x_t, t },
            target: Target::Values(target),
            scored: None,
        }
    }
}

impl NoisePath for Interpolant {
    fn at(&self, t: f64) -> Coefficients {
        match self.0.path {
            Curve::Linear => Coefficients { alpha: 1.0 - t, sigma: t, d_alpha: -1.0, d_sigma: 1.0 },
            Curve::Gvp => {
                let (sigma, alpha) = (t * FRAC_PI_2).sin_cos();
                Coefficients { alpha, sigma, d_alpha: -sigma * FRAC_PI_2, d_sigma: alpha * FRAC_PI_2 }
            }
            Curve::Vp => {
                let (low, high) = (0.1, 20.0);
                let log_alpha = -0.25 * t * t * (high - low) - 0.5 * t * low;
                let slope = -0.5 * t * (high - low) - 0.5 * low;
                let alpha = log_alpha.exp();
                let sigma = (-(2.0 * log_alpha).exp_m1()).sqrt();
                Coefficients { alpha, sigma, d_alpha: alpha * slope, d_sigma: -alpha * alpha * slope / sigma }
            }
        }
    }

    fn prediction(&self) -> Prediction {
        match self.0.prediction {
            FlowPrediction::Velocity => Prediction::Velocity,
            FlowPrediction::Eps => Prediction::Eps,
            FlowPrediction::Score => Prediction::Score,
        }
    }

    fn table(&self) -> Option<usize> {
        None
    }

    fn interval(&self) -> [f64; 2] {
        match (self.0.path, self.0.prediction) {
            (Curve::Vp, _) => [MARGIN, 1.0],
            (_, FlowPrediction::Velocity) => [0.0, 1.0],
            _ => [MARGIN, 1.0 - MARGIN],
        }
    }
}

impl Process for Interpolant {
    fn family(&self) -> Family {
        Family::Continuous
    }

    fn prediction(&self) -> Prediction {
        NoisePath::prediction(self)
    }

    fn corrupt(&self, x: &Latent, random: &Random, step: u64) -> Example {
        let Latent::Values(x) = x else { panic!("a flow received tokens; the check phase refuses this pair") };
        let shape @ [batch, positions, channels] = x.dims();
        let mut stream = random.stream("t", 0, step);
        let [first, last] = self.trained();
        let t: Vec<f64> = (0..batch).map(|_| first + (last - first) * stream.random::<f64>()).collect();
        let noise = random.normal("eps", 0, step, batch * positions * channels);
        let noise: Vec<f64> = noise.into_iter().map(f64::from).collect();
        self.example(x.clone(), tensor(&noise, shape, x.dtype(), &x.device()), t)
    }

    fn loss(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let plain = score(prediction, example);
        if self.0.prediction == FlowPrediction::Velocity {
            return plain;
        }
        let Input::Noisy { t, .. } = &example.input else { panic!("a flow received tokens") };
        let weights: Vec<f64> = t.iter().map(|t| self.weight(*t)).collect();
        let weights = per_sample(&weights, &plain);
        plain * weights
    }

    fn likelihood(&self) -> Likelihood {
        Likelihood::Bound
    }

    /// Computes minus half the loss, summed over positions and channels. This is a bound on the
    /// log-likelihood with its weights replaced by the training weights.
    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let Target::Values(target) = &example.target else { panic!("a flow received token targets") };
        let [_, positions, channels] = target.dims();
        self.loss(prediction, example) * (-0.5 * (positions * channels) as f64)
    }

    fn path(&self) -> Option<&dyn NoisePath> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CURVES: [Curve; 3] = [Curve::Linear, Curve::Gvp, Curve::Vp];

    fn flow(path: Curve) -> Interpolant {
        InterpolantConfig { path, ..InterpolantConfig::default() }.process()
    }

    proptest! {
        #[test]
        fn derivatives_are_slopes_and_schedules_are_monotone(t in 0.01..0.99_f64, which in 0usize..3) {
            let (flow, h) = (flow(CURVES[which]), 1e-6);
            let (before, at, after) = (flow.at(t - h), flow.at(t), flow.at(t + h));
            prop_assert!(((after.alpha - before.alpha) / (2.0 * h) - at.d_alpha).abs() < 1e-6);
            prop_assert!(((after.sigma - before.sigma) / (2.0 * h) - at.d_sigma).abs() < 1e-6);
            prop_assert!(after.alpha < before.alpha && after.sigma > before.sigma);
        }
    }

    #[test]
    fn end_points() {
        for curve in CURVES {
            let (data, noise) = (flow(curve).at(0.0), flow(curve).at(1.0));
            assert_eq!((data.alpha, data.sigma), (1.0, 0.0), "{curve:?}");
            assert!(noise.alpha < 0.01 && (noise.sigma - 1.0).abs() < 1e-4, "{curve:?}");
        }
    }
}

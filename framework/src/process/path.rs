//! The noise path `x_t = alpha_t x + sigma_t eps`: its coefficients, and conversions between prediction
//! types.
//!
//! Time: **0 = data, 1 = noise**.
//!
//! Source: arXiv:2303.08797 (interpolants), arXiv:2202.00512 (v), arXiv:2011.13456 (score).

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// The quantity that a network predicts. Guidance acts linearly on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise `eps`.
    Eps,
    /// `v = alpha_t eps - sigma_t x`.
    V,
    /// The clean latent `x`.
    X,
    /// The velocity `d x_t / d t = d_alpha_t x + d_sigma_t eps`.
    Velocity,
    /// The score `-eps / sigma_t`.
    Score,
    /// Logits over a vocabulary.
    Logits,
}

/// The coefficients of the noise path at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// `alpha_t`.
    pub alpha: f64,
    /// `sigma_t`.
    pub sigma: f64,
    /// Derivative of `alpha_t` with respect to `t`.
    pub d_alpha: f64,
    /// Derivative of `sigma_t` with respect to `t`.
    pub d_sigma: f64,
}

/// A noise schedule in continuous time.
pub trait NoisePath: Debug + Send + Sync {
    /// Returns `alpha_t`, `sigma_t` and their derivatives at `t` in [0, 1].
    fn at(&self, t: f64) -> Coefficients;

    /// Returns the quantity that the network predicts.
    fn prediction(&self) -> Prediction;

    /// Returns the number n of training times if the schedule is a table: `t_i = (i + 1) / n`, `i` in `0..n`.
    fn table(&self) -> Option<usize>;

    /// Returns the time interval in which a sampler may evaluate the network: the end at the data, then the
    /// end at the noise.
    fn interval(&self) -> [f64; 2] {
        [0.0, 1.0]
    }

    /// Computes half the log signal-to-noise ratio, `log(alpha_t / sigma_t)`. It decreases in `t`.
    fn lambda(&self, t: f64) -> f64 {
        let c = self.at(t);
        (c.alpha / c.sigma).ln()
    }

    /// Returns the time at which [`NoisePath::lambda`] has the given value.
    fn t_of_lambda(&self, lambda: f64) -> f64 {
        // `lambda` decreases strictly from +inf at t = 0, so bisection finds the time to the last bit of f64.
        let (mut low, mut high) = (0.0_f64, 1.0_f64);
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if self.lambda(middle) > lambda { low = middle } else { high = middle }
        }
        0.5 * (low + high)
    }
}

/// The clean latent and the noise. A prediction and `x_t` together determine both.
#[derive(Clone, Debug)]
pub struct Pair<const D: usize> {
    /// The clean latent.
    pub x: Tensor<D>,
    /// The noise.
    pub eps: Tensor<D>,
}

/// Computes `x` and `eps` from a prediction of the given kind at one time.
///
/// Solves `x_t = alpha x + sigma eps` together with the definition of the prediction.
///
/// # Panics
/// If `kind` is logits, which determine neither.
pub fn split<const D: usize>(kind: Prediction, value: Tensor<D>, x_t: Tensor<D>, c: Coefficients) -> Pair<D> {
    let Coefficients { alpha, sigma, d_alpha, d_sigma } = c;
    match kind {
        Prediction::Eps => Pair { x: (x_t - value.clone() * sigma) / alpha, eps: value },
        Prediction::X => Pair { eps: (x_t - value.clone() * alpha) / sigma, x: value },
        // alpha^2 + sigma^2 need not be 1, so this is the inverse of [[alpha, sigma], [-sigma, alpha]].
        Prediction::V => {
            let norm = alpha * alpha + sigma * sigma;
            Pair { x: (x_t.clone() * alpha - value.clone() * sigma) / norm, eps: (x_t * sigma + value * alpha) / norm }
        }
        // The inverse of [[alpha, sigma], [d_alpha, d_sigma]].
        Prediction::Velocity => {
            let determinant = alpha * d_sigma - sigma * d_alpha;
            Pair {
                x: (x_t.clone() * d_sigma - value.clone() * sigma) / determinant,
                eps: (value * alpha - x_t * d_alpha) / determinant,
            }
        }
        Prediction::Score => split(Prediction::Eps, value * -sigma, x_t, c),
        Prediction::Logits => panic!("logits do not predict a continuous latent"),
    }
}

/// Computes the prediction of the given kind from `x` and `eps`.
///
/// # Panics
/// If `kind` is logits.
pub fn join<const D: usize>(kind: Prediction, pair: Pair<D>, c: Coefficients) -> Tensor<D> {
    let Pair { x, eps } = pair;
    match kind {
        Prediction::Eps => eps,
        Prediction::X => x,
        Prediction::V => eps * c.alpha - x * c.sigma,
        Prediction::Velocity => x * c.d_alpha + eps * c.d_sigma,
        Prediction::Score => eps / -c.sigma,
        Prediction::Logits => panic!("logits do not predict a continuous latent"),
    }
}

/// Converts a prediction from one kind to another, at the same `x_t` and time.
pub fn convert<const D: usize>(
    from: Prediction,
    to: Prediction,
    value: Tensor<D>,
    x_t: Tensor<D>,
    c: Coefficients,
) -> Tensor<D> {
    if from == to { value } else { join(to, split(from, value, x_t, c), c) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::tensor;
    use burn::tensor::{DType, Device};
    use proptest::prelude::*;

    const KINDS: [Prediction; 5] =
        [Prediction::Eps, Prediction::V, Prediction::X, Prediction::Velocity, Prediction::Score];

    proptest! {
        #[test]
        fn conversions_round_trip(x in -3.0..3.0, eps in -3.0..3.0, angle in 0.05..1.5f64, stretch in 0.5..2.0f64) {
            // Any schedule with alpha, sigma > 0. It is variance preserving only if `stretch` is 1.
            let c = Coefficients {
                alpha: angle.cos() * stretch, sigma: angle.sin(), d_alpha: -angle.sin() * stretch, d_sigma: angle.cos(),
            };
            let at = |v: f64| tensor::<1>(&[v], [1], DType::F64, &Device::flex());
            let number = |t: Tensor<1>| t.into_scalar::<f64>();
            let x_t = at(c.alpha * x + c.sigma * eps);
            for from in KINDS {
                let value = join(from, Pair { x: at(x), eps: at(eps) }, c);
                let pair = split(from, value.clone(), x_t.clone(), c);
                prop_assert!((number(pair.x) - x).abs() < 1e-12 / c.alpha.min(c.sigma).powi(2));
                prop_assert!((number(pair.eps) - eps).abs() < 1e-12 / c.alpha.min(c.sigma).powi(2));
                for to in KINDS {
                    let there = convert(from, to, value.clone(), x_t.clone(), c);
                    let back = convert(to, from, there, x_t.clone(), c);
                    prop_assert!((number(back) - number(value.clone())).abs() < 1e-12 / c.alpha.min(c.sigma).powi(2));
                }
            }
        }
    }

    #[test]
    fn v_worked_by_hand() {
        // alpha 0.8, sigma 0.6, x 1, eps 2: v = 0.8 * 2 - 0.6 * 1.
        let c = Coefficients { alpha: 0.8, sigma: 0.6, d_alpha: 0.0, d_sigma: 0.0 };
        let at = |v: f64| tensor::<1>(&[v], [1], DType::F64, &Device::flex());
        let v = join(Prediction::V, Pair { x: at(1.0), eps: at(2.0) }, c).into_scalar::<f64>();
        assert!((v - 1.0).abs() < 1e-15);
    }
}

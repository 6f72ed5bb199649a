//! Trains the variance channels of a learned-range network with the variational bound of each step. The mean
//! is detached.
//!
//!   log v(x_t) = s log beta_t + (1 - s) log beta~_t,   s = (o + 1) / 2 of the network's extra channels o
//!   L_t = KL(q(x_{t-1} | x_t, x) | N(mu, v)),   L_0 = -log p(x | x_1) of 8-bit images; in bits per dimension
//!
//! Source: arXiv:2102.09672 eq. 15-16 (learned range, detached mean); arXiv:2006.11239 eq. 13 (decoder).

use crate::process::path::Prediction;
use crate::random::per_sample;
use burn::tensor::Tensor;
use std::f64::consts::{LN_2, PI};

/// One step of the diffusion chain, as its variational bound needs it.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Index of the training time, from 0.
    pub index: usize,
    /// `alpha_t` at this time.
    pub alpha: f64,
    /// `sigma_t` at this time.
    pub sigma: f64,
    /// `alpha^2` at the previous time; 1 at index 0.
    pub alpha_bar_before: f64,
    /// Log of the posterior variance. Index 0 uses the value of index 1, because its own variance is 0.
    pub log_posterior: f64,
}

impl Step {
    fn alpha_bar(&self) -> f64 {
        self.alpha * self.alpha
    }

    /// Computes `beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}`.
    pub fn beta(&self) -> f64 {
        1.0 - self.alpha_bar() / self.alpha_bar_before
    }

    /// Computes the variance of `q(x_{t-1} | x_t, x)`.
    pub fn posterior(&self) -> f64 {
        self.beta() * (1.0 - self.alpha_bar_before) / (1.0 - self.alpha_bar())
    }
}

/// Computes the variational bound of each position in bits per dimension, `[B, position]`.
///
/// Shapes: `x_t`, `target`, `predicted` (eps, v or x, detached here) and the variance channels `extra` are
/// `[B, position, channel]`. `steps` has one entry per sample, or one per position (row-major).
///
/// # Panics
/// If `kind` is not eps, v or x.
pub fn bound(
    kind: Prediction,
    steps: &[Step],
    x_t: Tensor<3>,
    target: Tensor<3>,
    predicted: Tensor<3>,
    extra: Tensor<3>,
) -> Tensor<2> {
    let like = x_t.clone();
    let each = |f: &dyn Fn(&Step) -> f64| per_sample(&steps.iter().map(f).collect::<Vec<_>>(), &like);
    // At one x_t, the clean latent is linear in the prediction. A prediction error times a factor is the
    // error of x.
    let factors = |s: &Step| match kind {
        Prediction::Eps => [1.0 / s.alpha, -s.sigma / s.alpha],
        Prediction::V => [s.alpha, -s.sigma],
        Prediction::X => [0.0, 1.0],
        other => panic!("a variance-preserving network predicts eps, v or x, not {other:?}"),
    };
    let (of_state, of_prediction) = (|s: &Step| factors(s)[0], |s: &Step| factors(s)[1]);
    let apart = (target.clone() - predicted.detach()) * each(&of_prediction);
    let log_posterior = each(&|s| s.log_posterior);
    let log_variance = (extra + 1.0) * 0.5 * each(&|s| s.beta().ln() - s.log_posterior) + log_posterior.clone();
    let mean_apart = apart.clone() * each(&|s| s.beta() * s.alpha_bar_before.sqrt() / (1.0 - s.alpha_bar()));
    let divergence = (log_variance.clone() - log_posterior.clone() - 1.0
        + (log_posterior - log_variance.clone()).exp()
        + mean_apart.clone() * mean_apart * log_variance.clone().neg().exp())
        * 0.5;
    // At the first time, the mean is the predicted clean latent itself.
    let x = x_t * each(&of_state) + target * each(&of_prediction);
    let decoder = -discretized(x, apart, log_variance * 0.5);
    let first = each(&|s| f64::from(u8::from(s.index == 0)));
    let bits = (decoder * first.clone() + divergence * (first.neg() + 1.0)) / LN_2;
    let [batch, positions, _] = bits.dims();
    bits.mean_dim(2).reshape([batch, positions])
}

/// Computes the log-probability of 8-bit pixel values (bins of width 2 / 255) under a normal distribution
/// with mean `x - apart`.
fn discretized(x: Tensor<3>, apart: Tensor<3>, log_deviation: Tensor<3>) -> Tensor<3> {
    let inverse = log_deviation.neg().exp();
    // Tanh approximation of the normal CDF. Published likelihoods use it, so an exact CDF would not reproduce
    // them.
    let below = |at: Tensor<3>| {
        let cube = at.clone() * at.clone() * at.clone();
        ((at + cube * 0.044715) * (2.0 / PI).sqrt()).tanh() * 0.5 + 0.5
    };
    let upper = below(inverse.clone() * (apart.clone() + 1.0 / 255.0));
    let lower = below(inverse * (apart - 1.0 / 255.0));
    let log = |p: Tensor<3>| p.clamp_min(1e-12).log();
    let inside = log(upper.clone() - lower.clone());
    let darkest = log(upper);
    let lightest = log(lower.neg() + 1.0);
    inside.mask_where(x.clone().lower_elem(-0.999), darkest).mask_where(x.greater_elem(0.999), lightest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::path::{Coefficients, Pair, join, split};
    use crate::random::{Random, tensor};
    use burn::tensor::{DType, Device};

    #[test]
    fn one_clean_latent_has_one_bound_however_it_is_predicted() {
        let normal = |name: &str| {
            let values: Vec<f64> = Random::new(3).normal(name, 0, 0, 12).into_iter().map(f64::from).collect();
            tensor::<3>(&values, [1, 4, 3], DType::F64, &Device::flex()) * 0.3
        };
        let step = Step { index: 400, alpha: 0.6, sigma: 0.8, alpha_bar_before: 0.37, log_posterior: -4.0 };
        let at = Coefficients { alpha: step.alpha, sigma: step.sigma, d_alpha: 0.0, d_sigma: 0.0 };
        let (x, eps) = (normal("x"), normal("eps"));
        let x_t = x.clone() * at.alpha + eps.clone() * at.sigma;
        let guess = split(Prediction::X, normal("guess"), x_t.clone(), at);
        let bits = |kind| {
            let of = |pair: Pair<3>| join(kind, pair, at);
            let (target, predicted) = (of(Pair { x: x.clone(), eps: eps.clone() }), of(guess.clone()));
            bound(kind, &[step], x_t.clone(), target, predicted, normal("extra"))
                .into_data()
                .try_to_vec::<f64>()
                .unwrap()
        };
        let expected = bits(Prediction::Eps);
        for kind in [Prediction::V, Prediction::X] {
            assert!(bits(kind).iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{kind:?}");
        }
    }
}

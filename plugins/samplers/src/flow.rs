//! What the samplers of flows share: their times, and the velocity and score of a guided evaluation.

use crate::evaluate;
use framework::guidance::Denoiser;
use framework::path::{Pair, join};
use framework::prelude::*;

/// Times from noise to data: `steps` intervals, evenly spread over `[data, noise]`, then shifted.
///
/// `shift` s > 0 moves every time t to s t / (1 + (s - 1) t): more of them near the noise for s > 1.
/// Source: arXiv:2403.03206 eq. 23.
pub(crate) fn times(steps: usize, [data, noise]: [f64; 2], shift: f64) -> Vec<f64> {
    let even = |k: usize| noise + (data - noise) * k as f64 / steps as f64;
    (0..=steps).map(even).map(|t| shift * t / (1.0 + (shift - 1.0) * t)).collect()
}

/// Velocity `d x_t / d t` and score at `x_t`.
pub(crate) fn velocity_and_score(model: &mut Denoiser<'_>, x_t: &Tensor<3>, t: f64) -> (Tensor<3>, Tensor<3>) {
    let at = model.process().path().expect("the check phase refuses other families").at(t);
    let predicted = evaluate(model, x_t, t, at, false);
    let pair = Pair { x: predicted.x, eps: predicted.eps };
    let score = pair.eps.clone() / -at.sigma;
    (join(Prediction::Velocity, pair, at), score)
}

/// Velocity alone, where the score may not exist.
pub(crate) fn velocity(model: &mut Denoiser<'_>, x_t: &Tensor<3>, t: f64) -> Tensor<3> {
    let (process, channels) = (model.process(), model.channels());
    if process.prediction() != Prediction::Velocity {
        return velocity_and_score(model, x_t, t).0;
    }
    let input = Input::Noisy { x_t: x_t.clone(), t: vec![t; x_t.dims()[0]] };
    model.evaluate(&input, (1.0 - t).clamp(0.0, 1.0)).prediction.narrow(2, 0, channels)
}

/// Problems of a process without a continuous path.
pub(crate) fn needs_path(process: &dyn Process, name: &str) -> Vec<Problem> {
    if process.path().is_some() {
        return Vec::new();
    }
    vec![Problem::new("", format!("{name} needs a process with a path from data to noise"))]
}

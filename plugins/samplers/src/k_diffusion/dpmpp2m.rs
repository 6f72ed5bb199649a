//! Second order in the clean latent, with the previous step's prediction: DPM++ 2M. Source: arXiv:2211.01095, alg. 2.

use super::network::{Seen, Step, jumped, toward};
use framework::prelude::*;

/// Steps from `y` at `step.from`. `before` holds the clean latent of the previous step.
pub(super) fn step(y: Tensor<3>, seen: Seen, step: Step<'_>, before: &mut Option<Tensor<3>>) -> Tensor<3> {
    let clean = match before.take() {
        Some(old) if step.to > 0.0 => {
            let ratio = (step.sigmas[step.k - 1] / step.from).ln() / (step.from / step.to).ln();
            seen.clean.clone() * (1.0 + 0.5 / ratio) - old * (0.5 / ratio)
        }
        _ => seen.clean.clone(),
    };
    // CFG++ compares with the second prediction of the previous step, and starts from its noise.
    *before = Some(match &seen.jump {
        Some(jump) => seen.clean - jump.clone(),
        None => seen.clean,
    });
    toward(jumped(y, seen.jump), clean, step.from, step.to)
}

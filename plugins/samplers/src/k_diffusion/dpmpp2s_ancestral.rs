//! A second-order step in the clean latent to a lower sigma; fresh noise follows. Source: arXiv:2211.01095 and
//! k-diffusion's code.

use super::euler;
use super::network::{Network, Seen, Step, jumped, toward};
use framework::prelude::*;

/// Steps from `y` at `step.from` to `step.to`, the sigma below the next one. The last step, to clean data, is Euler's.
pub(super) fn step(network: &mut Network<'_, '_>, y: Tensor<3>, seen: Seen, step: Step<'_>) -> Tensor<3> {
    if step.to == 0.0 {
        return euler::step(y, seen, step);
    }
    let middle = (step.from * step.to).sqrt();
    let y = jumped(y, seen.jump);
    let there = network.see(&toward(y.clone(), seen.clean, step.from, middle), middle);
    toward(y, there.clean, step.from, step.to)
}

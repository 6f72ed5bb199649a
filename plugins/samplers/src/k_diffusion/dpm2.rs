//! A step along the slope at the midpoint in log sigma. Source: arXiv:2206.00927, alg. 1.

use super::euler;
use super::network::{Network, Seen, Step};
use framework::prelude::*;

/// Steps from `y` at `step.from`. The last step, to clean data, has no midpoint and is Euler's.
pub(super) fn step(network: &mut Network<'_, '_>, y: Tensor<3>, seen: Seen, step: Step<'_>) -> Tensor<3> {
    if step.to == 0.0 {
        return euler::step(y, seen, step);
    }
    let middle = (step.from * step.to).sqrt();
    let there = network.see(&(y.clone() + seen.slope * (middle - step.from)), middle);
    y + there.slope * (step.to - step.from)
}

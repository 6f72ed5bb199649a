//! A step along the mean of the slopes at both ends. Source: arXiv:2206.00364, alg. 1.

use super::euler;
use super::network::{Network, Seen, Step};
use framework::prelude::*;

/// Steps from `y` at `step.from`. The last step, to clean data, has no slope at its end and is Euler's.
pub(super) fn step(network: &mut Network<'_, '_>, y: Tensor<3>, seen: Seen, step: Step<'_>) -> Tensor<3> {
    if step.to == 0.0 {
        return euler::step(y, seen, step);
    }
    let length = step.to - step.from;
    let there = network.see(&(y.clone() + seen.slope.clone() * length), step.to);
    y + (seen.slope + there.slope) * (length / 2.0)
}

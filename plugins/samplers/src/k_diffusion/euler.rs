//! A step along the slope at its start. Source: arXiv:2206.00364, alg. 2.

use super::network::{Seen, Step, jumped};
use framework::prelude::*;

/// Steps from `y` at `step.from`.
pub(super) fn step(y: Tensor<3>, seen: Seen, step: Step<'_>) -> Tensor<3> {
    jumped(y, seen.jump) + seen.slope * (step.to - step.from)
}

//! Linear multistep of order 4: the integral of the polynomial through the last slopes. Source: k-diffusion's code.

use super::network::{Seen, Step};
use framework::prelude::*;

/// Number of slopes that a step uses.
const ORDER: usize = 4;

/// Steps from `y` at `step.from`. `slopes` holds those of earlier steps, newest first.
pub(super) fn step(y: Tensor<3>, seen: Seen, step: Step<'_>, slopes: &mut Vec<Tensor<3>>) -> Tensor<3> {
    slopes.insert(0, seen.slope);
    slopes.truncate(ORDER);
    let known: Vec<f64> = (0..slopes.len()).map(|j| step.sigmas[step.k - j]).collect();
    let ends = [step.from, step.to];
    slopes.iter().enumerate().fold(y, |y, (j, slope)| y + slope.clone() * lagrange(&known, j, ends))
}

/// Returns the integral over `[from, to]` of the polynomial that is 1 at `sigmas[j]` and 0 at the other sigmas.
fn lagrange(sigmas: &[f64], j: usize, [from, to]: [f64; 2]) -> f64 {
    // Gauss-Legendre with four nodes is exact up to degree 7. The polynomial has at most degree 3.
    let (a, b) = ((3.0 / 7.0 - 2.0 / 7.0 * 1.2_f64.sqrt()).sqrt(), (3.0 / 7.0 + 2.0 / 7.0 * 1.2_f64.sqrt()).sqrt());
    let (inner, outer) = ((18.0 + 30.0_f64.sqrt()) / 36.0, (18.0 - 30.0_f64.sqrt()) / 36.0);
    let (half, middle) = ((to - from) / 2.0, (to + from) / 2.0);
    let value = |s: f64| -> f64 {
        let factor = |(k, sigma): (usize, &f64)| if k == j { 1.0 } else { (s - sigma) / (sigmas[j] - sigma) };
        sigmas.iter().enumerate().map(factor).product()
    };
    let nodes = [(-b, outer), (-a, inner), (a, inner), (b, outer)];
    nodes.into_iter().map(|(node, weight)| weight * value(middle + half * node)).sum::<f64>() * half
}

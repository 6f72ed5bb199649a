//! Samplers: one file each, with the formula on top; `grid.rs` holds the times of the continuous ones, `categorical.rs`
//! the draw of the token ones.

#[cfg(test)]
use framework_dylib as _;

mod autoregressive;
pub mod categorical;
mod ddim;
mod ddpm;
mod dpm_solver_pp;
mod euler;
mod euler_maruyama;
mod flow;
pub mod grid;
mod heun;
mod k_diffusion;
mod masked;
mod next_level;
mod pndm;

pub use autoregressive::Autoregressive;
pub use ddim::Ddim;
pub use ddpm::{Ddpm, Variance};
pub use dpm_solver_pp::{DpmSolverPp, Spacing};
pub use euler::Euler;
pub use euler_maruyama::{Diffusion, EulerMaruyama, LastStep, Method};
pub use flow::FlowSpacing;
pub use heun::Heun;
pub use k_diffusion::{Churn, KDiffusion, KMethod, Levels};
pub use masked::{Masked, Order};
pub use next_level::NextLevel;
pub use pndm::Pndm;

use framework::guidance::Denoiser;
use framework::path::{Coefficients, split};
use framework::prelude::*;

/// One guided evaluation, as clean latent and noise.
pub(crate) struct Evaluated {
    /// The clean latent of the guided prediction.
    pub x: Tensor<3>,
    /// The noise of the guided prediction, or of the rule's second prediction where it gives one (CFG++).
    pub eps: Tensor<3>,
    /// The clean latent that belongs to [`Evaluated::eps`]; differs from `x` only for CFG++.
    pub x_of_eps: Tensor<3>,
    /// Channels beyond the latent's, in [-1, 1]: a learned variance.
    pub extra: Option<Tensor<3>>,
}

/// Evaluates at `x_t`, whose schedule is `at`; the network is told the time `t`.
pub(crate) fn evaluate(model: &mut Denoiser<'_>, x_t: &Tensor<3>, t: f64, at: Coefficients, clip: bool) -> Evaluated {
    let kind = model.process().prediction();
    let channels = model.channels();
    let input = Input::Noisy { x_t: x_t.clone(), t: vec![t; x_t.dims()[0]] };
    let guided = model.evaluate(&input, (1.0 - t).clamp(0.0, 1.0));
    let total = guided.prediction.dims()[2];
    let extra = (total > channels).then(|| guided.prediction.clone().narrow(2, channels, total - channels));
    let pair = |prediction: Tensor<3>| {
        let mut pair = split(kind, prediction.narrow(2, 0, channels), x_t.clone(), at);
        if clip {
            pair.x = pair.x.clamp(-1.0, 1.0);
            // The noise that belongs to the clipped latent.
            pair.eps = (x_t.clone() - pair.x.clone() * at.alpha) / at.sigma;
        }
        pair
    };
    let denoise = pair(guided.prediction);
    let renoise = guided.renoise.map(pair);
    let (x_of_eps, eps) = renoise.map_or((denoise.x.clone(), denoise.eps), |pair| (pair.x, pair.eps));
    Evaluated { x: denoise.x, eps, x_of_eps, extra }
}

/// Refuses step counts that a spacing cannot place, as located problems.
pub(crate) fn zero_steps(steps: usize) -> Vec<Problem> {
    if steps > 0 { Vec::new() } else { vec![Problem::new("/steps", "no steps").accepts("1 or more")] }
}

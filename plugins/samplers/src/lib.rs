//! Samplers. Each file holds one sampler and opens with its formula. `grid.rs` selects training times from a table,
//! `flow.rs` spreads the times of flows, and `categorical.rs` samples tokens from logits.

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
pub use flow::{Discrete, FlowSpacing};
pub use heun::Heun;
pub use k_diffusion::sigmas::{Karras, Polyexponential, Spacing as SigmaSpacing, VpRates};
pub use k_diffusion::{Churn, KDiffusion, KMethod};
pub use masked::{Masked, Order};
pub use next_level::NextLevel;
pub use pndm::Pndm;

use framework::prelude::*;
use framework::process::path::{Coefficients, split};
use framework::sampling::denoiser::Denoiser;

/// One guided evaluation, converted to clean latent and noise.
pub(crate) struct Evaluated {
    /// Clean latent of the guided prediction.
    pub x: Tensor<3>,
    /// Noise of the guided prediction. If the rule returns a second prediction (CFG++), the noise of that one.
    pub eps: Tensor<3>,
    /// Clean latent that belongs to [`Evaluated::eps`]. It differs from `x` only for CFG++.
    pub x_of_eps: Tensor<3>,
    /// Whether the rule returned a second prediction.
    pub renoised: bool,
    /// Output channels after the latent's own, in [-1, 1]: a learned variance.
    pub extra: Option<Tensor<3>>,
}

/// Evaluates the model at `x_t`. `at` holds the schedule of `x_t`; `t` is the time passed to the network, which may be
/// rounded or offset.
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
            // Recompute the noise so that it matches the clipped latent.
            pair.eps = (x_t.clone() - pair.x.clone() * at.alpha) / at.sigma;
        }
        pair
    };
    let denoise = pair(guided.prediction);
    let renoise = guided.renoise.map(pair);
    let renoised = renoise.is_some();
    let (x_of_eps, eps) = renoise.map_or((denoise.x.clone(), denoise.eps), |pair| (pair.x, pair.eps));
    Evaluated { x: denoise.x, eps, x_of_eps, renoised, extra }
}

/// Returns a problem at `/steps` if `steps` is 0.
pub(crate) fn zero_steps(steps: usize) -> Vec<Problem> {
    if steps > 0 { Vec::new() } else { vec![Problem::new("/steps", "`steps` is 0").accepts("1 or more")] }
}

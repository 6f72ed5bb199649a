//! The network as the methods see it: in the sigma of unscaled data.

use crate::evaluate;
use framework::prelude::*;
use framework::process::path::Coefficients;
use framework::sampling::denoiser::Denoiser;

/// The network of a trajectory.
pub(super) struct Network<'a, 'b> {
    /// Evaluates the guided network.
    pub model: &'a mut Denoiser<'b>,
    /// From data to noise.
    pub path: &'a dyn NoisePath,
    /// Rounds times to whole training times.
    pub quantize: bool,
}

/// Prediction at a sigma: the clean latent and the slope `d y / d s`.
pub(super) struct Seen {
    pub clean: Tensor<3>,
    /// If the rule returns a second prediction (CFG++), the slope of that one.
    pub slope: Tensor<3>,
    /// Clean latent minus that of the second prediction, if there is one.
    pub jump: Option<Tensor<3>>,
}

/// Adds the jump to the clean latent of the first prediction. With the slope of the second
/// prediction, `y = D' + s eps'`, so a step to s' that starts at `y + D - D'` ends at `D + s' eps'`.
pub(super) fn jumped(y: Tensor<3>, jump: Option<Tensor<3>>) -> Tensor<3> {
    match jump {
        Some(jump) => y + jump,
        None => y,
    }
}

impl Network<'_, '_> {
    /// Returns the path's time at a sigma, and its schedule there.
    pub fn place(&self, sigma: f64) -> (f64, Coefficients) {
        let t = self.path.t_of_lambda(-sigma.ln());
        (t, self.path.at(t))
    }

    /// Evaluates the network at `y`, `[B, position, channel]`, whose noise is `sigma`.
    pub fn see(&mut self, y: &Tensor<3>, sigma: f64) -> Seen {
        let (t, at) = self.place(sigma);
        let table = self.path.table().unwrap_or_default() as f64;
        let told = if self.quantize { (t * table).round().max(1.0) / table } else { t };
        let predicted = evaluate(self.model, &(y.clone() * at.alpha), told, at, false);
        let jump = predicted.renoised.then(|| predicted.x.clone() - predicted.x_of_eps);
        Seen { clean: predicted.x, slope: predicted.eps, jump }
    }
}

/// One step of a method.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    /// Index of the step.
    pub k: usize,
    /// Sigma at its start.
    pub from: f64,
    /// Sigma at its end; 0 = clean data.
    pub to: f64,
    /// All sigmas, from noise to data.
    pub sigmas: &'a [f64],
}

/// Returns `[down, up]`: the sigma that an ancestral step goes to, and the size of the noise that it then adds.
pub(super) fn ancestral(from: f64, to: f64) -> [f64; 2] {
    let up = to.min((to.powi(2) * (from.powi(2) - to.powi(2)) / from.powi(2)).sqrt());
    [(to.powi(2) - up.powi(2)).max(0.0).sqrt(), up]
}

/// Moves `y` from one sigma to another with the clean latent held fixed (exponential Euler).
pub(super) fn toward(y: Tensor<3>, clean: Tensor<3>, from: f64, to: f64) -> Tensor<3> {
    y * (to / from) + clean * (1.0 - to / from)
}

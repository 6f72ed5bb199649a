//! Shared code of the flow samplers: their times, and the velocity and score of a guided evaluation.

use crate::evaluate;
use framework::prelude::*;
use framework::process::path::{Pair, join};
use framework::sampling::denoiser::Denoiser;

/// Spacing of a flow's times before the shift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FlowSpacing {
    /// Evenly spaced from noise to data.
    #[default]
    Even,
    /// Evenly spaced from noise to the shifted first training time of a table, then one last step to data. This is the
    /// discrete flow scheduler of `diffusers`, with which Stable Diffusion 3 and related models were published.
    Discrete(Discrete),
}

/// Settings of the discrete spacing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Discrete {
    /// Number of training times in the table.
    #[schemars(range(min = 1, max = 100_000))]
    pub timesteps: usize,
}

impl Default for Discrete {
    fn default() -> Self {
        Self { timesteps: 1000 }
    }
}

impl FlowSpacing {
    /// Returns the shifted times from noise to data: `steps` intervals over `[data, noise]`.
    ///
    /// A `shift` of s > 0 maps every time t to s t / (1 + (s - 1) t). For s > 1, more times are near noise.
    /// Source: arXiv:2403.03206 eq. 23.
    pub(crate) fn times(self, steps: usize, [data, noise]: [f64; 2], shift: f64) -> Vec<f64> {
        let shifted = |t: f64| shift * t / (1.0 + (shift - 1.0) * t);
        let even = |to: f64, k: usize, of: usize| noise + (to - noise) * k as f64 / of.max(1) as f64;
        match self {
            Self::Even => (0..=steps).map(|k| shifted(even(data, k, steps))).collect(),
            Self::Discrete(Discrete { timesteps }) => {
                let first = shifted(1.0 / timesteps as f64).max(data);
                (0..steps).map(|k| shifted(even(first, k, steps - 1))).chain([shifted(data)]).collect()
            }
        }
    }
}

/// Returns the velocity `d x_t / d t` and the score at `x_t`.
pub(crate) fn velocity_and_score(
    model: &mut Denoiser<'_>,
    path: &dyn NoisePath,
    x_t: &Tensor<3>,
    t: f64,
) -> (Tensor<3>, Tensor<3>) {
    let at = path.at(t);
    let predicted = evaluate(model, x_t, t, at, false);
    let pair = Pair { x: predicted.x, eps: predicted.eps };
    let score = pair.eps.clone() / -at.sigma;
    (join(Prediction::Velocity, pair, at), score)
}

/// Returns the velocity alone. A velocity prediction is not converted, because the score may not exist at `t`.
pub(crate) fn velocity(model: &mut Denoiser<'_>, path: &dyn NoisePath, x_t: &Tensor<3>, t: f64) -> Tensor<3> {
    let (process, channels) = (model.process(), model.channels());
    if process.prediction() != Prediction::Velocity {
        return velocity_and_score(model, path, x_t, t).0;
    }
    let input = Input::Noisy { x_t: x_t.clone(), t: vec![t; x_t.dims()[0]] };
    model.evaluate(&input, (1.0 - t).clamp(0.0, 1.0)).prediction.narrow(2, 0, channels)
}

/// Returns a problem if the process has no path from data to noise.
pub(crate) fn needs_path(process: &dyn Process, name: &str) -> Vec<Problem> {
    if process.path().is_some() {
        return Vec::new();
    }
    vec![Problem::new("", format!("{name} needs a process with a path from data to noise"))]
}

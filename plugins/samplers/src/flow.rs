//! What the samplers of flows share: their times, and the velocity and score of a guided evaluation.

use crate::evaluate;
use framework::guidance::Denoiser;
use framework::path::{Pair, join};
use framework::prelude::*;

/// How the times of a flow's trajectory are spread before they are shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FlowSpacing {
    /// Evenly from noise to data.
    #[default]
    Even,
    /// Evenly from noise to the first of a table's times, already shifted, and then to data: `diffusers`' discrete
    /// scheduler of flows, with which Stable Diffusion 3 and its kin were published.
    Discrete {
        /// Training times of the table.
        #[serde(default = "thousand")]
        #[schemars(range(min = 1, max = 100_000))]
        timesteps: usize,
    },
}

fn thousand() -> usize {
    1000
}

impl FlowSpacing {
    /// Times from noise to data: `steps` intervals over `[data, noise]`, shifted.
    ///
    /// `shift` s > 0 moves every time t to s t / (1 + (s - 1) t): more of them near the noise for s > 1.
    /// Source: arXiv:2403.03206 eq. 23.
    pub(crate) fn times(self, steps: usize, [data, noise]: [f64; 2], shift: f64) -> Vec<f64> {
        let shifted = |t: f64| shift * t / (1.0 + (shift - 1.0) * t);
        let even = |to: f64, k: usize, of: usize| noise + (to - noise) * k as f64 / of.max(1) as f64;
        match self {
            Self::Even => (0..=steps).map(|k| shifted(even(data, k, steps))).collect(),
            Self::Discrete { timesteps } => {
                let first = shifted(1.0 / timesteps as f64).max(data);
                (0..steps).map(|k| shifted(even(first, k, steps - 1))).chain([shifted(data)]).collect()
            }
        }
    }
}

/// Velocity `d x_t / d t` and score at `x_t`.
pub(crate) fn velocity_and_score(model: &mut Denoiser<'_>, x_t: &Tensor<3>, t: f64) -> (Tensor<3>, Tensor<3>) {
    let at = model.process().path().expect("the check phase refuses other families").at(t);
    let predicted = evaluate(model, x_t, t, at, false);
    let pair = Pair { x: predicted.x, eps: predicted.eps };
    let score = pair.eps.clone() / -at.sigma;
    (join(Prediction::Velocity, pair, at), score)
}

/// Velocity alone, where the score may not exist.
pub(crate) fn velocity(model: &mut Denoiser<'_>, x_t: &Tensor<3>, t: f64) -> Tensor<3> {
    let (process, channels) = (model.process(), model.channels());
    if process.prediction() != Prediction::Velocity {
        return velocity_and_score(model, x_t, t).0;
    }
    let input = Input::Noisy { x_t: x_t.clone(), t: vec![t; x_t.dims()[0]] };
    model.evaluate(&input, (1.0 - t).clamp(0.0, 1.0)).prediction.narrow(2, 0, channels)
}

/// Problems of a process without a continuous path.
pub(crate) fn needs_path(process: &dyn Process, name: &str) -> Vec<Problem> {
    if process.path().is_some() {
        return Vec::new();
    }
    vec![Problem::new("", format!("{name} needs a process with a path from data to noise"))]
}

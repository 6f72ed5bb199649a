//! The guidance input: which function of the guidance number the network embeds.

use framework::nn::{guidance_sinusoid, sinusoid};
use framework::prelude::*;

/// Width of the sinusoids of the guidance number.
pub const GUIDANCE_FREQUENCIES: usize = 512;
/// Lower limit of beta for [`GuidanceInput::ScaleOfBeta`]. At 0, the scale would be infinite.
const LEAST_BETA: f64 = 1e-4;

/// The value whose sinusoids the guidance projection reads. The projection is added to the sinusoids of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceInput {
    /// 1000 times the guidance number.
    Linear,
    /// 1000 (1 / number - 1), for a number that is a beta. This equals the 1000 (scale - 1) of `diffusers`.
    ScaleOfBeta,
    /// 1000 (number - 1), for a number that is a scale, as in `diffusers`.
    Scale,
}

impl GuidanceInput {
    /// Returns the sinusoids that the guidance projection reads, `[B, 512]` row-major.
    pub(crate) fn sinusoids(self, numbers: &[f64]) -> Vec<f64> {
        let each = |f: fn(f64) -> f64| numbers.iter().map(|number| f(*number)).collect::<Vec<_>>();
        match self {
            Self::ScaleOfBeta => {
                guidance_sinusoid(&each(|beta| 1.0 / beta.max(LEAST_BETA) - 1.0), GUIDANCE_FREQUENCIES)
            }
            Self::Scale => guidance_sinusoid(&each(|scale| scale - 1.0), GUIDANCE_FREQUENCIES),
            Self::Linear => sinusoid(&each(|number| 1000.0 * number), GUIDANCE_FREQUENCIES),
        }
    }
}

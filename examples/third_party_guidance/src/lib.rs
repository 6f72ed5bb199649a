//! CFG-Zero*: guidance with a null prediction that is scaled to fit the conditional prediction. The first evaluations
//! return zero.
//!
//!   s          = <f(x_t, c), f(x_t, null)> / |f(x_t, null)|^2,  per sample
//!   prediction = s f(x_t, null) + scale (f(x_t, c) - s f(x_t, null));  0 in the first `zero_steps` evaluations
//!
//! Source: arXiv:2503.18886, eq. 7 and algorithm 1. The rule is designed for flows, whose velocity is least accurate at
//! pure noise.

use framework::sampling::guidance::{GuidanceNeeds, Branch, Guidance, Guided, Moment, Trajectory};
use framework::prelude::*;

/// Guidance with two passes per step, which are mixed after scaling the null prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct CfgZero {
    /// Guidance scale. 1 = the conditional prediction.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Number of evaluations at the start whose prediction is 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub zero_steps: usize,
}

framework::register!(guidance "cfg_zero" => CfgZero, "arXiv:2503.18886");

impl Guidance for CfgZero {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { null: true, ..GuidanceNeeds::branches(2) }
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for CfgZero {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        vec![Branch::given(), Branch::null()]
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let [given, null] = <[Tensor<3>; 2]>::try_from(predictions).expect("one prediction per branch");
        if moment.evaluation < self.zero_steps {
            return given.zeros_like().into();
        }
        let dot = |a: &Tensor<3>, b: &Tensor<3>| (a.clone() * b.clone()).sum_dim(2).sum_dim(1);
        let fitted = null.clone() * (dot(&given, &null) / dot(&null, &null).clamp_min(1e-30));
        (fitted.clone() + (given - fitted) * self.scale).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combined(rule: &CfgZero, evaluation: usize, given: [f32; 2], null: [f32; 2]) -> Vec<f32> {
        let tensor = |values: [f32; 2]| Tensor::<3>::from_data([[values]], &Device::flex());
        let moment = Moment { progress: 0.5, t: 0.5, evaluation, channels: 2 };
        let guided = rule.clone().combine(&moment, vec![tensor(given), tensor(null)]);
        guided.prediction.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn only_what_the_null_prediction_cannot_fit_is_amplified() {
        let rule = CfgZero { scale: 3.0, zero_steps: 1 };
        // (2, 1) = 2 (1, 0) + (0, 1): the rule amplifies only the orthogonal part (0, 1).
        assert_eq!(combined(&rule, 1, [2.0, 1.0], [1.0, 0.0]), [2.0, 3.0]);
        assert_eq!(combined(&rule, 1, [2.0, 4.0], [1.0, 2.0]), [2.0, 4.0]);
        assert_eq!(combined(&rule, 0, [2.0, 1.0], [1.0, 0.0]), [0.0, 0.0]);
    }

    #[test]
    fn scale_one_is_the_conditional_prediction() {
        assert_eq!(combined(&CfgZero { scale: 1.0, zero_steps: 0 }, 0, [2.0, 1.0], [1.0, 0.5]), [2.0, 1.0]);
    }
}

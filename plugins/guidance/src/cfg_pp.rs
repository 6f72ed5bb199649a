//! CFG++: guides the clean latent, and adds the noise of the unconditional prediction.
//!
//!   D      = D_null + lambda (D_cond - D_null)          the clean latent of a step
//!   x_next = alpha' D + sigma' eps_null                 for example with ddim
//!
//! Source: arXiv:2406.08070, alg. 1 and appendix for other solvers. Plain guidance adds the noise of the guided prediction,
//! which leads off the data manifold at large scales. To first order, CFG++ is `cfg` at a scale that depends on the
//! step: `lambda s / (s - s')` with s = sigma / alpha. At `lambda` 1 it is not the conditional: the noise is still that
//! of the unconditional prediction.

use crate::per_sample::two_predictions;
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory, mix};

/// Guidance of the clean latent with unconditional noise. Two passes per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(example = framework::serde_json::json!({ "lambda": 0.8 }))]
pub struct CfgPp {
    /// Weight of the conditional clean latent, 0 to 10; 0 = unconditional. Published: 0.2 to 1.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub lambda: f64,
}

impl Default for CfgPp {
    fn default() -> Self {
        Self { lambda: 0.6 }
    }
}

framework::register!(guidance "cfg_pp" => CfgPp, "arXiv:2406.08070");

impl Guidance for CfgPp {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { path: true, renoise: true, ..two_predictions(true, None) }
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for CfgPp {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        vec![Branch::given(), Branch::null()]
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let [cond, null] = predictions.try_into().expect("two branches");
        // Every prediction space is affine in the clean latent at fixed x_t, so the mixture may be taken in any of them.
        Guided { prediction: mix(cond, null.clone(), self.lambda, moment.channels), renoise: Some(null) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trials::{at, prediction, values};

    #[test]
    fn the_first_prediction_is_mixed_and_the_second_is_unconditional() {
        let [cond, null] = ["given", "null"].map(|branch| prediction(branch, 0, 2, 0));
        let mut rule = CfgPp { lambda: 0.25 }.start();
        assert_eq!(rule.branches(&at(0)).len(), 2);
        let guided = rule.combine(&at(0), vec![cond.clone(), null.clone()]);
        let expected = values(null.clone() * 0.75 + cond * 0.25);
        let got = values(guided.prediction);
        assert!(got.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < 1e-12));
        assert_eq!(values(guided.renoise.expect("a second prediction")), values(null));
    }
}

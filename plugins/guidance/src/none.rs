//! No guidance: one branch and one pass per step.
//!
//!   prediction = f(x_t, c, guidance number of `scale`)
//!
//! A guidance-free network reads `scale` through its guidance input. Any other network predicts at scale 1.

use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, Moment, Trajectory};

/// One conditional pass per step, without guidance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NoGuidance {
    /// Guidance scale passed to the network's guidance input, 0.001 to 1000; 1 = the conditional distribution.
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub scale: f64,
}

impl Default for NoGuidance {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

framework::register!(guidance "none" => NoGuidance);

impl Guidance for NoGuidance {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds::branches(1)
    }

    fn input_scale(&self) -> Option<f64> {
        (self.scale != 1.0).then_some(self.scale)
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for NoGuidance {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        vec![Branch { scale: Some(self.scale), ..Branch::given() }]
    }

    fn combine(&mut self, _: &Moment, mut predictions: Vec<Tensor<3>>) -> Guided {
        predictions.remove(0).into()
    }
}

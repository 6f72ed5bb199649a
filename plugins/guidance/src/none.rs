//! No guidance: one branch, one pass.
//!
//!   prediction = f(x_t, c, guidance number of `scale`)
//!
//! A guidance-free network is asked for its scale here; any other network answers at scale 1.

use framework::guidance::{Branch, Guidance, Guided, Moment, Trajectory};
use framework::prelude::*;

/// One pass a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoGuidance {
    /// Scale asked of the network's own guidance input, > 0; 1 = the conditional distribution.
    #[serde(default = "one")]
    #[schemars(range(min = 1e-3, max = 1000.0))]
    pub scale: f64,
}

fn one() -> f64 {
    1.0
}

framework::register!(guidance "none" => NoGuidance);

impl Guidance for NoGuidance {
    fn needs_null(&self) -> bool {
        false
    }

    fn input_scale(&self) -> Option<f64> {
        (self.scale != 1.0).then_some(self.scale)
    }

    fn max_branches(&self) -> usize {
        1
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

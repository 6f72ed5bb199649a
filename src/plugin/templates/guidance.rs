//! Guidance whose scale grows from 1 (noise) to `scale` (data).
//!
//!   prediction = f(x_t, null) + s(p) (f(x_t, c) - f(x_t, null)),   s(p) = 1 + (scale - 1) schedule(p) at progress p

use framework::sampling::guidance::{GuidanceNeeds, Branch, Guidance, Guided, Moment, Trajectory, mix};
use framework::prelude::*;
use framework::schedule::Schedule;

/// Guidance with two passes per step, at a scale that grows along the trajectory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct MyPlugin {
    /// Guidance scale at progress 1 (data), 0 to 1000; 1 = no guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// Share of `scale - 1` over progress.
    #[serde(default)]
    pub schedule: Schedule,
}

framework::register!(guidance "my_plugin" => MyPlugin);

impl MyPlugin {
    fn scale_at(&self, progress: f64) -> f64 {
        1.0 + (self.scale - 1.0) * self.schedule.at(progress)
    }
}

impl Guidance for MyPlugin {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { null: true, ..GuidanceNeeds::branches(2) }
    }

    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for MyPlugin {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        vec![Branch::given(), Branch::null()]
    }

    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let [given, null] = <[Tensor<3>; 2]>::try_from(predictions).expect("one prediction per branch");
        mix(given, null, self.scale_at(moment.progress), moment.channels).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_starts_at_the_conditional_and_ends_at_its_scale() {
        let mut rule = MyPlugin { scale: 3.0, schedule: Schedule::Power { exponent: 2.0 } };
        let predictions =
            || vec![Tensor::<3>::ones([1, 1, 2], &Device::flex()), Tensor::zeros([1, 1, 2], &Device::flex())];
        for (progress, scale) in [(0.0, 1.0), (0.5, 1.5), (1.0, 3.0)] {
            let moment = Moment { progress, t: 1.0 - progress, evaluation: 0, channels: 2 };
            let guided = rule.combine(&moment, predictions()).prediction;
            assert_eq!(guided.into_data().try_to_vec::<f32>().unwrap(), [scale, scale]);
        }
    }
}

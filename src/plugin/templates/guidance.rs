//! Guidance whose scale grows from 1 at the noise to `scale` at the data.
//!
//!   prediction = f(x_t, null) + s(p) (f(x_t, c) - f(x_t, null)),   s(p) = 1 + (scale - 1) p^power at progress p

use framework::guidance::{Branch, Guidance, Guided, Moment, Trajectory, mix};
use framework::prelude::*;

/// Two passes a step, at a scale that grows along the trajectory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct MyPlugin {
    /// Scale at the data; 1 = no guidance.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale: f64,
    /// How late the scale grows, above 0; 1 = evenly.
    #[serde(default = "one")]
    #[schemars(range(min = 0.01, max = 100.0))]
    pub power: f64,
}

fn one() -> f64 {
    1.0
}

framework::register!(guidance "my_plugin" => MyPlugin);

impl MyPlugin {
    fn scale_at(&self, progress: f64) -> f64 {
        1.0 + (self.scale - 1.0) * progress.powf(self.power)
    }
}

impl Guidance for MyPlugin {
    fn needs_null(&self) -> bool {
        true
    }

    fn max_branches(&self) -> usize {
        2
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
        let [given, null] = <[Tensor<3>; 2]>::try_from(predictions).expect("as many as were asked for");
        mix(given, null, self.scale_at(moment.progress), moment.channels).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_starts_at_the_conditional_and_ends_at_its_scale() {
        let mut rule = MyPlugin { scale: 3.0, power: 2.0 };
        let predictions =
            || vec![Tensor::<3>::ones([1, 1, 2], &Device::flex()), Tensor::zeros([1, 1, 2], &Device::flex())];
        for (progress, scale) in [(0.0, 1.0), (0.5, 1.5), (1.0, 3.0)] {
            let moment = Moment { progress, t: 1.0 - progress, evaluation: 0, channels: 2 };
            let guided = rule.combine(&moment, predictions()).prediction;
            assert_eq!(guided.into_data().try_to_vec::<f32>().unwrap(), [scale, scale]);
        }
    }
}

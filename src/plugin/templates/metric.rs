//! How far the brightness of samples is from that of real images.
//!
//!   | mean of all samples - mean of all real images |

use framework::error::Result;
use framework::metric::{Images, Measurement, Metric};
use framework::prelude::*;

/// Difference of mean brightness; 0 is best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct MyPlugin {}

framework::register!(metric "my_plugin" => MyPlugin);

fn brightness(images: &Images) -> f64 {
    images.values.iter().map(|value| f64::from(*value)).sum::<f64>() / images.values.len() as f64
}

impl Metric for MyPlugin {
    fn measure(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>> {
        Ok(vec![Measurement {
            name: "my_plugin".into(),
            value: (brightness(samples) - brightness(real)).abs(),
            meaning: "difference of mean brightness from the real images, lower is better".into(),
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::dataset::Label;

    #[test]
    fn difference_by_hand() {
        let images = |value: f32| {
            let mut images = Images::none([1, 2, 2]);
            images.extend([value; 8], &[Label::None, Label::None]);
            images
        };
        let measured = MyPlugin {}.measure(&images(0.5), &images(-0.25)).unwrap();
        assert_eq!(measured[0].value, 0.75);
    }
}

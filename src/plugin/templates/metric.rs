//! Difference between the mean brightness of samples and of real images.
//!
//!   | mean of all samples - mean of all real images |

use framework::burn::tensor::TensorData;
use framework::error::Result;
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::statistics::Statistics;
use framework::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Difference in mean brightness between samples and real images; 0 is best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct MyPlugin {}

framework::register!(metric "my_plugin" => MyPlugin);

/// Sum and number of values, batch by batch.
#[derive(Clone, Copy, Default)]
struct Brightness {
    sum: f64,
    count: usize,
}

impl Brightness {
    fn add(&mut self, images: &Images) {
        self.sum += images.values.iter().map(|value| f64::from(*value)).sum::<f64>();
        self.count += images.values.len();
    }

    fn mean(self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// The real images so far.
struct Real(Brightness);

impl Reference for Real {
    fn update(&mut self, images: &Images) -> Result<()> {
        self.0.add(images);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Statistics> {
        let mean = TensorData::new(vec![self.0.mean()], [1]);
        let tensors = BTreeMap::from([("mean".to_string(), mean)]);
        Ok(Statistics { metric: "my_plugin".into(), count: self.0.count, tensors, ..Statistics::default() })
    }
}

/// The samples so far, and the mean of the real images.
struct Samples(Brightness, f64);

impl Accumulator for Samples {
    fn update(&mut self, images: &Images) -> Result<()> {
        self.0.add(images);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
        Ok(vec![Measurement {
            name: "my_plugin".into(),
            value: (self.0.mean() - self.1).abs(),
            meaning: "difference in mean brightness from real images, lower is better".into(),
        }])
    }
}

impl Metric for MyPlugin {
    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Real(Brightness::default()))
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect("my_plugin")?;
        let mean = reference.tensor("mean")?.iter::<f64>().next().unwrap_or_default();
        Ok(Box::new(Samples(Brightness::default(), mean)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::data::dataset::Label;

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

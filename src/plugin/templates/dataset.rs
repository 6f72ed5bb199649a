//! Images of stripes: horizontal for class 0, vertical for class 1.
//!
//!   value[i, j] = sin(2 pi (i / period + phase)),  phase ~ U[0, 1);  class 1 uses j instead of i

use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::Result;
use framework::prelude::*;
use framework::random::Random;
use std::f64::consts::TAU;

/// Grey images of stripes, rendered on the fly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", default, deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct MyPlugin {
    /// Height and width of the images, in pixels.
    #[schemars(range(min = 2, max = 1024))]
    pub size: usize,
    /// Distance between two stripes, in pixels.
    #[schemars(range(min = 1.0, max = 1024.0))]
    pub period: f64,
}

impl Default for MyPlugin {
    fn default() -> Self {
        Self { size: 8, period: 4.0 }
    }
}

framework::register!(data "my_plugin" => MyPlugin);

impl DatasetConfig for MyPlugin {
    fn info(&self) -> Option<DatasetInfo> {
        Some(Dataset::info(self))
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self.clone()))
    }
}

impl Dataset for MyPlugin {
    fn info(&self) -> DatasetInfo {
        let items = ItemKind::Images([1, self.size, self.size]);
        DatasetInfo { items, num_classes: Some(2), captions: false }
    }

    fn len(&self) -> usize {
        2000
    }

    fn get(&self, index: usize, _: &Random, _: u64) -> Result<Item> {
        self.plain(index)
    }

    fn plain(&self, index: usize) -> Result<Item> {
        // The image depends only on the index, so a resumed run trains on the same images.
        let phase = Random::new(0).uniform("phase", index as u64, 0, 1)[0];
        let class = index % 2;
        let value = |at: usize| {
            let along = if class == 0 { at / self.size } else { at % self.size };
            (TAU * (along as f64 / self.period + phase)).sin() as f32
        };
        Ok(Item { values: (0..self.size * self.size).map(value).collect(), label: Label::Class(class) })
    }

    fn class_names(&self) -> Option<Vec<String>> {
        Some(vec!["across".into(), "down".into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_run_as_their_class_says() {
        let data = MyPlugin { size: 6, period: 4.0 };
        for index in 0..data.len() {
            let item = data.plain(index).unwrap();
            let along: Vec<f32> = match item.label {
                Label::Class(0) => item.values[..6].to_vec(),
                _ => item.values.iter().step_by(6).copied().collect(),
            };
            assert_eq!(item.values.len(), 36);
            assert!(along.iter().all(|value| *value == along[0] && (-1.0..=1.0).contains(value)));
        }
    }
}

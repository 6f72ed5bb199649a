//! A conditioner for tests. It counts the letters of a caption.

use framework::burn::tensor::{Device, Tensor, TensorData};
use framework::error::Result;
use framework::network::condition::{Condition, ConditionShape};
use framework::network::conditioner::Conditioner;
use framework::prelude::*;

/// Number of occurrences of each letter.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Letters {}

framework::register!(conditioner "letters" => Letters);

impl Conditioner for Letters {
    fn produces(&self) -> ConditionShape {
        ConditionShape::Text { length: Some(1), width: 26 }
    }

    fn load(&mut self, _: &Device) -> Result<()> {
        Ok(())
    }

    fn encode(&self, captions: &[Option<String>]) -> Result<Condition> {
        let count = |caption: &Option<String>| {
            let of = |letter: u8| caption.iter().flat_map(|text| text.bytes()).filter(|byte| *byte == letter).count();
            (b'a'..=b'z').map(|letter| of(letter) as f32).collect::<Vec<f32>>()
        };
        let tensor = |captions: &[Option<String>]| {
            let numbers: Vec<f32> = captions.iter().flat_map(count).collect();
            Tensor::<3>::from_data(TensorData::new(numbers, [captions.len(), 1, 26]), &Device::flex())
        };
        let dropped = captions.iter().map(Option::is_none).collect();
        Ok(Condition::Text { features: tensor(captions), null: tensor(&[None]), dropped })
    }
}

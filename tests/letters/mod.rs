//! A conditioner for tests: it counts the letters of a text.

use framework::burn::tensor::{Device, Tensor, TensorData};
use framework::condition::{Condition, ConditionKind};
use framework::conditioner::Conditioner;
use framework::error::Result;
use framework::prelude::*;

/// How often each letter occurs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Letters {}

framework::register!(conditioner "letters" => Letters);

impl Conditioner for Letters {
    fn kind(&self) -> ConditionKind {
        ConditionKind::Text
    }

    fn text_shape(&self) -> [usize; 2] {
        [1, 26]
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

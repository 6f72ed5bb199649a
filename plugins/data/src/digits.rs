//! Handwritten digits, embedded in the program: 1797 grey images of 8x8 pixels in ten classes.
//!
//!   value = count / 8 - 1,   count = set pixels in a 4x4 block of a 32x32 bitmap, 0 to 16
//!
//! Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998, CC BY 4.0,
//! doi 10.24432/C50P49 (`assets/ATTRIBUTION.md`).

use flate2::read::GzDecoder;
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::Result;
use framework::prelude::*;
use framework::random::Random;

const CSV: &[u8] = include_bytes!("../assets/digits.csv.gz");
const SIDE: usize = 8;
const CLASSES: usize = 10;

/// The UCI handwritten digits: 1797 grey images of 8x8 pixels with classes "0" to "9". The images are embedded in
/// the program, so this dataset has no settings and reads no file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Digits {}

framework::register!(data "digits" => Digits, "doi:10.24432/C50P49");

impl DatasetConfig for Digits {
    fn info(&self) -> Option<DatasetInfo> {
        Some(info())
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        let items = csv::ReaderBuilder::new()
            .has_headers(false)
            .from_reader(GzDecoder::new(CSV))
            .into_deserialize::<Vec<u8>>()
            .map(|row| item(&row.expect("the embedded CSV holds only integers")))
            .collect();
        Ok(Box::new(OpenDigits { items }))
    }
}

fn info() -> DatasetInfo {
    DatasetInfo { items: ItemKind::Images([1, SIDE, SIDE]), num_classes: Some(CLASSES), captions: false }
}

/// Converts one CSV row, 64 counts followed by the class, to an item.
fn item(row: &[u8]) -> Item {
    let (class, counts) = row.split_last().expect("a row holds 64 counts and a class");
    assert_eq!(counts.len(), SIDE * SIDE, "a row holds 64 counts and a class");
    let values = counts.iter().map(|count| f32::from(*count) / 8.0 - 1.0).collect();
    Item { values, label: Label::Class(usize::from(*class)) }
}

#[derive(Debug)]
struct OpenDigits {
    items: Vec<Item>,
}

impl Dataset for OpenDigits {
    fn info(&self) -> DatasetInfo {
        info()
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn get(&self, index: usize, _: &Random, _: u64) -> Result<Item> {
        self.plain(index)
    }

    fn plain(&self, index: usize) -> Result<Item> {
        Ok(self.items[index].clone())
    }

    fn class_names(&self) -> Option<Vec<String>> {
        Some((0..CLASSES).map(|digit| digit.to_string()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_1797_images_in_range_of_ten_classes() {
        let digits = Digits {}.open().unwrap();
        assert_eq!(digits.len(), 1797);
        assert_eq!(Some(digits.info()), Digits {}.info());
        let mut counts = [0; CLASSES];
        for index in 0..digits.len() {
            let item = digits.plain(index).unwrap();
            assert_eq!(item.values.len(), 64);
            assert!(item.values.iter().all(|value| (-1.0..=1.0).contains(value)));
            let Label::Class(class) = item.label else { panic!("{:?}", item.label) };
            counts[class] += 1;
        }
        // The source states this class distribution for its test set.
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        assert_eq!(digits.class_names().unwrap(), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    }

    #[test]
    fn first_item_by_hand() {
        let digits = Digits {}.open().unwrap();
        let item = digits.get(0, &Random::new(0), 0).unwrap();
        // Counts 0 0 5 13 9 1 0 0, then 0 0 13 15 10 15 5 0.
        let rows = [
            [-1.0, -1.0, -0.375, 0.625, 0.125, -0.875, -1.0, -1.0],
            [-1.0, -1.0, 0.625, 0.875, 0.25, 0.875, -0.375, -1.0],
        ];
        assert_eq!(item.values[..16], rows.concat());
        assert_eq!(item.label, Label::Class(0));
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_json::from_str::<Digits>("{}").is_ok());
        assert!(serde_json::from_str::<Digits>(r#"{"path": "x"}"#).is_err());
    }
}

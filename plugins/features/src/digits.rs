//! A small classifier of the dataset `digits`, embedded in the program.
//!
//!   f(x)    = relu(W s(x) + b), D = 64,   s(x) = three convolutions with ReLU, [64, 4, 4]
//!   logits  = 10 classes;   spatial = the first 4 channels of s(x), 64 values
//!
//! It classifies 98 % of the images that it was not trained on. `assets/digits.py` trained it.
//! Shapes: `[B, 1, 8, 8]` to `[B, 64]`.

use framework::burn::tensor::activation::relu;
use framework::burn::tensor::module::conv2d;
use framework::burn::tensor::ops::ConvOptions;
use framework::burn::tensor::{DType, TensorData};
use framework::data::tokenizer::ImageShape;
use framework::error::{Problems, Result};
use framework::evaluation::features::{Extracted, Extractor, FeatureWidths, Features};
use framework::prelude::*;
use safetensors::SafeTensors;

/// Features of a small classifier of the dataset `digits`. Needs no file. Images must have 1 channel and 8x8 pixels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Digits {}

framework::register!(features "digits" => Digits);

const WEIGHTS: &[u8] = include_bytes!("../assets/digits.safetensors");
/// Shape of an image.
const IMAGE: ImageShape = [1, 8, 8];
/// Width of the features.
const WIDTH: usize = 64;
/// Number of classes.
const CLASSES: usize = 10;
/// Number of channels of the spatial features, each with 4x4 positions.
const SPATIAL_CHANNELS: usize = 4;

impl Features for Digits {
    fn check_image(&self, image: ImageShape) -> Problems {
        if image == IMAGE {
            return Problems::new();
        }
        let [channels, height, width] = image;
        let what = format!("features \"digits\" cannot read these images of {channels}x{height}x{width}");
        vec![Problem::new("", what).accepts("images of 1x8x8, as dataset \"digits\" has them")]
    }

    fn space(&self) -> String {
        "digits".into()
    }

    fn widths(&self, _: ImageShape) -> FeatureWidths {
        FeatureWidths { vector: WIDTH, spatial: Some(SPATIAL_CHANNELS * 16), classes: Some(CLASSES) }
    }

    fn load(&self, device: &Device) -> Result<Box<dyn Extractor>> {
        let layer = |name: &str, stride: usize| Convolution {
            weight: embedded(&format!("{name}.weight"), device),
            bias: embedded(&format!("{name}.bias"), device),
            stride,
        };
        let linear =
            |name: &str| (embedded(&format!("{name}.weight"), device), embedded(&format!("{name}.bias"), device));
        Ok(Box::new(Network {
            convolutions: [layer("conv1", 1), layer("conv2", 1), layer("conv3", 2)],
            hidden: linear("hidden"),
            classes: linear("classes"),
        }))
    }
}

/// Returns a tensor of the embedded file.
fn embedded<const D: usize>(name: &str, device: &Device) -> Tensor<D> {
    let file = SafeTensors::deserialize(WEIGHTS).expect("the embedded file is whole");
    let view = file.tensor(name).expect("the embedded file holds every weight");
    let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), DType::F32);
    Tensor::from_data(data, device)
}

struct Convolution {
    /// `[out, in, 3, 3]`.
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
}

struct Network {
    convolutions: [Convolution; 3],
    /// `[64, 1024]` and `[64]`.
    hidden: (Tensor<2>, Tensor<1>),
    /// `[10, 64]` and `[10]`.
    classes: (Tensor<2>, Tensor<1>),
}

impl Extractor for Network {
    fn extract(&self, images: Tensor<4>) -> Result<Extracted> {
        let maps = self.convolutions.iter().fold(images, |x, layer| {
            let options = ConvOptions::new_with_padding([layer.stride; 2], [(1, 1); 2], [1, 1], 1);
            relu(conv2d(x, layer.weight.clone(), Some(layer.bias.clone()), options))
        });
        let affine = |x: Tensor<2>, (weight, bias): &(Tensor<2>, Tensor<1>)| {
            x.matmul(weight.clone().transpose()) + bias.clone().unsqueeze::<2>()
        };
        let vectors = relu(affine(maps.clone().flatten(1, 3), &self.hidden));
        let logits = affine(vectors.clone(), &self.classes);
        let spatial = maps.narrow(1, 0, SPATIAL_CHANNELS).flatten(1, 3);
        Ok(Extracted { vectors, spatial: Some(spatial), logits: Some(logits) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data as _;
    use framework::data::dataset::Label;
    use framework::plugin::DatasetPlugin;
    use framework::random::Random;
    use framework::serde_json::{from_value, json};

    /// Returns the images of the dataset from `start` on, and their classes.
    fn digits(start: usize, count: usize) -> (Tensor<4>, Vec<usize>) {
        let dataset: Box<dyn DatasetPlugin> = from_value(json!({ "type": "digits" })).unwrap();
        let dataset = dataset.open().unwrap();
        let (mut values, mut classes) = (Vec::new(), Vec::new());
        for index in start..start + count {
            let item = dataset.get(index, &Random::new(0), 0).unwrap();
            values.extend(item.values);
            let Label::Class(class) = item.label else { panic!("every digit has a class") };
            classes.push(class);
        }
        (Tensor::from_data(TensorData::new(values, [count, 1, 8, 8]), &Device::flex()), classes)
    }

    fn numbers(x: Tensor<2>) -> Vec<f32> {
        x.into_data().try_into_vec().unwrap()
    }

    #[test]
    fn features_equal_those_of_the_training_script() {
        let device = Device::flex();
        let extracted = Digits {}.load(&device).unwrap().extract(digits(0, 3).0).unwrap();
        let spatial: Tensor<4> = embedded("test.spatial", &device);
        for (got, expected) in [
            (extracted.vectors, embedded("test.features", &device)),
            (extracted.spatial.unwrap(), spatial.flatten(1, 3)),
            (extracted.logits.unwrap(), embedded("test.logits", &device)),
        ] {
            let (got, expected) = (numbers(got), numbers(expected));
            assert_eq!(got.len(), expected.len());
            assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?} {expected:?}");
        }
    }

    #[test]
    fn images_that_it_was_not_trained_on_are_classified() {
        let (images, classes) = digits(1500, 297);
        let logits = numbers(Digits {}.load(&Device::flex()).unwrap().extract(images).unwrap().logits.unwrap());
        let largest = |row: &[f32]| (0..CLASSES).max_by(|a, b| row[*a].total_cmp(&row[*b]));
        let right = logits.chunks_exact(CLASSES).zip(&classes).filter(|(row, class)| largest(row) == Some(**class));
        // The training script printed 0.9798, which is 291 of 297.
        assert_eq!(right.count(), 291);
    }
}

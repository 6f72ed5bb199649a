//! The identity: the latent is the image.
//!
//!   x[b, i W + j, c] = image[b, c, i, j]
//!
//! Source: the pixel-space diffusion of arXiv:2006.11239. Shapes: `[B, C, H, W]` and `[B, H W, C]`.

use framework::error::Problems;
use framework::prelude::*;
use framework::process::Latent;
use framework::tokenizer::{ImageShape, Tokenizer};

/// Pixels themselves: one position a pixel, nothing lost. Takes no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pixels {}

framework::register!(tokenizer "pixels" => Pixels, "arXiv:2006.11239");

impl Tokenizer for Pixels {
    fn latent_shape(&self, [channels, height, width]: ImageShape) -> Result<LatentShape, Problems> {
        Ok(LatentShape::values([height, width], channels))
    }

    fn image_shape(&self, latent: LatentShape) -> ImageShape {
        [latent.channels, latent.grid[0], latent.grid[1]]
    }

    fn encode(&self, images: Tensor<4>) -> Latent {
        let [batch, channels, height, width] = images.dims();
        Latent::Values(images.reshape([batch, channels, height * width]).swap_dims(1, 2))
    }

    fn decode(&self, latent: Latent, [channels, height, width]: ImageShape) -> Tensor<4> {
        let Latent::Values(x) = latent else { panic!("pixels are numbers, not tokens") };
        let batch = x.dims()[0];
        x.swap_dims(1, 2).reshape([batch, channels, height, width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::burn::tensor::TensorData;

    fn ramp(shape: [usize; 4]) -> Tensor<4> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|v| v as f32 / 7.0 - 1.0).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::default())
    }

    #[test]
    fn round_trip_is_exact() {
        for shape in [[2, 3, 4, 5], [1, 1, 8, 8], [3, 4, 1, 2]] {
            let images = ramp(shape);
            let latent = Pixels {}.encode(images.clone());
            let back = Pixels {}.decode(latent, [shape[1], shape[2], shape[3]]);
            assert_eq!(images.into_data(), back.into_data());
        }
    }

    #[test]
    fn latent_is_position_by_channel() {
        // Channel 0 is 0 1 / 2 3, channel 1 is 4 5 / 6 7, in steps of 1/7 from -1.
        let Latent::Values(x) = (Pixels {}).encode(ramp([1, 2, 2, 2])) else { panic!("tokens") };
        let expected: Vec<f32> = [0, 4, 1, 5, 2, 6, 3, 7].iter().map(|v| *v as f32 / 7.0 - 1.0).collect();
        assert_eq!(x.dims(), [1, 4, 2]);
        assert_eq!(x.into_data().try_to_vec::<f32>().unwrap(), expected);
        let shape = Pixels {}.latent_shape([2, 2, 2]).unwrap();
        assert_eq!(shape, LatentShape::values([2, 2], 2));
        assert_eq!(Pixels {}.image_shape(shape), [2, 2, 2]);
    }
}

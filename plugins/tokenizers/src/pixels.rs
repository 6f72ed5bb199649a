//! Unencoded pixels: one position of the latent is one pixel, or one square patch of pixels.
//!
//!   x[b, i W + j, c] = image[b, c, i, j];   with patches of side p: [B, H W / p^2, p p C], channel last
//!
//! Source: arXiv:2006.11239, which diffuses pixels. Shapes: `[B, C, H, W]` to `[B, H W / p^2, p^2 C]`.

use framework::data::tokenizer::{ImageShape, Tokenizer};
use framework::error::Problems;
use framework::nn::{from_patches, from_positions, to_patches, to_positions};
use framework::prelude::*;
use framework::process::Latent;

/// Unencoded pixels: encoding and decoding are exact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pixels {
    /// Side of the square patch that becomes one position, in pixels. It must divide height and width. A
    /// larger patch gives a latent with fewer positions and more channels.
    #[schemars(range(min = 1, max = 256))]
    pub patch: usize,
}

impl Default for Pixels {
    fn default() -> Self {
        Self { patch: 1 }
    }
}

framework::register!(tokenizer "pixels" => Pixels, "arXiv:2006.11239");

impl Tokenizer for Pixels {
    fn latent_shape(&self, [channels, height, width]: ImageShape) -> Result<LatentShape, Problems> {
        let p = self.patch;
        if height.is_multiple_of(p) && width.is_multiple_of(p) {
            return Ok(LatentShape::values([height / p, width / p], p * p * channels));
        }
        let what = format!("`patch` = {p} does not divide images of {height}x{width} pixels");
        Err(vec![Problem::new("/patch", what).accepts("a divisor of height and width")])
    }

    fn image_shape(&self, latent: LatentShape) -> ImageShape {
        let p = self.patch;
        [latent.channels / (p * p), latent.grid[0] * p, latent.grid[1] * p]
    }

    fn encode(&self, images: Tensor<4>) -> Latent {
        let [_, _, height, width] = images.dims();
        Latent::Values(to_patches(to_positions(images), [height, width], self.patch))
    }

    fn decode(&self, latent: Latent, [_, height, width]: ImageShape) -> Tensor<4> {
        let Latent::Values(x) = latent else { panic!("a pixel latent holds values, not tokens") };
        from_positions(from_patches(x, [height, width], self.patch), [height, width])
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
        for (shape, patch) in
            [([2, 3, 4, 5], 1), ([1, 1, 8, 8], 1), ([3, 4, 1, 2], 1), ([2, 3, 4, 6], 2), ([1, 1, 9, 3], 3)]
        {
            let (images, pixels) = (ramp(shape), Pixels { patch });
            let image = [shape[1], shape[2], shape[3]];
            let latent = pixels.latent_shape(image).unwrap();
            assert_eq!(pixels.image_shape(latent), image);
            let back = pixels.decode(pixels.encode(images.clone()), image);
            assert_eq!(images.into_data(), back.into_data());
        }
        assert!(Pixels { patch: 2 }.latent_shape([3, 4, 5]).is_err());
    }

    #[test]
    fn latent_is_position_by_channel() {
        // Channel 0 is 0 1 / 2 3 and channel 1 is 4 5 / 6 7, in steps of 1/7 from -1.
        let Latent::Values(x) = (Pixels { patch: 1 }).encode(ramp([1, 2, 2, 2])) else { panic!("no values") };
        let expected: Vec<f32> = [0, 4, 1, 5, 2, 6, 3, 7].iter().map(|v| *v as f32 / 7.0 - 1.0).collect();
        assert_eq!(x.dims(), [1, 4, 2]);
        assert_eq!(x.into_data().try_to_vec::<f32>().unwrap(), expected);
        let shape = Pixels { patch: 1 }.latent_shape([2, 2, 2]).unwrap();
        assert_eq!(shape, LatentShape::values([2, 2], 2));
        assert_eq!(Pixels { patch: 1 }.image_shape(shape), [2, 2, 2]);
    }
}

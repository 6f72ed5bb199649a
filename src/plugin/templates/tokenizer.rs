//! Scaled pixels: the latent is the image times `gain`. The gain sets how fast noise hides the image.
//!
//!   x[b, i W + j, c] = gain image[b, c, i, j]

use framework::error::Problems;
use framework::nn::{from_positions, to_positions};
use framework::prelude::*;
use framework::process::Latent;
use framework::data::tokenizer::{ImageShape, Tokenizer};

/// Scaled pixels as latents; lossless.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", default, deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct MyPlugin {
    /// Factor from pixels to latents, 0.01 to 100; above 1, coarse features stay visible at higher noise levels.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub gain: f64,
}

impl Default for MyPlugin {
    fn default() -> Self {
        Self { gain: 1.0 }
    }
}

framework::register!(tokenizer "my_plugin" => MyPlugin);

impl Tokenizer for MyPlugin {
    fn latent_shape(&self, [channels, height, width]: ImageShape) -> Result<LatentShape, Problems> {
        Ok(LatentShape::values([height, width], channels))
    }

    fn image_shape(&self, latent: LatentShape) -> ImageShape {
        [latent.channels, latent.grid[0], latent.grid[1]]
    }

    fn encode(&self, images: Tensor<4>) -> Latent {
        Latent::Values(to_positions(images) * self.gain)
    }

    fn decode(&self, latent: Latent, [_, height, width]: ImageShape) -> Tensor<4> {
        let Latent::Values(x) = latent else { panic!("`encode` returns continuous latents, never tokens") };
        from_positions(x / self.gain, [height, width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_is_exact() {
        let tokenizer = MyPlugin { gain: 4.0 };
        let images = Tensor::<4>::ones([2, 3, 4, 5], &Device::flex()) * 0.3;
        let image = tokenizer.image_shape(tokenizer.latent_shape([3, 4, 5]).unwrap());
        let back = tokenizer.decode(tokenizer.encode(images.clone()), image);
        assert_eq!((image, back.into_data()), ([3, 4, 5], images.into_data()));
    }
}

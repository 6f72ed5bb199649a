//! Grey levels of pixels as tokens, in raster order.
//!
//!   id = round((x + 1) / 2 (values - 1)),   x in [-1, 1]
//!
//! Source: arXiv:1601.06759, whose pixel language models use these tokens. Shapes: `[B, 1, H, W]` to `[B, H W]`.

use framework::data::tokenizer::{ImageShape, Tokenizer};
use framework::error::Problems;
use framework::prelude::*;
use framework::process::Latent;

/// One token per pixel of a grey image: the pixel rounded to one of `values` grey levels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Levels {
    /// Number of grey levels from black to white, 2 to 65,536, which is also the vocabulary. The embedded
    /// digits have 17.
    #[schemars(range(min = 2, max = 65_536))]
    pub values: usize,
}

impl Default for Levels {
    fn default() -> Self {
        Self { values: 256 }
    }
}

framework::register!(tokenizer "levels" => Levels, "arXiv:1601.06759");

/// Rounds values in [-1, 1] to whole steps from 0 to `values - 1`, kept as floats.
pub(crate) fn quantize<const D: usize>(x: Tensor<D>, values: usize) -> Tensor<D> {
    ((x.clamp(-1.0, 1.0) + 1.0) * ((values - 1) as f64 / 2.0)).round()
}

/// Converts steps back to values in [-1, 1]; the inverse of `quantize` up to rounding.
pub(crate) fn value<const D: usize>(steps: Tensor<D>, values: usize) -> Tensor<D> {
    steps * (2.0 / (values - 1) as f64) - 1.0
}

/// Rejects images with more than one channel.
pub(crate) fn grey(channels: usize, name: &str) -> Result<(), Problems> {
    if channels == 1 {
        return Ok(());
    }
    let what = format!("tokenizer \"{name}\" needs grey images, but these have {channels} channels");
    Err(vec![
        Problem::new("", what).accepts("images of 1 channel").fix("use a tokenizer with a codebook, such as \"vq\""),
    ])
}

impl Tokenizer for Levels {
    fn latent_shape(&self, [channels, height, width]: ImageShape) -> Result<LatentShape, Problems> {
        grey(channels, "levels")?;
        Ok(LatentShape::tokens([height, width], self.values))
    }

    fn image_shape(&self, latent: LatentShape) -> ImageShape {
        [1, latent.grid[0], latent.grid[1]]
    }

    fn encode(&self, images: Tensor<4>) -> Latent {
        let [batch, _, height, width] = images.dims();
        Latent::Ids(quantize(images, self.values).reshape([batch, height * width]).int())
    }

    fn decode(&self, latent: Latent, [_, height, width]: ImageShape) -> Tensor<4> {
        let ids = latent.ids();
        let [batch, _] = ids.dims();
        value(ids.float(), self.values).reshape([batch, 1, height, width])
    }
}

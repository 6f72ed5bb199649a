//! The values of an image as its features.
//!
//!   f(x) = x,   D = C H W, row-major
//!
//! Shapes: `[B, C, H, W]` to `[B, C H W]`.

use framework::data::tokenizer::ImageShape;
use framework::error::Result;
use framework::evaluation::features::{Extracted, Extractor, FeatureWidths, Features};
use framework::prelude::*;

/// The values of the images. Needs no file. Distances in this space say little about large images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pixels {}

framework::register!(features "pixels" => Pixels);

impl Features for Pixels {
    fn space(&self) -> String {
        "pixels".into()
    }

    fn widths(&self, image: ImageShape) -> FeatureWidths {
        FeatureWidths::of_vector(image.iter().product())
    }

    fn load(&self, _: &Device) -> Result<Box<dyn Extractor>> {
        Ok(Box::new(Self {}))
    }
}

impl Extractor for Pixels {
    fn extract(&self, images: Tensor<4>) -> Result<Extracted> {
        Ok(Extracted::of_vectors(images.flatten(1, 3)))
    }
}

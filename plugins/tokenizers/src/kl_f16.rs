//! MAR's autoencoder with a Gaussian latent.
//!
//!   mean, logvar = halves of quant_conv(encoder(image)),   x = scaling_factor mean
//!   image        = decoder(post_quant_conv(x / scaling_factor))
//!
//! Source: arXiv:2406.11838 sec. 4, arXiv:2112.10752 sec. 3.1.
//! Shapes: images `[B, 3, H, W]`, x `[B, L, z_channels]` in raster order, L = H W / stride^2.
//!
//! The reference trains on samples from N(mean, exp(logvar)), taken anew in each epoch. `Tokenizer::encode`
//! depends on the image alone, so it returns the mean.

use crate::IMAGE_CHANNELS;
use crate::kl::KlNetwork;
use framework::checkpoint::names::{Layout, OFFICIAL, OfficialName, OfficialNames};
use framework::checkpoint::official::{self, Report};
use framework::data::tokenizer::{ImageShape, Tokenizer};
use framework::error::{Problems, Result};
use framework::nn::autoencoder::AutoencoderConfig;
use framework::nn::parameters;
use framework::nn::{from_positions, to_positions};
use framework::prelude::*;
use framework::process::Latent;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

/// MAR's autoencoder with a Gaussian latent. An image is encoded to the mean. The defaults match `kl16.ckpt`,
/// in which one position covers 16x16 pixels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path"]))]
pub struct KlF16 {
    /// The official file (.ckpt), or the same file converted to .safetensors. A relative path starts at the
    /// working directory.
    pub path: PathBuf,
    /// Channels of the latent.
    #[schemars(range(min = 1, max = 4096))]
    pub z_channels: usize,
    /// Width of the first layer in channels; a multiple of 32.
    #[schemars(range(min = 32, max = 4096))]
    pub ch: usize,
    /// Width of each level as a multiple of `ch`, finest level first. Each level but the last halves height
    /// and width.
    #[schemars(length(min = 1, max = 8), inner(range(min = 1, max = 64)))]
    pub ch_mult: Vec<usize>,
    /// Residual blocks per level of the encoder. Each level of the decoder has one more.
    #[schemars(range(min = 1, max = 64))]
    pub num_res_blocks: usize,
    /// Factor that multiplies the mean to give about unit variance; above 0, unitless.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub scaling_factor: f64,
    #[serde(skip)]
    network: Option<KlNetwork>,
}

impl Default for KlF16 {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            z_channels: 16,
            ch: 128,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            scaling_factor: 0.2325,
            network: None,
        }
    }
}

framework::register!(tokenizer "kl_f16" => KlF16, "arXiv:2406.11838", "arXiv:2112.10752");

impl KlF16 {
    fn sizes(&self) -> AutoencoderConfig {
        AutoencoderConfig {
            image_channels: IMAGE_CHANNELS,
            ch: self.ch,
            ch_mult: self.ch_mult.clone(),
            num_res_blocks: self.num_res_blocks,
            attention: Vec::new(),
        }
    }

    /// Creates the network. Its parameters are not allocated yet. Only the encoder has attention, at its
    /// coarsest level.
    pub fn init(&self, device: &Device) -> KlNetwork {
        let sizes = self.sizes();
        let attended = AutoencoderConfig { attention: vec![self.ch_mult.len() - 1], ..sizes.clone() };
        KlNetwork::new(&attended, &sizes, self.z_channels, device)
    }

    /// Returns the names that the official files use. They equal ours.
    pub fn formats(&self) -> Vec<OfficialNames> {
        vec![OfficialNames {
            format: OFFICIAL,
            folder: "",
            of: Arc::new(|path| OfficialName { name: path.to_string(), layout: Layout::Same }),
            nesting: &["model."],
            ignored: &[("loss.", "networks of the training loss")],
            optional: &[],
        }]
    }

    fn read(&self, path: &FilePath, device: &Device) -> Result<(KlNetwork, Report)> {
        official::load_whole(self.init(device), &self.formats(), path)
    }

    fn network(&self) -> &KlNetwork {
        self.network.as_ref().expect("`load` is called before the first image")
    }
}

impl Tokenizer for KlF16 {
    fn check(&self) -> Problems {
        let mut problems = self.sizes().check();
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            let what = format!("`scaling_factor` is {}", self.scaling_factor);
            problems.push(Problem::new("/scaling_factor", what).accepts("a number above 0"));
        }
        problems
    }

    fn latent_shape(&self, image: ImageShape) -> Result<LatentShape, Problems> {
        Ok(LatentShape::values(self.sizes().grid(image)?, self.z_channels))
    }

    fn image_shape(&self, latent: LatentShape) -> ImageShape {
        self.sizes().image(latent.grid)
    }

    fn load(&mut self, device: &Device) -> Result<()> {
        self.network = Some(self.read(&self.path, device)?.0);
        Ok(())
    }

    fn convert(&self, from: &FilePath, to: &FilePath, format: Option<&str>) -> Result<Option<Report>> {
        official::convert(self.init(&Device::flex()), &self.formats(), [from, to], format).map(Some)
    }

    fn parameters(&self) -> usize {
        parameters::count(&self.init(&Device::flex()))
    }

    fn encode(&self, images: Tensor<4>) -> Latent {
        let mean = self.network().moments(images).narrow(1, 0, self.z_channels);
        Latent::Values(to_positions(mean) * self.scaling_factor)
    }

    fn decode(&self, latent: Latent, [_, height, width]: ImageShape) -> Tensor<4> {
        let Latent::Values(x) = latent else { panic!("tokenizer \"kl_f16\" decodes values, not tokens") };
        let (network, stride) = (self.network(), self.sizes().stride());
        let x = from_positions(x / self.scaling_factor, [height / stride, width / stride]);
        network.decode(x)
    }
}

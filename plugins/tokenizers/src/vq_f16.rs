//! LlamaGen's vector-quantised autoencoder.
//!
//!   z = quant_conv(encoder(image)),   id = argmin_k |u(z) - u(e_k)|^2,   u(v) = v / |v|
//!   image = decoder(post_quant_conv(u(e_id)))
//!
//! Source: arXiv:2406.06525 sec. 2.1, arXiv:2012.09841; arXiv:2110.04627 for the unit vectors.
//! Shapes: images `[B, 3, H, W]`, ids `[B, L]` in raster order, L = H W / stride^2.

use crate::IMAGE_CHANNELS;
use crate::quantize::{look_up, nearest, unit};
use framework::burn::module::{Module, Param};
use framework::checkpoint::names::{Layout, OFFICIAL, OfficialName, OfficialNames};
use framework::checkpoint::official::{self, Report};
use framework::data::tokenizer::{ImageShape, Tokenizer};
use framework::error::{Problems, Result};
use framework::nn::autoencoder::{AutoencoderConfig, Decoder, Encoder};
use framework::nn::parameters;
use framework::nn::{Conv2d, from_positions, parameter, to_positions};
use framework::prelude::*;
use framework::process::Latent;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

/// LlamaGen's vector-quantised autoencoder, with tokens in raster order. The defaults match `vq_ds16_c2i.pt`,
/// in which one token covers 16x16 pixels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path"]))]
pub struct VqF16 {
    /// The official file (.pt), or the same file converted to .safetensors. A relative path starts at the
    /// working directory.
    pub path: PathBuf,
    /// Number of codes, which is the vocabulary.
    #[schemars(range(min = 2, max = 1_048_576))]
    pub codebook_size: usize,
    /// Channels per code.
    #[schemars(range(min = 1, max = 4096))]
    pub codebook_embed_dim: usize,
    /// Channels of the features between encoder or decoder and the codes.
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
    /// Whether codes are scaled to length one before they are compared and decoded.
    pub codebook_l2_norm: bool,
    #[serde(skip)]
    network: Option<VqNetwork>,
}

impl Default for VqF16 {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            codebook_size: 16_384,
            codebook_embed_dim: 8,
            z_channels: 256,
            ch: 128,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            codebook_l2_norm: true,
            network: None,
        }
    }
}

framework::register!(tokenizer "vq_f16" => VqF16, "arXiv:2406.06525", "arXiv:2012.09841");

impl VqF16 {
    fn sizes(&self) -> AutoencoderConfig {
        let coarsest = self.ch_mult.len().saturating_sub(1);
        AutoencoderConfig {
            image_channels: IMAGE_CHANNELS,
            ch: self.ch,
            ch_mult: self.ch_mult.clone(),
            num_res_blocks: self.num_res_blocks,
            attention: vec![coarsest],
        }
    }

    /// Creates the network. Its parameters are not allocated yet.
    pub fn init(&self, device: &Device) -> VqNetwork {
        let sizes = self.sizes();
        VqNetwork {
            encoder: Encoder::new(&sizes, self.z_channels, device),
            quant_conv: Conv2d::new(self.z_channels, self.codebook_embed_dim, 1, device),
            codebook: parameter([self.codebook_size, self.codebook_embed_dim], device),
            post_quant_conv: Conv2d::new(self.codebook_embed_dim, self.z_channels, 1, device),
            decoder: Decoder::new(&sizes, self.z_channels, device),
            unit_codes: self.codebook_l2_norm,
        }
    }

    /// Returns the names that the official files use.
    pub fn formats(&self) -> Vec<OfficialNames> {
        let coarsest = self.sizes().ch_mult.len() - 1;
        vec![OfficialNames {
            format: OFFICIAL,
            folder: "",
            of: Arc::new(move |path| OfficialName { name: name(path, coarsest), layout: Layout::Same }),
            nesting: &["model."],
            ignored: &[("quantize.codebook_used", "the codes that training used last")],
            optional: &[],
        }]
    }

    fn read(&self, path: &FilePath, device: &Device) -> Result<(VqNetwork, Report)> {
        official::load_whole(self.init(device), &self.formats(), path)
    }

    fn network(&self) -> &VqNetwork {
        self.network.as_ref().expect("`load` is called before the first image")
    }
}

/// Converts our name to the official one, which counts the levels of the decoder from the coarsest and has a
/// list of middle blocks.
fn name(path: &str, coarsest: usize) -> String {
    let path =
        path.replace("mid.block_1.", "mid.0.").replace("mid.attn_1.", "mid.1.").replace("mid.block_2.", "mid.2.");
    let parts: Vec<&str> = path.splitn(4, '.').collect();
    match parts[..] {
        ["codebook"] => "quantize.embedding.weight".to_string(),
        [network, "down", level, rest] => format!("{network}.conv_blocks.{level}.{}", rest.replace("block.", "res.")),
        [network, "up", level, rest] => {
            let level: usize = level.parse().expect("the level is an index");
            format!("{network}.conv_blocks.{}.{}", coarsest - level, rest.replace("block.", "res."))
        }
        _ => path,
    }
}

/// The weights of a [`VqF16`].
#[derive(Module, Debug)]
pub struct VqNetwork {
    /// Maps images to features.
    pub encoder: Encoder,
    /// Maps features to the channels of the codes.
    pub quant_conv: Conv2d,
    /// The codes, `[V, D]`.
    pub codebook: Param<Tensor<2>>,
    /// Maps codes to features.
    pub post_quant_conv: Conv2d,
    /// Maps features to images.
    pub decoder: Decoder,
    #[module(skip)]
    unit_codes: bool,
}

impl VqNetwork {
    fn scaled(&self, x: Tensor<2>) -> Tensor<2> {
        if self.unit_codes { unit(x) } else { x }
    }

    /// Quantises features `[B, D, h, w]` to ids `[B, h w]`.
    pub fn quantize(&self, features: Tensor<4>) -> Tensor<2, Int> {
        let [batch, width, height, columns] = features.dims();
        let z = to_positions(features).reshape([batch * height * columns, width]);
        nearest(self.scaled(z), self.scaled(self.codebook.val())).reshape([batch, height * columns])
    }

    /// Returns the codes of ids `[B, h w]` as `[B, D, h, w]`, the input of `post_quant_conv`.
    pub fn codes(&self, ids: Tensor<2, Int>, grid: [usize; 2]) -> Tensor<4> {
        from_positions(look_up(ids, self.scaled(self.codebook.val())), grid)
    }
}

impl Tokenizer for VqF16 {
    fn check(&self) -> Problems {
        self.sizes().check()
    }

    fn latent_shape(&self, image: ImageShape) -> Result<LatentShape, Problems> {
        Ok(LatentShape::tokens(self.sizes().grid(image)?, self.codebook_size))
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
        let network = self.network();
        Latent::Ids(network.quantize(network.quant_conv.forward(network.encoder.forward(images))))
    }

    fn decode(&self, latent: Latent, [_, height, width]: ImageShape) -> Tensor<4> {
        let (network, stride) = (self.network(), self.sizes().stride());
        let codes = network.codes(latent.ids(), [height / stride, width / stride]);
        network.decoder.forward(network.post_quant_conv.forward(codes))
    }
}

//! VAR's multi-scale residual autoencoder: the contributions of a pyramid of token maps sum to the features.
//!
//!   f = quant_conv(encoder(image)),   r_1 = f
//!   ids_k = nearest(area(r_k, s_k)),   h_k = phi_k(bicubic(e[ids_k], s_K)),   r_{k+1} = r_k - h_k
//!   image = decoder(post_quant_conv(h_1 + .. + h_K)), clamped to [-1, 1]
//!   phi(h) = (1 - quant_resi) h + quant_resi conv(h)
//!
//! The backbone predicts the tokens of level k + 1 from the features `area(h_1 + .. + h_k, s_{k+1})`. The
//! features of level 1 are zeros.
//!
//! Source: arXiv:2404.02905 alg. 1 and 2. Shapes: images `[B, 3, H, H]`, f `[B, z_channels, s_K, s_K]`, ids
//! `[B, s_1^2 + .. + s_K^2]` level by level in raster order, for K levels with sides s.

use crate::IMAGE_CHANNELS;
use crate::quantize::{look_up, nearest, unit};
use framework::burn::module::{Module, Param};
use framework::checkpoint::names::{Layout, OFFICIAL, OfficialName, OfficialNames};
use framework::checkpoint::official::{self, Report};
use framework::data::tokenizer::{ImageShape, LevelCodec, Tokenizer};
use framework::error::{Problems, Result};
use framework::nn::autoencoder::{AutoencoderConfig, Decoder, Encoder};
use framework::nn::parameters;
use framework::nn::{Conv2d, Resampling, from_positions, parameter, resize, to_positions};
use framework::prelude::*;
use framework::process::Latent;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

/// VAR's multi-scale residual autoencoder, with token maps of increasing size. The defaults match
/// `vae_ch160v4096z32.pth` for images of 256x256 pixels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path"]))]
pub struct VarVqvae {
    /// The official file (.pth), or the same file converted to .safetensors. A relative path starts at the
    /// working directory.
    pub path: PathBuf,
    /// Number of codes, which is the vocabulary. All levels share the codes.
    #[schemars(range(min = 2, max = 1_048_576))]
    pub vocab_size: usize,
    /// Channels of the codes and of the features.
    #[schemars(range(min = 1, max = 4096))]
    pub z_channels: usize,
    /// Width of the first layer in channels; a multiple of 32.
    #[schemars(range(min = 32, max = 4096))]
    pub ch: usize,
    /// Width of each level of encoder and decoder as a multiple of `ch`, finest level first. Each level but
    /// the last halves height and width.
    #[schemars(length(min = 1, max = 8), inner(range(min = 1, max = 64)))]
    pub ch_mult: Vec<usize>,
    /// Residual blocks per level of the encoder. Each level of the decoder has one more.
    #[schemars(range(min = 1, max = 64))]
    pub num_res_blocks: usize,
    /// Sides of the token maps, in ascending order. The last one is the side of the features. The published
    /// sides for 512x512 pixels are 1, 2, 3, 4, 6, 9, 13, 18, 24, 32.
    #[schemars(length(min = 1, max = 64), inner(range(min = 1, max = 1024)))]
    pub v_patch_nums: Vec<usize>,
    /// Number of convolutions phi, which the levels share.
    #[schemars(range(min = 2, max = 64))]
    pub share_quant_resi: usize,
    /// Weight of the convolution in phi, above 0 and at most 1, unitless.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub quant_resi: f64,
    /// Kernel side of the convolutions before and after quantisation; an odd number.
    #[schemars(range(min = 1, max = 31))]
    pub quant_conv_ks: usize,
    /// Whether codes are scaled to length one before they are compared.
    pub using_znorm: bool,
    #[serde(skip)]
    network: Option<VarNetwork>,
}

impl Default for VarVqvae {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            vocab_size: 4096,
            z_channels: 32,
            ch: 160,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            v_patch_nums: vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            share_quant_resi: 4,
            quant_resi: 0.5,
            quant_conv_ks: 3,
            using_znorm: false,
            network: None,
        }
    }
}

framework::register!(tokenizer "var_vqvae" => VarVqvae, "arXiv:2404.02905", "arXiv:2012.09841");

impl VarVqvae {
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

    fn shape(&self) -> LatentShape {
        LatentShape::pyramid(&self.v_patch_nums, self.vocab_size, self.z_channels)
    }

    /// Creates the network. Its parameters are not allocated yet.
    pub fn init(&self, device: &Device) -> VarNetwork {
        let (sizes, width) = (self.sizes(), self.z_channels);
        let conv = |kernel: usize| Conv2d::new(width, width, kernel, device);
        VarNetwork {
            encoder: Encoder::new(&sizes, width, device),
            quant_conv: conv(self.quant_conv_ks),
            codebook: parameter([self.vocab_size, width], device),
            phi: (0..self.share_quant_resi).map(|_| conv(3)).collect(),
            post_quant_conv: conv(self.quant_conv_ks),
            decoder: Decoder::new(&sizes, width, device),
            sides: self.v_patch_nums.clone(),
            share: self.quant_resi,
            unit_codes: self.using_znorm,
        }
    }

    /// Returns the names that the official files use.
    pub fn formats(&self) -> Vec<OfficialNames> {
        vec![OfficialNames {
            format: OFFICIAL,
            folder: "",
            of: Arc::new(name),
            nesting: &[],
            ignored: &[("quantize.ema_vocab_hit_SV", "how often training used each code")],
            optional: &[],
        }]
    }

    fn read(&self, path: &FilePath, device: &Device) -> Result<(VarNetwork, Report)> {
        official::load_whole(self.init(device), &self.formats(), path)
    }

    fn network(&self) -> &VarNetwork {
        self.network.as_ref().expect("`load` is called before the first image")
    }
}

/// Converts our name to the official one. Official files hold queries, keys and values in one tensor.
fn name(path: &str) -> OfficialName {
    for (index, map) in [".q.", ".k.", ".v."].into_iter().enumerate() {
        if path.contains(map) {
            return OfficialName { name: path.replace(map, ".qkv."), layout: Layout::Part { index, of: 3 } };
        }
    }
    let name = match path.strip_prefix("phi.") {
        Some(rest) => format!("quantize.quant_resi.qresi_ls.{rest}"),
        None => path.replace("codebook", "quantize.embedding.weight"),
    };
    OfficialName { name, layout: Layout::Same }
}

/// Returns the position of each of `count` convolutions phi on the axis from the first level, 0, to the last,
/// 1.
///
/// The values equal NumPy's to the last bit, because rounding decides ties: with ten levels and four
/// convolutions, levels three and eight are half-way between two convolutions
/// (`published_levels_use_these_convolutions`).
pub fn phi_ticks(count: usize) -> Vec<f64> {
    let margin = if count == 4 { 1.0 / 3.0 / 4.0 } else { 1.0 / 2.0 / count as f64 };
    let (first, last) = (margin, 1.0 - margin);
    let step = (last - first) / (count - 1) as f64;
    let mut ticks: Vec<f64> = (0..count).map(|i| i as f64 * step + first).collect();
    ticks[count - 1] = last;
    ticks
}

/// Returns the index of the convolution phi nearest to each of `levels` levels.
pub fn phi_of_levels(count: usize, levels: usize) -> Vec<usize> {
    let ticks = phi_ticks(count);
    let nearest = |level: usize| {
        let at = level as f64 / levels.saturating_sub(1).max(1) as f64;
        let apart = |i: &usize| (ticks[*i] - at).abs();
        (0..count).min_by(|a, b| apart(a).total_cmp(&apart(b))).expect("there is at least one phi")
    };
    (0..levels).map(nearest).collect()
}

/// The weights of a [`VarVqvae`].
#[derive(Module, Debug)]
pub struct VarNetwork {
    /// Maps images to features.
    pub encoder: Encoder,
    /// Convolution after the encoder.
    pub quant_conv: Conv2d,
    /// The codes, `[V, C]`.
    pub codebook: Param<Tensor<2>>,
    /// Convolutions phi, applied to the codes of a level after resizing to full size.
    pub phi: Vec<Conv2d>,
    /// Convolution before the decoder.
    pub post_quant_conv: Conv2d,
    /// Maps features to images.
    pub decoder: Decoder,
    #[module(skip)]
    sides: Vec<usize>,
    #[module(skip)]
    share: f64,
    #[module(skip)]
    unit_codes: bool,
}

impl VarNetwork {
    /// Computes the contribution of the tokens `[B, side^2]` of a level to the features `[B, C, s_K, s_K]`.
    fn contribution(&self, level: usize, ids: Tensor<2, Int>) -> Tensor<4> {
        let (side, full) = (self.sides[level], self.sides[self.sides.len() - 1]);
        let codes = from_positions(look_up(ids, self.codebook.val()), [side, side]);
        let codes = resize(codes, [full, full], Resampling::Bicubic);
        let phi = &self.phi[phi_of_levels(self.phi.len(), self.sides.len())[level]];
        codes.clone() * (1.0 - self.share) + phi.forward(codes) * self.share
    }

    /// Quantises features `[B, C, s_K, s_K]` to the tokens `[B, side^2]` of each level.
    pub fn quantize(&self, features: Tensor<4>) -> Vec<Tensor<2, Int>> {
        let [batch, width, ..] = features.dims();
        let compared = |x: Tensor<2>| if self.unit_codes { unit(x) } else { x };
        let (mut rest, mut all) = (features, Vec::new());
        for (level, side) in self.sides.iter().copied().enumerate() {
            let z = to_positions(resize(rest.clone(), [side, side], Resampling::Area));
            let z = z.reshape([batch * side * side, width]);
            let ids = nearest(compared(z), compared(self.codebook.val())).reshape([batch, side * side]);
            rest = rest - self.contribution(level, ids.clone());
            all.push(ids);
        }
        all
    }

    /// Computes the running sum of the contributions of the first levels, one `[B, C, s_K, s_K]` per level.
    pub fn accumulate(&self, ids: &[Tensor<2, Int>]) -> Vec<Tensor<4>> {
        let mut sums: Vec<Tensor<4>> = Vec::new();
        for (level, ids) in ids.iter().enumerate() {
            let term = self.contribution(level, ids.clone());
            sums.push(match sums.last() {
                Some(sum) => sum.clone() + term,
                None => term,
            });
        }
        sums
    }

    /// Decodes features to images, not yet clamped to [-1, 1].
    pub fn image(&self, features: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(self.post_quant_conv.forward(features))
    }

    /// Splits the tokens `[B, position]` of all levels by level.
    fn levels(&self, ids: Tensor<2, Int>) -> Vec<Tensor<2, Int>> {
        ids.split_with_sizes(self.sides.iter().map(|side| side * side).collect(), 1)
    }
}

impl LevelCodec for VarVqvae {
    fn features(&self, ids: &[Tensor<2, Int>], batch: usize, device: &Device) -> Tensor<3> {
        let network = self.network();
        let first = self.v_patch_nums[0];
        let mut features = vec![Tensor::zeros([batch, first * first, self.z_channels], device)];
        for (sum, side) in network.accumulate(ids).into_iter().zip(&self.v_patch_nums[1..]) {
            features.push(to_positions(resize(sum, [*side, *side], Resampling::Area)));
        }
        Tensor::cat(features, 1)
    }
}

impl Tokenizer for VarVqvae {
    fn check(&self) -> Problems {
        let mut problems = self.sizes().check();
        if !self.v_patch_nums.is_sorted_by(|a, b| a < b) {
            problems.push(
                Problem::new("/v_patch_nums", format!("`v_patch_nums` {:?} is not ascending", self.v_patch_nums))
                    .accepts("sides from coarse to fine, such as [1, 2, 3, 4]"),
            );
        }
        if self.quant_conv_ks.is_multiple_of(2) {
            let what = format!("`quant_conv_ks` = {} is even", self.quant_conv_ks);
            problems.push(Problem::new("/quant_conv_ks", what).accepts("an odd number"));
        }
        problems
    }

    fn latent_shape(&self, image: ImageShape) -> Result<LatentShape, Problems> {
        let (shape, sizes) = (self.shape(), self.sizes());
        let [rows, columns] = sizes.grid(image)?;
        if [rows, columns] == shape.grid {
            return Ok(shape);
        }
        let ([_, height, width], [_, side, _]) = (image, sizes.image(shape.grid));
        let last = shape.grid[0];
        let what = format!(
            "images of {height}x{width} pixels have features of {rows}x{columns}, but `v_patch_nums` ends with {last}"
        );
        let problem = Problem::new("", what).accepts(format!("{side}x{side} pixels"));
        Err(vec![match rows == columns {
            true => problem.fix(format!("end /tokenizer/v_patch_nums with {rows}")),
            false => problem,
        }])
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
        let features = network.quant_conv.forward(network.encoder.forward(images));
        let ([batch, ..], device) = (features.dims(), features.device());
        let ids = network.quantize(features);
        let features = self.features(&ids[..ids.len() - 1], batch, &device);
        Latent::Levels { ids: Tensor::cat(ids, 1), features }
    }

    fn decode(&self, latent: Latent, _: ImageShape) -> Tensor<4> {
        let network = self.network();
        let features = network.accumulate(&network.levels(latent.ids())).pop().expect("there is at least one level");
        network.image(features).clamp(-1.0, 1.0)
    }

    fn codec(&self) -> Option<&dyn LevelCodec> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_levels_use_these_convolutions() {
        // Recorded from numpy.argmin(numpy.abs(numpy.linspace(1/12, 11/12, 4) - k / 9)).
        assert_eq!(phi_of_levels(4, 10), [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
    }

    #[test]
    fn one_level_uses_the_first_convolution() {
        assert_eq!(phi_of_levels(2, 1), [0]);
    }

    #[test]
    fn only_images_that_end_at_the_last_level_are_taken() {
        let entry: VarVqvae = framework::serde_json::from_str(r#"{"path": "vae.pth"}"#).unwrap();
        assert_eq!(entry.latent_shape([3, 256, 256]).unwrap().positions(), 680);
        let refused = |image| entry.latent_shape(image).unwrap_err().remove(0);
        assert_eq!(refused([3, 512, 512]).fix.as_deref(), Some("end /tokenizer/v_patch_nums with 32"));
        assert_eq!(refused([3, 256, 128]).accepts.as_deref(), Some("256x256 pixels"));
        assert_eq!(refused([3, 250, 250]).accepts.as_deref(), Some("3 channels, height and width multiples of 16"));
    }
}

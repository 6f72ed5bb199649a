//! The convolutional image encoder and decoder of VQGAN, latent diffusion, VAR, MAR and LlamaGen.
//!
//!   residual   shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + shift)))
//!   attention  x + proj_out(attention(q(n), k(n), v(n))),  n = norm(x), over the H W positions
//!   encoder    conv_in; every level: residual blocks, then half the size; middle; conv_out(silu(norm_out(x)))
//!   decoder    conv_in; middle; every level, coarsest first: residual blocks, then twice the size; conv_out as above
//!   middle     residual, attention, residual
//!
//! Source: arXiv:2012.09841 app. A, arXiv:2112.10752. Parameters have the names of the latent-diffusion code;
//! level 0 is the finest, in the encoder and in the decoder.

use super::attention::{attend, heads, merge_heads};
use super::composed::Span;
use super::conv::{Conv2d, GroupNorm, from_positions, to_positions, upsample_nearest};
use crate::error::{Problem, Problems};
use crate::kernels::GroupNormConfig;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// The normalisation settings of every published autoencoder of this family.
const NORM: GroupNormConfig = GroupNormConfig { groups: 32, epsilon: 1e-6 };

/// Sizes of an encoder or a decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoencoderConfig {
    /// Channels of the image.
    pub image_channels: usize,
    /// Width of the first layer; a multiple of 32.
    pub ch: usize,
    /// Width of each level as a multiple of `ch`, finest first. Every level except the last halves height and
    /// width.
    pub ch_mult: Vec<usize>,
    /// Number of residual blocks per level of the encoder. A level of the decoder has one more.
    pub num_res_blocks: usize,
    /// Levels with attention after each residual block. The middle always has attention.
    pub attention: Vec<usize>,
}

impl AutoencoderConfig {
    /// Checks `ch` and `ch_mult`. The pointers of the problems are relative to the entry that has these fields.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        if self.ch == 0 || !self.ch.is_multiple_of(NORM.groups) {
            problems.push(
                Problem::new("/ch", format!("`ch` = {} is not a multiple of {}", self.ch, NORM.groups))
                    .accepts(format!("a multiple of {}, the number of normalisation groups", NORM.groups)),
            );
        }
        if self.ch_mult.is_empty() || self.ch_mult.contains(&0) {
            problems.push(
                Problem::new("/ch_mult", format!("`ch_mult` = {:?} is empty or contains 0", self.ch_mult))
                    .accepts("at least one level, each 1 or more"),
            );
        }
        problems
    }

    /// Returns the side length, in pixels, of the square that one latent position represents.
    pub fn stride(&self) -> usize {
        1 << (self.ch_mult.len() - 1)
    }

    /// Returns the height and width of the latent of an image.
    ///
    /// # Errors
    /// Returns a problem if the network does not support the number of channels or the size of the image.
    pub fn grid(&self, image: [usize; 3]) -> Result<[usize; 2], Problems> {
        let ([channels, height, width], stride) = (image, self.stride());
        let fits = |side: usize| side > 0 && side.is_multiple_of(stride);
        if channels == self.image_channels && fits(height) && fits(width) {
            return Ok([height / stride, width / stride]);
        }
        let what = format!("cannot encode images with {channels} channels and {height}x{width} pixels");
        let accepts = format!("{} channels, height and width multiples of {stride}", self.image_channels);
        Err(vec![Problem::new("", what).accepts(accepts)])
    }

    /// Returns the shape of the image of a latent.
    pub fn image(&self, grid: [usize; 2]) -> [usize; 3] {
        [self.image_channels, grid[0] * self.stride(), grid[1] * self.stride()]
    }

    fn width(&self, level: usize) -> usize {
        self.ch * self.ch_mult[level]
    }

    fn coarsest(&self) -> usize {
        self.ch_mult.len() - 1
    }
}

/// Two convolutions with a shortcut. If the width changes, the shortcut is a 1x1 convolution.
///
/// Source: arXiv:1512.03385 (residual blocks), in the order of arXiv:1603.05027.
#[derive(Module, Debug)]
pub struct ResidualBlock {
    /// Before the first convolution.
    pub norm1: GroupNorm,
    /// To the output width.
    pub conv1: Conv2d,
    /// Before the second convolution.
    pub norm2: GroupNorm,
    /// At the output width.
    pub conv2: Conv2d,
    /// The shortcut, if the width changes.
    pub nin_shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    /// Creates the block. Its parameters are not allocated yet.
    pub fn new(inputs: usize, outputs: usize, norm: GroupNormConfig, device: &Device) -> Self {
        Self {
            norm1: GroupNorm::new(inputs, norm, device),
            conv1: Conv2d::new(inputs, outputs, 3, device),
            norm2: GroupNorm::new(outputs, norm, device),
            conv2: Conv2d::new(outputs, outputs, 3, device),
            nin_shortcut: (inputs != outputs).then(|| Conv2d::new(inputs, outputs, 1, device)),
        }
    }

    /// Applies the block. Shapes: `x` `[B, in, H, W]` to `[B, out, H, W]`; `shift` `[B, out]` is added between
    /// the convolutions. A diffusion network passes its time embedding as `shift`.
    pub fn forward(&self, x: Tensor<4>, shift: Option<Tensor<2>>) -> Tensor<4> {
        let mut hidden = self.conv1.forward(self.norm1.forward_silu(x.clone()));
        if let Some(shift) = shift {
            hidden = hidden + shift.unsqueeze_dims(&[2, 3]);
        }
        let hidden = self.conv2.forward(self.norm2.forward_silu(hidden));
        match &self.nin_shortcut {
            Some(shortcut) => shortcut.forward(x) + hidden,
            None => x + hidden,
        }
    }
}

/// Self-attention with one head over the positions of an image. All projections are 1x1 convolutions.
#[derive(Module, Debug)]
pub struct AttentionBlock {
    /// Before the projections.
    pub norm: GroupNorm,
    /// Queries.
    pub q: Conv2d,
    /// Keys.
    pub k: Conv2d,
    /// Values.
    pub v: Conv2d,
    /// Output projection.
    pub proj_out: Conv2d,
}

impl AttentionBlock {
    /// Creates the block. Its parameters are not allocated yet.
    pub fn new(width: usize, norm: GroupNormConfig, device: &Device) -> Self {
        let conv = || Conv2d::new(width, width, 1, device);
        Self { norm: GroupNorm::new(width, norm, device), q: conv(), k: conv(), v: conv(), proj_out: conv() }
    }

    /// Applies the block. Shapes: `[B, C, H, W]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let normal = self.norm.forward(x.clone());
        let map = |conv: &Conv2d| heads(to_positions(conv.forward(normal.clone())), 1);
        let mixed = attend([map(&self.q), map(&self.k), map(&self.v)], Span::All, None, None);
        x + self.proj_out.forward(from_positions(merge_heads(mixed), [height, width]))
    }
}

/// The convolution of a level that halves or doubles height and width.
#[derive(Module, Debug)]
pub struct Resample {
    /// 3x3.
    pub conv: Conv2d,
}

/// The residual blocks of one level of an encoder.
#[derive(Module, Debug)]
pub struct Down {
    /// The residual blocks, in order.
    pub block: Vec<ResidualBlock>,
    /// One attention block after each residual block, or none.
    pub attn: Vec<AttentionBlock>,
    /// Halves the size; absent in the coarsest level. Pads with zeros only after the last row and column.
    pub downsample: Option<Resample>,
}

/// The residual blocks of one level of a decoder.
#[derive(Module, Debug)]
pub struct Up {
    /// The residual blocks, in order.
    pub block: Vec<ResidualBlock>,
    /// One attention block after each residual block, or none.
    pub attn: Vec<AttentionBlock>,
    /// Doubles the size; absent in the finest level.
    pub upsample: Option<Resample>,
}

/// The blocks between the levels and the latent.
#[derive(Module, Debug)]
pub struct Middle {
    /// First.
    pub block_1: ResidualBlock,
    /// Second.
    pub attn_1: AttentionBlock,
    /// Third.
    pub block_2: ResidualBlock,
}

/// Creates `count` residual blocks of a level, and one attention block for each if the level has attention.
fn blocks(
    config: &AutoencoderConfig,
    level: usize,
    inputs: usize,
    count: usize,
    device: &Device,
) -> (Vec<ResidualBlock>, Vec<AttentionBlock>) {
    let width = config.width(level);
    let block = |i: usize| ResidualBlock::new(if i == 0 { inputs } else { width }, width, NORM, device);
    let attended = if config.attention.contains(&level) { count } else { 0 };
    ((0..count).map(block).collect(), (0..attended).map(|_| AttentionBlock::new(width, NORM, device)).collect())
}

fn run(block: &[ResidualBlock], attn: &[AttentionBlock], mut x: Tensor<4>) -> Tensor<4> {
    for (i, block) in block.iter().enumerate() {
        x = block.forward(x, None);
        if let Some(attn) = attn.get(i) {
            x = attn.forward(x);
        }
    }
    x
}

impl Middle {
    fn new(width: usize, device: &Device) -> Self {
        Self {
            block_1: ResidualBlock::new(width, width, NORM, device),
            attn_1: AttentionBlock::new(width, NORM, device),
            block_2: ResidualBlock::new(width, width, NORM, device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.block_2.forward(self.attn_1.forward(self.block_1.forward(x, None)), None)
    }
}

/// The encoder, which maps images to features.
#[derive(Module, Debug)]
pub struct Encoder {
    /// To the width of the first layer.
    pub conv_in: Conv2d,
    /// The levels, finest first.
    pub down: Vec<Down>,
    /// At the coarsest size.
    pub mid: Middle,
    /// Before the last convolution.
    pub norm_out: GroupNorm,
    /// To the channels of the features.
    pub conv_out: Conv2d,
}

impl Encoder {
    /// Creates the encoder. `outputs` is the number of feature channels: twice the number of latent channels if
    /// the encoder predicts a variance. The parameters are not allocated yet.
    pub fn new(config: &AutoencoderConfig, outputs: usize, device: &Device) -> Self {
        let level = |level: usize| {
            let inputs = if level == 0 { config.ch } else { config.width(level - 1) };
            let (block, attn) = blocks(config, level, inputs, config.num_res_blocks, device);
            let width = config.width(level);
            let halve = || Resample { conv: Conv2d::new(width, width, 3, device).with_stride(2, (0, 1)) };
            Down { block, attn, downsample: (level < config.coarsest()).then(halve) }
        };
        let width = config.width(config.coarsest());
        Self {
            conv_in: Conv2d::new(config.image_channels, config.ch, 3, device),
            down: (0..config.ch_mult.len()).map(level).collect(),
            mid: Middle::new(width, device),
            norm_out: GroupNorm::new(width, NORM, device),
            conv_out: Conv2d::new(width, outputs, 3, device),
        }
    }

    /// Encodes images. Shapes: `[B, C, H, W]` to `[B, outputs, H / stride, W / stride]`.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let mut x = self.conv_in.forward(image);
        for level in &self.down {
            x = run(&level.block, &level.attn, x);
            if let Some(halve) = &level.downsample {
                x = halve.conv.forward(x);
            }
        }
        self.conv_out.forward(self.norm_out.forward_silu(self.mid.forward(x)))
    }
}

/// The decoder, which maps latents to images.
#[derive(Module, Debug)]
pub struct Decoder {
    /// To the width of the coarsest level.
    pub conv_in: Conv2d,
    /// At the coarsest size.
    pub mid: Middle,
    /// The levels, finest first; they run in reverse order.
    pub up: Vec<Up>,
    /// Before the last convolution.
    pub norm_out: GroupNorm,
    /// To the channels of the image.
    pub conv_out: Conv2d,
}

impl Decoder {
    /// Creates the decoder. `inputs` is the number of channels of the latent. The parameters are not allocated
    /// yet.
    pub fn new(config: &AutoencoderConfig, inputs: usize, device: &Device) -> Self {
        let coarsest = config.coarsest();
        let level = |level: usize| {
            let inputs = config.width((level + 1).min(coarsest));
            let (block, attn) = blocks(config, level, inputs, config.num_res_blocks + 1, device);
            let width = config.width(level);
            let double = || Resample { conv: Conv2d::new(width, width, 3, device) };
            Up { block, attn, upsample: (level > 0).then(double) }
        };
        Self {
            conv_in: Conv2d::new(inputs, config.width(coarsest), 3, device),
            mid: Middle::new(config.width(coarsest), device),
            up: (0..=coarsest).map(level).collect(),
            norm_out: GroupNorm::new(config.width(0), NORM, device),
            conv_out: Conv2d::new(config.width(0), config.image_channels, 3, device),
        }
    }

    /// Decodes latents. Shapes: `[B, inputs, h, w]` to `[B, C, h stride, w stride]`.
    pub fn forward(&self, latent: Tensor<4>) -> Tensor<4> {
        let mut x = self.mid.forward(self.conv_in.forward(latent));
        for level in self.up.iter().rev() {
            x = run(&level.block, &level.attn, x);
            if let Some(double) = &level.upsample {
                x = double.conv.forward(upsample_nearest(x));
            }
        }
        self.conv_out.forward(self.norm_out.forward_silu(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::parameters::{Init, initialize, parameters};
    use crate::random::{Random, tensor};
    use burn::tensor::DType;

    fn config() -> AutoencoderConfig {
        AutoencoderConfig { image_channels: 3, ch: 32, ch_mult: vec![1, 2, 2], num_res_blocks: 1, attention: vec![2] }
    }

    #[test]
    fn stride_is_one_halving_a_level_but_the_last() {
        assert_eq!(config().grid([3, 8, 12]).unwrap(), [2, 3]);
        assert_eq!(config().image([2, 3]), [3, 8, 12]);
        for image in [[3, 10, 12], [3, 8, 6], [1, 8, 8], [3, 0, 8]] {
            let problem = &config().grid(image).unwrap_err()[0];
            assert_eq!(problem.accepts.as_deref(), Some("3 channels, height and width multiples of 4"));
        }
    }

    #[test]
    fn sizes_without_groups_or_levels_are_refused() {
        assert!(config().check().is_empty());
        let wrong = AutoencoderConfig { ch: 40, ch_mult: vec![1, 0], ..config() };
        let at: Vec<String> = wrong.check().into_iter().flat_map(|problem| problem.at).collect();
        assert_eq!(at, ["/ch", "/ch_mult"]);
    }

    #[test]
    fn image_and_latent_have_the_stated_sizes() {
        let device = Device::flex();
        let draw = |path: &str, _: &[usize]| if path.contains("norm") { Init::Ones } else { Init::Normal(0.05) };
        let encoder = initialize(Encoder::new(&config(), 8, &device), &Random::new(0), &draw);
        let decoder = initialize(Decoder::new(&config(), 4, &device), &Random::new(1), &draw);
        let values = Random::new(2).uniform("image", 0, 0, 2 * 3 * 8 * 12);
        let features = encoder.forward(tensor(&values, [2, 3, 8, 12], DType::F32, &device));
        assert_eq!(features.dims(), [2, 8, 2, 3]);
        assert_eq!(decoder.forward(features.narrow(1, 0, 4)).dims(), [2, 3, 8, 12]);
        // Attention is after every block of the coarsest level, and in the middle.
        let attended = |module: &[(String, Vec<usize>, bool)]| {
            module.iter().filter(|(path, ..)| path.ends_with("q.weight")).map(|(path, ..)| path.clone()).collect()
        };
        let names: Vec<String> = attended(&parameters(&decoder));
        assert_eq!(names, ["mid.attn_1.q.weight", "up.2.attn.0.q.weight", "up.2.attn.1.q.weight"]);
    }

    #[test]
    fn a_shift_enters_between_the_convolutions() {
        let device = Device::flex();
        let draw = |path: &str, _: &[usize]| if path.contains("norm") { Init::Ones } else { Init::Normal(0.1) };
        let norm = GroupNormConfig { groups: 2, epsilon: 1e-5 };
        let block = initialize(ResidualBlock::new(4, 8, norm, &device), &Random::new(0), &draw);
        let values = Random::new(1).uniform("x", 0, 0, 2 * 4 * 9);
        let x: Tensor<4> = tensor(&values, [2, 4, 3, 3], DType::F32, &device);
        let plain = block.forward(x.clone(), None).into_data();
        assert_eq!(block.forward(x.clone(), Some(Tensor::zeros([2, 8], &device))).into_data(), plain);
        let shift = tensor(&(0..16).map(f64::from).collect::<Vec<_>>(), [2, 8], DType::F32, &device);
        assert_ne!(block.forward(x, Some(shift)).into_data(), plain);
    }
}

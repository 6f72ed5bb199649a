//! The text-conditional U-Net of latent diffusion; Stable Diffusion 1.5 is its published size.
//!
//! Source: arXiv:2112.10752; its guidance input is that of GFT on Stable Diffusion, arXiv:2501.15420, and of latent
//! consistency models, arXiv:2310.04378. Read this file first; `unet.rs` holds the blocks, `checkpoint.rs` the official
//! names. Shapes: x_t `[B, H W, C]` in raster order, text `[B, K, T]`.

#[cfg(test)]
use framework_dylib as _;

mod checkpoint;
mod unet;

use framework::backbone::{Backbone, BackboneConfig};
use framework::burn;
use framework::burn::module::Module;
use framework::error::Problems;
use framework::foreign::ForeignNames;
use framework::nn::autoencoder::Resample;
use framework::nn::{
    Conv2d, EmbeddingInit, GroupNorm, GroupNormConfig, TextEncoder, TextEncoderConfig, TimestepEmbedder,
    from_positions, guidance_sinusoid, silu, sinusoid, to_positions,
};
use framework::prelude::*;
use framework::vp::{Betas, VpConfig};
use framework::weights::Init;
use std::collections::BTreeMap;
use unet::{Level, Middle, Shared};

/// Which number the guidance projection reads the sinusoids of. It is added to the time's sinusoids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceInput {
    /// 1000 times the number itself.
    Linear,
    /// 1000 (1 / number - 1): a beta, as `diffusers` feeds scale - 1.
    ScaleOfBeta,
    /// 1000 (number - 1): a scale, as `diffusers` feeds it.
    Scale,
}

/// A text encoder that is trained with the network: it reads token ids instead of features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(example = framework::serde_json::json!({ "vocab_size": 23, "length": 10, "layers": 2, "num_heads": 4 }))]
#[serde(deny_unknown_fields)]
pub struct TextEncoderSizes {
    /// Number of distinct tokens, as the conditioner makes them.
    #[schemars(range(min = 2, max = 10_000_000))]
    pub vocab_size: usize,
    /// Longest text, in tokens.
    #[schemars(range(min = 1, max = 65_536))]
    pub length: usize,
    /// Transformer layers.
    #[schemars(range(min = 1, max = 512))]
    pub layers: usize,
    /// Attention heads of a layer; divides `cross_attention_dim`.
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: usize,
}

/// Sizes of the U-Net. The defaults are those of Stable Diffusion 1.5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sd15Config {
    /// Side of the square latent, in positions. Published: 64 (512 pixels).
    #[serde(default = "sample_size")]
    #[schemars(range(min = 1, max = 4096))]
    pub sample_size: usize,
    /// Channels of the latent.
    #[serde(default = "in_channels")]
    #[schemars(range(min = 1, max = 1024))]
    pub in_channels: usize,
    /// Channels of each level, finest first; each level but the last halves height and width.
    #[serde(default = "block_out_channels")]
    #[schemars(length(min = 1, max = 8), inner(range(min = 1, max = 16_384)))]
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a level on the way down; one more on the way up.
    #[serde(default = "layers_per_block")]
    #[schemars(range(min = 1, max = 64))]
    pub layers_per_block: usize,
    /// Levels with a transformer behind each residual block, finest = 0. The middle always has one.
    #[serde(default = "attention")]
    #[schemars(length(max = 8))]
    pub attention: Vec<usize>,
    /// Attention heads of every transformer; divides the channels of its level. (`attention_head_dim` in the published
    /// configuration, which means the number of heads there.)
    #[serde(default = "num_heads")]
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: usize,
    /// Width of the text's features.
    #[serde(default = "cross_attention_dim")]
    #[schemars(range(min = 1, max = 65_536))]
    pub cross_attention_dim: usize,
    /// Groups of every group normalisation; divides the channels of every level.
    #[serde(default = "norm_num_groups")]
    #[schemars(range(min = 1, max = 1024))]
    pub norm_num_groups: usize,
    /// Trains a text encoder with the network, which then reads token ids; null = the conditioner makes features.
    #[serde(default)]
    pub text_encoder: Option<TextEncoderSizes>,
    /// How the guidance number of a guidance-free objective enters; null = the network takes none.
    #[serde(default)]
    pub guidance_input: Option<GuidanceInput>,
    /// How the text encoder's tables are drawn.
    #[serde(default)]
    pub embedding_init: EmbeddingInit,
    /// Noise schedule and prediction.
    #[serde(default = "process")]
    pub process: VpConfig,
}

fn sample_size() -> usize {
    64
}
fn in_channels() -> usize {
    4
}
fn block_out_channels() -> Vec<usize> {
    vec![320, 640, 1280, 1280]
}
fn layers_per_block() -> usize {
    2
}
fn attention() -> Vec<usize> {
    vec![0, 1, 2]
}
fn num_heads() -> usize {
    8
}
fn cross_attention_dim() -> usize {
    768
}
fn norm_num_groups() -> usize {
    32
}
fn process() -> VpConfig {
    VpConfig { betas: Betas::ScaledLinear, ..VpConfig::default() }
}

framework::register!(backbone "sd15" => Sd15Config, "arXiv:2112.10752");

/// Epsilon of the group norms of residual blocks and of the last layer.
const EPSILON: f64 = 1e-5;
/// Width of the guidance number's sinusoids.
const GUIDANCE_FREQUENCIES: usize = 512;
/// Width of the time embedding, as a multiple of the first level's channels.
const TIME: usize = 4;
/// The smallest beta of `scale_of_beta`: at 0 the scale has no number.
const LEAST_BETA: f64 = 1e-4;

/// One residual block of the plan: level, inputs, outputs, whether a transformer follows.
struct Planned {
    level: usize,
    inputs: usize,
    outputs: usize,
    attended: bool,
}

impl Sd15Config {
    fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    fn coarsest(&self) -> usize {
        self.levels() - 1
    }

    fn attended(&self, level: usize) -> bool {
        self.attention.contains(&level)
    }

    /// Inputs of the residual blocks of each level on the way down.
    fn down(&self, level: usize) -> Vec<usize> {
        let before = self.block_out_channels[level.saturating_sub(1)];
        let mut inputs = vec![self.block_out_channels[level]; self.layers_per_block];
        inputs[0] = before;
        inputs
    }

    /// Inputs of the residual blocks of each level on the way up: what comes from below, and what was kept.
    fn up(&self, level: usize) -> Vec<usize> {
        let channels = &self.block_out_channels;
        let below = channels[(level + 1).min(self.coarsest())];
        let inputs = |i: usize| {
            let from = if i == 0 { below } else { channels[level] };
            // The last block meets what entered the level.
            let kept = if i == self.layers_per_block { channels[level.saturating_sub(1)] } else { channels[level] };
            from + kept
        };
        (0..=self.layers_per_block).map(inputs).collect()
    }

    /// Every residual block, for the estimates.
    fn plan(&self) -> Vec<Planned> {
        let mut plan = Vec::new();
        for (level, outputs) in self.block_out_channels.iter().enumerate() {
            for inputs in self.down(level).into_iter().chain(self.up(level)) {
                plan.push(Planned { level, inputs, outputs: *outputs, attended: self.attended(level) });
            }
        }
        let (level, width) = (self.coarsest(), self.block_out_channels[self.coarsest()]);
        plan.extend([true, false].map(|attended| Planned { level, inputs: width, outputs: width, attended }));
        plan
    }

    /// Positions of a level.
    fn positions(&self, level: usize) -> f64 {
        ((self.sample_size >> level) as f64).powi(2)
    }

    /// Tokens of a text, for the estimates: CLIP's where no length is set.
    fn text_length(&self) -> f64 {
        self.text_encoder.as_ref().map_or(77.0, |encoder| encoder.length as f64)
    }

    fn encoder(&self) -> Option<TextEncoderConfig> {
        self.text_encoder.as_ref().map(|sizes| TextEncoderConfig {
            vocab_size: sizes.vocab_size,
            length: sizes.length,
            width: self.cross_attention_dim,
            hidden: 4 * self.cross_attention_dim,
            layers: sizes.layers,
            num_heads: sizes.num_heads,
        })
    }
}

impl BackboneConfig for Sd15Config {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut divides = |part: usize, name: &str, whole: usize, of: &str| {
            if !whole.is_multiple_of(part) {
                let what = format!("`{name}` = {part} does not divide {of} = {whole}");
                problems.push(Problem::new(format!("/{name}"), what).accepts(format!("a divisor of {whole}")));
            }
        };
        for (level, channels) in self.block_out_channels.iter().enumerate() {
            divides(self.norm_num_groups, "norm_num_groups", *channels, &format!("`block_out_channels`/{level}"));
            if self.attended(level) || level == self.coarsest() {
                divides(self.num_heads, "num_heads", *channels, &format!("`block_out_channels`/{level}"));
            }
        }
        if let Some(encoder) = &self.text_encoder {
            divides(encoder.num_heads, "text_encoder/num_heads", self.cross_attention_dim, "`cross_attention_dim`");
        }
        let halvings = 1 << self.coarsest();
        if !self.sample_size.is_multiple_of(halvings) {
            let what = format!("`sample_size` = {} cannot be halved {} times", self.sample_size, self.coarsest());
            let problem = Problem::new("/sample_size", what).and_at("/block_out_channels");
            problems.push(problem.accepts(format!("a multiple of {halvings}")));
        }
        if !self.block_out_channels[0].is_multiple_of(2) {
            let what = "the first level's channels are as many as sinusoids of time, half of them cosines";
            problems.push(Problem::new("/block_out_channels/0", what).accepts("an even number"));
        }
        for (i, level) in self.attention.iter().enumerate() {
            if *level >= self.levels() || self.attention[..i].contains(level) {
                let what = format!("`attention` names level {level}");
                let accepts = format!("levels from 0 to {}, each once", self.coarsest());
                problems.push(Problem::new(format!("/attention/{i}"), what).accepts(accepts));
            }
        }
        if self.text_encoder.is_none() && self.embedding_init != EmbeddingInit::default() {
            let what = "`embedding_init` has no effect: there is no text encoder to draw";
            problems.push(
                Problem::new("/embedding_init", what).and_at("/text_encoder").fix("delete /backbone/embedding_init"),
            );
        }
        if self.process.variance_loss {
            let what = "`variance_loss` trains channels that the network does not have";
            problems.push(Problem::new("/process/variance_loss", what).accepts("false"));
        }
        problems
    }

    fn accepts(&self) -> Accepts {
        let (condition, width) = match &self.text_encoder {
            None => (ConditionKind::Text, self.cross_attention_dim),
            Some(encoder) => (ConditionKind::Tokens, encoder.vocab_size),
        };
        Accepts {
            condition,
            num_classes: None,
            text_width: Some(width),
            text_length: self.text_encoder.as_ref().map(|encoder| encoder.length),
            guidance_input: self.guidance_input.is_some(),
            guidance_field: "/guidance_input",
            variance: false,
            perturbation: false,
            cache: false,
        }
    }

    fn latent_shape(&self) -> LatentShape {
        LatentShape::values([self.sample_size; 2], self.in_channels)
    }

    fn process(&self) -> Box<dyn Process> {
        Box::new(self.process.process())
    }

    fn init(&self, device: &Device) -> BoxBackbone {
        BoxBackbone::new(UNet::new(self, device))
    }

    fn initializer(&self, path: &str, shape: &[usize]) -> Init {
        let norm = path.contains("norm");
        let table = if self.embedding_init == EmbeddingInit::Published { 0.02 } else { 1.0 };
        match path {
            _ if norm && path.ends_with("weight") => Init::Ones,
            _ if path.ends_with("bias") => Init::Zeros,
            "text_encoder.token_embedding.weight" => Init::Normal(table),
            "text_encoder.position_embedding.weight" => Init::Normal(0.5 * table),
            // Every residual branch, and the network, begins as zero (arXiv:2105.05233 app. C and its code).
            "conv_out.weight" => Init::Zeros,
            _ if path.ends_with("block.conv2.weight") || path.ends_with("proj_out.weight") => Init::Zeros,
            "time_embedding.cond_proj.weight" => Init::Normal(0.02),
            _ => match shape {
                [_, inputs, height, width] => Init::Normal(((inputs * height * width) as f64).powf(-0.5)),
                _ => Init::XavierUniform { fan_in: shape[0], fan_out: shape[1] },
            },
        }
    }

    fn formats(&self) -> Vec<ForeignNames> {
        checkpoint::formats(self.levels(), self.layers_per_block, self.attention.clone())
    }

    fn t_of_native(&self, native: f64) -> f64 {
        self.process.process().t_of_index(native)
    }

    fn flops(&self) -> f64 {
        let text = self.text_length();
        let block = |block: Planned| {
            let (inputs, outputs, positions) = (block.inputs as f64, block.outputs as f64, self.positions(block.level));
            let shortcut = if block.inputs == block.outputs { 0.0 } else { inputs * outputs };
            let convolutions = 2.0 * positions * (9.0 * outputs * (inputs + outputs) + shortcut);
            if !block.attended {
                return convolutions;
            }
            // Two 1x1 maps, four of self-attention, two of cross-attention, GEGLU; keys and values of the text.
            let maps = 2.0 * positions * outputs * outputs * (2.0 + 4.0 + 2.0 + 12.0);
            let keys = 4.0 * text * self.cross_attention_dim as f64 * outputs;
            convolutions + maps + keys + 4.0 * positions * outputs * (positions + text)
        };
        let first = self.block_out_channels[0] as f64;
        let ends = 36.0 * self.positions(0) * first * self.in_channels as f64;
        let between = |level: usize| {
            let width = self.block_out_channels[level] as f64;
            18.0 * width * width * (self.positions(level + 1) + self.positions(level))
        };
        self.plan().into_iter().map(block).sum::<f64>() + ends + (0..self.coarsest()).map(between).sum::<f64>()
    }

    fn activations(&self) -> f64 {
        let block = |block: Planned| {
            let (inputs, outputs, positions) = (block.inputs as f64, block.outputs as f64, self.positions(block.level));
            // Inputs of norms and convolutions; of a transformer also those of its maps, attentions and gate.
            positions * (2.0 * inputs + 4.0 * outputs + if block.attended { 30.0 * outputs } else { 0.0 })
        };
        self.plan().into_iter().map(block).sum()
    }
}

/// The network. Fields are named as in the `diffusers` files.
#[derive(Module, Debug)]
pub struct UNet {
    time_embedding: TimestepEmbedder,
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: Middle,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    text_encoder: Option<TextEncoder>,
    #[module(skip)]
    config: Sd15Config,
}

impl UNet {
    /// Allocates nothing.
    pub fn new(config: &Sd15Config, device: &Device) -> Self {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[config.coarsest()]);
        let norm = GroupNormConfig { groups: config.norm_num_groups, epsilon: EPSILON };
        let (time, text) = (TIME * first, config.cross_attention_dim);
        let shared = Shared { time, text, heads: config.num_heads, norm };
        let down = |level: usize| {
            let width = channels[level];
            let mut made = Level::new(&config.down(level), width, config.attended(level), shared, device);
            let halve = || Resample { conv: Conv2d::new(width, width, 3, device).with_stride(2, (1, 1)) };
            made.downsampler = (level < config.coarsest()).then(halve);
            made
        };
        // The way up begins at the coarsest level.
        let up = |level: usize| {
            let width = channels[level];
            let mut made = Level::new(&config.up(level), width, config.attended(level), shared, device);
            made.upsampler = (level > 0).then(|| Resample { conv: Conv2d::new(width, width, 3, device) });
            made
        };
        let guidance = config.guidance_input.map(|_| GUIDANCE_FREQUENCIES);
        Self {
            time_embedding: TimestepEmbedder::new(time, first, guidance, device),
            conv_in: Conv2d::new(config.in_channels, first, 3, device),
            down_blocks: (0..config.levels()).map(down).collect(),
            mid_block: Middle::new(last, shared, device),
            up_blocks: (0..config.levels()).rev().map(up).collect(),
            conv_norm_out: GroupNorm::new(first, norm, device),
            conv_out: Conv2d::new(first, config.in_channels, 3, device),
            text_encoder: config.encoder().map(|encoder| TextEncoder::new(&encoder, device)),
            config: config.clone(),
        }
    }

    /// Features of the text, `[B, K, T]`.
    fn text(&self, condition: &Condition, device: &Device) -> Tensor<3> {
        match (condition, &self.text_encoder) {
            (Condition::Text { features, .. }, None) => features.clone(),
            (Condition::Tokens { ids, .. }, Some(encoder)) => {
                // Each different text is read once: of a null branch, one.
                let mut place = BTreeMap::new();
                let rows: Vec<i64> = ids
                    .iter()
                    .map(|ids| {
                        let next = place.len() as i64;
                        *place.entry(ids.clone()).or_insert(next)
                    })
                    .collect();
                let mut texts: Vec<_> = place.into_iter().collect();
                texts.sort_by_key(|(_, place)| *place);
                let (count, length) = (texts.len(), texts[0].0.len());
                let flat: Vec<i64> = texts.iter().flat_map(|(ids, _)| ids.iter().map(|id| *id as i64)).collect();
                let ids = Tensor::<1, Int>::from_data(flat.as_slice(), device).reshape([count, length]);
                encoder.forward(ids).select(0, Tensor::<1, Int>::from_data(rows.as_slice(), device))
            }
            _ => panic!("the network was given another kind of condition; the check phase refuses that"),
        }
    }

    /// The sinusoids that the guidance projection reads, `[B, 512]` row-major.
    fn guidance(&self, numbers: &[f64]) -> Vec<f64> {
        let each = |f: fn(f64) -> f64| numbers.iter().map(|number| f(*number)).collect::<Vec<_>>();
        match self.config.guidance_input {
            Some(GuidanceInput::ScaleOfBeta) => {
                guidance_sinusoid(&each(|beta| 1.0 / beta.max(LEAST_BETA) - 1.0), GUIDANCE_FREQUENCIES)
            }
            Some(GuidanceInput::Scale) => guidance_sinusoid(&each(|scale| scale - 1.0), GUIDANCE_FREQUENCIES),
            _ => sinusoid(&each(|number| 1000.0 * number), GUIDANCE_FREQUENCIES),
        }
    }
}

impl Backbone for UNet {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Noisy { x_t, t } = input else {
            panic!("the network reads noisy latents; the check phase refuses other families")
        };
        let (device, dtype) = (x_t.device().inner(), self.conv_in.weight.val().dtype());
        let process = self.config.process.process();
        let index: Vec<f64> = t.iter().map(|t| process.index_of_t(*t)).collect();
        let guidance = control.guidance.as_deref().map(|numbers| self.guidance(numbers));
        let time = silu(self.time_embedding.forward(&index, guidance.as_deref(), &device));
        let text = self.text(condition, &device).cast(dtype);
        let grid = [self.config.sample_size; 2];
        let mut x = self.conv_in.forward(from_positions(x_t.clone().cast(dtype), grid));
        let mut kept = vec![x.clone()];
        for level in &self.down_blocks {
            x = level.down(x, &time, &text, &mut kept);
        }
        x = self.mid_block.forward(x, &time, &text);
        for level in &self.up_blocks {
            x = level.up(x, &time, &text, &mut kept);
        }
        to_positions(self.conv_out.forward(self.conv_norm_out.forward_silu(x))).cast(x_t.dtype())
    }
}

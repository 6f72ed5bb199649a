//! The text-conditional U-Net of latent diffusion. Stable Diffusion 1.5 is its published size.
//!
//! Source: arXiv:2112.10752. The guidance input follows GFT on Stable Diffusion (arXiv:2501.15420) and latent
//! consistency models (arXiv:2310.04378).
//! Read this file first. `unet.rs` holds the blocks, `official.rs` the official parameter names, `guidance_input.rs` the
//! embedding of the guidance number, and `diffusers.rs` the configuration that is exported.
//! Shapes: x_t `[B, H W, C]` in raster order, text `[B, K, T]`.

#[cfg(test)]
use framework_dylib as _;

mod diffusers;
mod guidance_input;
mod official;
mod unet;

use framework::burn;
use framework::burn::module::Module;
use framework::burn::tensor::TensorData;
use framework::checkpoint::component::DiffusersNetwork;
use framework::checkpoint::names::OfficialNames;
use framework::checkpoint::published_config::PublishedConfig;
use framework::error::Problems;
use framework::network::backbone::{Backbone, BackboneConfig, HookSites};
use framework::nn::autoencoder::Resample;
use framework::nn::parameters::Init;
use framework::nn::{
    Conv2d, EmbeddingInit, GroupNorm, GroupNormConfig, TextEncoder, TextEncoderConfig, TimestepEmbedder,
    fold_projection, from_positions, silu, to_positions,
};
use framework::prelude::*;
use framework::process::diffusion::{Betas, VpConfig};
use guidance_input::GUIDANCE_FREQUENCIES;
pub use guidance_input::GuidanceInput;
use std::cell::Cell;
use std::collections::BTreeMap;
use unet::{Level, Middle, Pass, Shared};

/// Dimensions of a text encoder that is trained with the network. The network then reads token ids instead of text
/// features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(example = framework::serde_json::json!({ "vocab_size": 23, "length": 10, "layers": 2, "num_heads": 4 }))]
#[serde(deny_unknown_fields)]
pub struct TextEncoderSizes {
    /// Number of distinct tokens that the conditioner produces.
    #[schemars(range(min = 2, max = 10_000_000))]
    pub vocab_size: usize,
    /// Maximum length of a text, in tokens.
    #[schemars(range(min = 1, max = 65_536))]
    pub length: usize,
    /// Number of transformer layers.
    #[schemars(range(min = 1, max = 512))]
    pub layers: usize,
    /// Number of attention heads per layer. Must divide `cross_attention_dim`.
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: usize,
}

/// Dimensions of the U-Net. The defaults match Stable Diffusion 1.5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sd15Config {
    /// Side length of the square latent, in positions. Published: 64 for 512-pixel images.
    #[schemars(range(min = 1, max = 4096))]
    pub sample_size: usize,
    /// Number of latent channels.
    #[schemars(range(min = 1, max = 1024))]
    pub in_channels: usize,
    /// Number of channels per resolution level, finest level first. Every level except the last halves height and
    /// width.
    #[schemars(length(min = 1, max = 8), inner(range(min = 1, max = 16_384)))]
    pub block_out_channels: Vec<usize>,
    /// Number of residual blocks per level on the downsampling path. The upsampling path has one more per level.
    #[schemars(range(min = 1, max = 64))]
    pub layers_per_block: usize,
    /// Levels with a transformer after each residual block, where 0 is the finest level. The middle block always
    /// has one.
    #[schemars(length(max = 8))]
    pub attention: Vec<usize>,
    /// Number of attention heads of every transformer. Must divide the channels of its level. The published
    /// configuration calls this number `attention_head_dim`.
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: usize,
    /// Width of the text features.
    #[schemars(range(min = 1, max = 65_536))]
    pub cross_attention_dim: usize,
    /// Number of groups of every group normalization. Must divide the channels of every level.
    #[schemars(range(min = 1, max = 1024))]
    pub norm_num_groups: usize,
    /// Text encoder to train with the network, which then reads token ids. null = the conditioner computes text
    /// features.
    pub text_encoder: Option<TextEncoderSizes>,
    /// How the guidance number of a guidance-free objective enters the network. null = no guidance input.
    pub guidance_input: Option<GuidanceInput>,
    /// Initialization of the text encoder's embedding tables.
    pub embedding_init: EmbeddingInit,
    /// Noise schedule, and the quantity that the network predicts.
    pub process: VpConfig,
}

impl Default for Sd15Config {
    fn default() -> Self {
        Self {
            sample_size: 64,
            in_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            attention: vec![0, 1, 2],
            num_heads: 8,
            cross_attention_dim: 768,
            norm_num_groups: 32,
            text_encoder: None,
            guidance_input: None,
            embedding_init: EmbeddingInit::default(),
            process: VpConfig { betas: Betas::ScaledLinear, ..VpConfig::default() },
        }
    }
}

framework::register!(backbone "sd15" => Sd15Config, "arXiv:2112.10752");

/// Epsilon of the group norms in residual blocks and before the output convolution.
const EPSILON: f64 = 1e-5;
/// Width of the time embedding, as a multiple of the first level's channels.
const TIME: usize = 4;
/// A residual block as the cost estimates see it: its level, its channels, and whether a transformer follows.
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

    /// Returns the input channels of a level's residual blocks on the downsampling path.
    fn down(&self, level: usize) -> Vec<usize> {
        let before = self.block_out_channels[level.saturating_sub(1)];
        let mut inputs = vec![self.block_out_channels[level]; self.layers_per_block];
        inputs[0] = before;
        inputs
    }

    /// Returns the input channels of a level's residual blocks on the upsampling path. A block reads the previous
    /// block's output and the output that the skip connection kept.
    fn up(&self, level: usize) -> Vec<usize> {
        let channels = &self.block_out_channels;
        let below = channels[(level + 1).min(self.coarsest())];
        let inputs = |i: usize| {
            let from = if i == 0 { below } else { channels[level] };
            // The last block's skip connection is the input of the level on the downsampling path.
            let kept = if i == self.layers_per_block { channels[level.saturating_sub(1)] } else { channels[level] };
            from + kept
        };
        (0..=self.layers_per_block).map(inputs).collect()
    }

    /// Returns every residual block, for the cost estimates.
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

    /// Returns the number of positions of a level.
    fn positions(&self, level: usize) -> f64 {
        ((self.sample_size >> level) as f64).powi(2)
    }

    /// Returns the number of tokens per text, for the cost estimates. Without a text encoder, CLIP's 77 is assumed.
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

    /// Returns the number of transformer blocks: one per attention layer on both paths, and one in the middle block.
    fn transformers(&self) -> usize {
        let levels = (0..self.block_out_channels.len()).filter(|level| self.attended(*level));
        1 + levels.map(|level| self.down(level).len() + self.up(level).len()).sum::<usize>()
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
            let what = "the first level's number of channels is odd, but half of the time sinusoids are cosines";
            problems.push(Problem::new("/block_out_channels/0", what).accepts("an even number"));
        }
        for (i, level) in self.attention.iter().enumerate() {
            if *level >= self.levels() || self.attention[..i].contains(level) {
                let what = format!("`attention` lists level {level}, which is repeated or does not exist");
                let accepts = format!("distinct levels from 0 to {}", self.coarsest());
                problems.push(Problem::new(format!("/attention/{i}"), what).accepts(accepts));
            }
        }
        if self.text_encoder.is_none() && self.embedding_init != EmbeddingInit::default() {
            let what = "`embedding_init` has no effect without a text encoder";
            problems.push(
                Problem::new("/embedding_init", what).and_at("/text_encoder").fix("delete /backbone/embedding_init"),
            );
        }
        problems.extend(self.process.check().into_iter().map(|problem| problem.under("/process")));
        if self.process.variance_loss {
            let what = "`variance_loss` trains channels that the network does not have";
            problems.push(Problem::new("/process/variance_loss", what).accepts("false"));
        }
        problems
    }

    fn accepts(&self) -> Accepts {
        let condition = match &self.text_encoder {
            None => ConditionShape::Text { length: None, width: self.cross_attention_dim },
            Some(encoder) => ConditionShape::Tokens { length: Some(encoder.length), vocabulary: encoder.vocab_size },
        };
        Accepts {
            condition,
            guidance_input: self.guidance_input.is_some(),
            guidance_field: "/guidance_input",
            variance: false,
            hooks: HookSites { blocks: self.transformers(), text_attention: true, decode_cache: false, grid: true },
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
            // The output of every residual branch and of the network starts at zero (arXiv:2105.05233 app. C and its
            // code).
            "conv_out.weight" => Init::Zeros,
            _ if path.ends_with("block.conv2.weight") || path.ends_with("proj_out.weight") => Init::Zeros,
            "time_embedding.cond_proj.weight" => Init::Normal(0.02),
            _ => match shape {
                [_, inputs, height, width] => Init::Normal(((inputs * height * width) as f64).powf(-0.5)),
                _ => Init::XavierUniform { fan_in: shape[0], fan_out: shape[1] },
            },
        }
    }

    fn formats(&self) -> Vec<OfficialNames> {
        official::formats(self.levels(), self.layers_per_block, self.attention.clone())
    }

    fn contradictions(&self, published: &PublishedConfig) -> Problems {
        official::contradictions(self, published)
    }

    fn diffusers(&self, weights: &BTreeMap<String, TensorData>) -> Result<DiffusersNetwork, Problem> {
        diffusers::network(self, weights)
    }

    fn fold_guidance(
        &self,
        weights: &mut BTreeMap<String, TensorData>,
        guidance: f64,
    ) -> Option<Box<dyn BackboneConfig>> {
        let sinusoids = self.guidance_input?.sinusoids(&[guidance]);
        fold_projection(weights, "time_embedding", &sinusoids)?;
        Some(Box::new(Self { guidance_input: None, ..self.clone() }))
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
            // Linear layers per position: proj_in and proj_out (2), self-attention (4), queries and output of
            // cross-attention (2), and GEGLU (12). Cross-attention also computes keys and values per text token.
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
            // Stored: the inputs of norms and convolutions. A transformer adds the inputs of its linear layers,
            // attentions and gate.
            positions * (2.0 * inputs + 4.0 * outputs + if block.attended { 30.0 * outputs } else { 0.0 })
        };
        self.plan().into_iter().map(block).sum()
    }
}

/// The U-Net. Field names follow the `diffusers` checkpoints.
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
    /// Builds the network without allocating its parameters.
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
        // The upsampling path starts at the coarsest level and ends at the finest, which does not upsample.
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

    /// Returns the text features, `[B, K, T]`.
    fn text(&self, condition: &Condition, device: &Device) -> Tensor<3> {
        match (condition, &self.text_encoder) {
            (Condition::Text { features, .. }, None) => features.clone(),
            (Condition::Tokens { ids, .. }, Some(encoder)) => {
                // Encode each distinct text once. All samples of a null branch share one text.
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
}

impl Backbone for UNet {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Noisy { x_t, t } = input else {
            panic!("the network reads noisy latents; the check phase refuses other families")
        };
        let (device, dtype) = (x_t.device().inner(), self.conv_in.weight.val().dtype());
        let process = self.config.process.process();
        let index: Vec<f64> = t.iter().map(|t| process.index_of_t(*t)).collect();
        let guidance = control
            .guidance
            .as_deref()
            .map(|numbers| self.config.guidance_input.unwrap_or(GuidanceInput::Linear).sinusoids(numbers));
        let pass = Pass {
            time: silu(self.time_embedding.forward(&index, guidance.as_deref(), &device)),
            text: self.text(condition, &device).cast(dtype),
            hooks: &control.hooks,
            next: Cell::new(0),
        };
        let grid = [self.config.sample_size; 2];
        let mut x = self.conv_in.forward(from_positions(x_t.clone().cast(dtype), grid));
        let mut kept = vec![x.clone()];
        for level in &self.down_blocks {
            x = level.down(x, &pass, &mut kept);
        }
        x = self.mid_block.forward(x, &pass);
        for level in &self.up_blocks {
            x = level.up(x, &pass, &mut kept);
        }
        to_positions(self.conv_out.forward(self.conv_norm_out.forward_silu(x))).cast(x_t.dtype())
    }
}

//! DiT and SiT: a transformer on latent patches, modulated by time and class (adaLN-zero). The same network is
//! published for two processes: `dit` predicts the noise of a diffusion, `sit` predicts the velocity of a flow.
//!
//! Source: arXiv:2212.09748 (DiT), arXiv:2401.08740 (SiT), arXiv:2501.15420 (GFT's guidance input).
//! Read this file first. `clock.rs` holds the differences between DiT and SiT, `official.rs` the official
//! parameter names, and `diffusers.rs` the layout of `diffusers`.

#[cfg(test)]
use framework_dylib as _;

mod clock;
mod diffusers;
mod official;

pub use clock::Clock;

use framework::burn;
use framework::burn::module::{Module, Param};
use framework::burn::tensor::TensorData;
use framework::checkpoint::component::DiffusersNetwork;
use framework::checkpoint::names::OfficialNames;
use framework::checkpoint::refit::Refit;
use framework::error::Problems;
use framework::network::backbone::{Backbone, BackboneConfig, HookSites};
use framework::nn::hooks::{AttentionSite, Hooked};
use framework::nn::parameters::Init;
use framework::nn::{
    Attention, AttentionConfig, EmbeddingInit, Linear, Mlp, PatchEmbed, TimestepEmbedder, adaptive_layer_norm,
    fold_embedding, fold_projection, from_patches, gated_add, parameter, silu, sincos_2d, sinusoid,
};
use framework::prelude::*;
use framework::process::diffusion::VpConfig;
use framework::process::flow::InterpolantConfig;
use std::collections::BTreeMap;

/// Published sizes. A name consists of the model size and the patch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Size {
    #[serde(rename = "S/2")]
    S2,
    #[serde(rename = "S/4")]
    S4,
    #[serde(rename = "S/8")]
    S8,
    #[serde(rename = "B/2")]
    B2,
    #[serde(rename = "B/4")]
    B4,
    #[serde(rename = "B/8")]
    B8,
    #[serde(rename = "L/2")]
    L2,
    #[serde(rename = "L/4")]
    L4,
    #[serde(rename = "L/8")]
    L8,
    #[serde(rename = "XL/2")]
    Xl2,
    #[serde(rename = "XL/4")]
    Xl4,
    #[serde(rename = "XL/8")]
    Xl8,
}

/// Dimensions of the network, which a published size sets together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    hidden_size: usize,
    depth: usize,
    num_heads: usize,
    patch_size: usize,
}

impl Size {
    /// Returns the published dimensions. Source: arXiv:2212.09748 table 1.
    fn numbers(self) -> Numbers {
        use Size::*;
        let (hidden_size, depth, num_heads) = match self {
            S2 | S4 | S8 => (384, 12, 6),
            B2 | B4 | B8 => (768, 12, 12),
            L2 | L4 | L8 => (1024, 24, 16),
            Xl2 | Xl4 | Xl8 => (1152, 28, 16),
        };
        let patch_size = match self {
            S2 | B2 | L2 | Xl2 => 2,
            S4 | B4 | L4 | Xl4 => 4,
            S8 | B8 | L8 | Xl8 => 8,
        };
        Numbers { hidden_size, depth, num_heads, patch_size }
    }
}

/// How the guidance number enters the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceInput {
    /// Projects the sinusoids of 1000 times the number without bias, and adds the result to the sinusoids of time.
    Linear,
    /// Embeds 1000 times the number with a second embedder, and adds the result to the time and class embeddings.
    Mlp,
    /// As `mlp`, with three layers instead of two.
    #[serde(rename = "3_layer_mlp")]
    ThreeLayerMlp,
}

/// Dimensions and process of the network. The dimensions are set by a published name (`size`) or one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, bound(deserialize = "P: Default + Deserialize<'de>"))]
#[schemars(bound = "P: Default + Serialize + JsonSchema")]
pub struct Config<P> {
    /// Published size, including the patch size. If it is set, leave out `hidden_size`, `depth`, `num_heads` and
    /// `patch_size`.
    pub size: Option<Size>,
    /// Width of the transformer. Must be a multiple of 4 and of `num_heads`.
    #[schemars(range(min = 4, max = 16384))]
    pub hidden_size: Option<usize>,
    /// Number of transformer blocks.
    #[schemars(range(min = 1, max = 512))]
    pub depth: Option<usize>,
    /// Number of attention heads per block. Must divide `hidden_size`.
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: Option<usize>,
    /// Side length of a patch, in latent positions. Must divide `input_size`.
    #[schemars(range(min = 1, max = 64))]
    pub patch_size: Option<usize>,
    /// Side length of the square latent, in positions. Published: 32 for 256-pixel images, 64 for 512-pixel images.
    #[schemars(range(min = 1, max = 1024))]
    pub input_size: usize,
    /// Number of latent channels.
    #[schemars(range(min = 1, max = 1024))]
    pub in_channels: usize,
    /// Hidden width of the MLP in each block, as a multiple of `hidden_size`.
    #[schemars(range(min = 0.25, max = 32.0))]
    pub mlp_ratio: f64,
    /// Number of classes, without the null class. The null class has an additional row in the class table.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub num_classes: usize,
    /// Doubles the output channels, as published. For a diffusion, the second half predicts a variance, which only
    /// `variance_loss` trains. For a flow, the second half is ignored.
    pub learn_sigma: bool,
    /// How the guidance number of a guidance-free objective enters the network. null = no guidance input.
    pub guidance_input: Option<GuidanceInput>,
    /// Initialization of the time, class and guidance embedders.
    pub embedding_init: EmbeddingInit,
    /// Path from data to noise, and the quantity that the network predicts.
    pub process: P,
}

impl<P: Default> Default for Config<P> {
    fn default() -> Self {
        Self {
            size: None,
            hidden_size: None,
            depth: None,
            num_heads: None,
            patch_size: None,
            input_size: 32,
            in_channels: 4,
            mlp_ratio: 4.0,
            num_classes: 1000,
            learn_sigma: false,
            guidance_input: None,
            embedding_init: EmbeddingInit::default(),
            process: P::default(),
        }
    }
}

/// DiT: the transformer trained on a variance-preserving diffusion.
pub type DitConfig = Config<VpConfig>;
/// SiT: the transformer trained on a flow.
pub type SitConfig = Config<InterpolantConfig>;

framework::register!(backbone "dit" => DitConfig, "arXiv:2212.09748");
framework::register!(backbone "sit" => SitConfig, "arXiv:2401.08740");

impl<P: Clock> Config<P> {
    fn numbers(&self) -> Option<Numbers> {
        match self.size {
            Some(size) => Some(size.numbers()),
            None => Some(Numbers {
                hidden_size: self.hidden_size?,
                depth: self.depth?,
                num_heads: self.num_heads?,
                patch_size: self.patch_size?,
            }),
        }
    }

    /// Returns the dimensions of an entry that passed the check phase.
    fn checked(&self) -> Numbers {
        self.numbers().expect("the check phase refuses a network without dimensions")
    }

    fn out_channels(&self) -> usize {
        self.in_channels * if self.learn_sigma { 2 } else { 1 }
    }

    fn mlp_width(&self) -> usize {
        (self.checked().hidden_size as f64 * self.mlp_ratio) as usize
    }

    fn tokens(&self) -> usize {
        (self.input_size / self.checked().patch_size).pow(2)
    }
}

impl<P: Clock> BackboneConfig for Config<P> {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let given = [
            ("hidden_size", self.hidden_size),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("patch_size", self.patch_size),
        ];
        for (name, value) in given {
            match (self.size, value) {
                (Some(_), Some(_)) => problems.push(
                    Problem::new(format!("/{name}"), format!("`{name}` is set, but `size` already determines it"))
                        .accepts("either `size`, or hidden_size, depth, num_heads and patch_size")
                        .fix(format!("delete /backbone/{name} or /backbone/size")),
                ),
                (None, None) => problems.push(
                    Problem::new("", format!("neither `size` nor `{name}` is set"))
                        .accepts("either `size` (such as \"XL/2\"), or hidden_size, depth, num_heads and patch_size"),
                ),
                _ => {}
            }
        }
        problems.extend(self.process.check(self.learn_sigma));
        let Some(numbers) = self.numbers() else { return problems };
        let mut divides = |part: usize, name: &str, whole: usize, of: &str| {
            if !whole.is_multiple_of(part) {
                problems.push(
                    Problem::new(format!("/{name}"), format!("`{name}` = {part} does not divide `{of}` = {whole}"))
                        .accepts(format!("a divisor of {whole}")),
                );
            }
        };
        divides(numbers.num_heads, "num_heads", numbers.hidden_size, "hidden_size");
        divides(numbers.patch_size, "patch_size", self.input_size, "input_size");
        if !numbers.hidden_size.is_multiple_of(4) {
            problems.push(
                Problem::new("/hidden_size", format!("`hidden_size` = {} is not a multiple of 4", numbers.hidden_size))
                    .accepts("a multiple of 4 (the position table stores sine and cosine of row and column)"),
            );
        }
        problems
    }

    fn accepts(&self) -> Accepts {
        Accepts {
            condition: ConditionShape::Class { count: self.num_classes },
            guidance_input: self.guidance_input.is_some(),
            guidance_field: "/guidance_input",
            variance: self.learn_sigma && P::HAS_VARIANCE,
            hooks: HookSites { blocks: self.checked().depth, text_attention: false, decode_cache: false, grid: true },
            cache: false,
        }
    }

    fn latent_shape(&self) -> LatentShape {
        LatentShape::values([self.input_size; 2], self.in_channels)
    }

    fn process(&self) -> Box<dyn Process> {
        self.process.process()
    }

    fn init(&self, device: &Device) -> BoxBackbone {
        BoxBackbone::new(Transformer::new(self, device))
    }

    fn initializer(&self, path: &str, shape: &[usize]) -> Init {
        let Numbers { hidden_size, patch_size, .. } = self.checked();
        let grid = [self.input_size / patch_size; 2];
        let published = self.embedding_init == EmbeddingInit::Published;
        match path {
            "pos_embed" => Init::Constant(sincos_2d(grid, hidden_size)),
            "y_embedder.embedding_table" => Init::Normal(if published { 0.02 } else { 1.0 }),
            // As published: N(0, 0.02) when training from scratch. Fine-tuning starts this weight at zero instead
            // (`official.rs`).
            "t_embedder.cond_proj.weight" => Init::Normal(0.02),
            _ if path.ends_with("bias") || path.contains("ada_ln") || path.starts_with("final_layer") => Init::Zeros,
            _ if published && path.contains("_embedder.mlp") => Init::Normal(0.02),
            _ => Init::XavierUniform { fan_in: shape[0], fan_out: shape[1] },
        }
    }

    fn formats(&self) -> Vec<OfficialNames> {
        let three_layers = self.guidance_input == Some(GuidanceInput::ThreeLayerMlp);
        vec![official::names(self.checked().patch_size, three_layers)]
    }

    fn diffusers(&self, weights: &BTreeMap<String, TensorData>) -> Result<DiffusersNetwork, Problem> {
        diffusers::network(self, weights)
    }

    fn fold_guidance(
        &self,
        weights: &mut BTreeMap<String, TensorData>,
        guidance: f64,
    ) -> Option<Box<dyn BackboneConfig>> {
        let waves = |width| sinusoid(&[1000.0 * guidance], width);
        match self.guidance_input? {
            GuidanceInput::Linear => fold_projection(weights, "t_embedder", &waves(GUIDANCE_FREQUENCIES))?,
            GuidanceInput::Mlp | GuidanceInput::ThreeLayerMlp => {
                fold_embedding(weights, ["beta_embedder", "t_embedder"], &waves(FREQUENCIES))?
            }
        }
        Some(Box::new(Self { guidance_input: None, ..self.clone() }))
    }

    fn refit(&self, path: &str) -> Option<Refit> {
        match path {
            "y_embedder.embedding_table" => Some(Refit::Classes { null: true }),
            "pos_embed" => Some(Refit::Computed),
            _ => None,
        }
    }

    fn t_of_native(&self, native: f64) -> f64 {
        self.process.t_of_native(native)
    }

    fn to_native(&self, prediction: Tensor<3>) -> Tensor<3> {
        if self.process.is_reversed() { -prediction } else { prediction }
    }

    fn flops(&self) -> f64 {
        let Numbers { hidden_size, depth, patch_size, .. } = self.checked();
        let (width, tokens, mlp) = (hidden_size as f64, self.tokens() as f64, self.mlp_width() as f64);
        let block = 2.0 * tokens * (4.0 * width * width + 2.0 * width * mlp)
            + 4.0 * tokens * tokens * width
            + 12.0 * width * width;
        let patch = (patch_size * patch_size) as f64;
        let ends = 2.0 * tokens * width * patch * (self.in_channels + self.out_channels()) as f64;
        depth as f64 * block + ends
    }

    fn activations(&self) -> f64 {
        let Numbers { hidden_size, depth, .. } = self.checked();
        let (width, tokens, mlp) = (hidden_size as f64, self.tokens() as f64, self.mlp_width() as f64);
        // Stored per block: the inputs of norms, linear layers, gates and GELU, and the queries, keys and values.
        depth as f64 * tokens * (10.0 * width + 2.0 * mlp)
    }
}

/// Class embedding table. The last row belongs to the null class.
#[derive(Module, Debug)]
struct LabelEmbedder {
    embedding_table: Param<Tensor<2>>,
}

/// Transformer block with adaLN-zero modulation.
#[derive(Module, Debug)]
struct Block {
    attn: Attention,
    mlp: Mlp,
    ada_ln: Linear,
}

/// Modulated layer norm followed by the projection to patches.
#[derive(Module, Debug)]
struct FinalLayer {
    linear: Linear,
    ada_ln: Linear,
}

/// The DiT and SiT network. Field names follow the official checkpoints.
#[derive(Module, Debug)]
pub struct Transformer<P: Clock> {
    x_embedder: PatchEmbed,
    t_embedder: TimestepEmbedder,
    y_embedder: LabelEmbedder,
    beta_embedder: Option<TimestepEmbedder>,
    pos_embed: Param<Tensor<3>>,
    blocks: Vec<Block>,
    final_layer: FinalLayer,
    #[module(skip)]
    config: Config<P>,
}

/// Width of the sinusoids of time, and of the guidance number with [`GuidanceInput::Mlp`].
const FREQUENCIES: usize = 256;
/// Width of the sinusoids of the guidance number with [`GuidanceInput::Linear`].
const GUIDANCE_FREQUENCIES: usize = 512;
/// Epsilon of every layer norm.
const EPSILON: f64 = 1e-6;

impl<P: Clock> Transformer<P> {
    /// Builds the network without allocating its parameters.
    pub fn new(config: &Config<P>, device: &Device) -> Self {
        let Numbers { hidden_size: width, depth, num_heads, patch_size: patch } = config.checked();
        let linear = config.guidance_input == Some(GuidanceInput::Linear);
        let block = |_| Block {
            attn: Attention::new(AttentionConfig { width, num_heads }, device),
            mlp: Mlp::new(width, config.mlp_width(), device),
            ada_ln: Linear::new(width, 6 * width, device),
        };
        Self {
            x_embedder: PatchEmbed::new([config.input_size; 2], patch, config.in_channels, width, device),
            t_embedder: TimestepEmbedder::new(width, FREQUENCIES, linear.then_some(GUIDANCE_FREQUENCIES), device),
            y_embedder: LabelEmbedder { embedding_table: parameter([config.num_classes + 1, width], device) },
            beta_embedder: config.guidance_input.and_then(|input| beta_embedder(input, width, device)),
            pos_embed: parameter([1, config.tokens(), width], device),
            blocks: (0..depth).map(block).collect(),
            final_layer: FinalLayer {
                linear: Linear::new(width, patch * patch * config.out_channels(), device),
                ada_ln: Linear::new(width, 2 * width, device),
            },
            config: config.clone(),
        }
    }

    /// Returns the sum of the time, class and guidance embeddings, one vector per sample: `[B, D]`.
    fn condition(&self, t: &[f64], condition: &Condition, guidance: Option<&[f64]>, device: &Device) -> Tensor<2> {
        let native = self.config.process.native_of_t(t);
        let guidance: Option<Vec<f64>> = guidance.map(|g| g.iter().map(|g| 1000.0 * g).collect());
        let sinusoids = guidance.as_deref().map(|guidance| sinusoid(guidance, GUIDANCE_FREQUENCIES));
        let rows = condition.class_rows(self.config.num_classes);
        let rows = Tensor::<1, Int>::from_data(rows.as_slice(), device);
        let c = self.t_embedder.forward(&native, sinusoids.as_deref(), device)
            + self.y_embedder.embedding_table.val().select(0, rows);
        match (&self.beta_embedder, guidance) {
            (Some(embedder), Some(guidance)) => c + embedder.forward(&guidance, None, device),
            _ => c,
        }
    }
}

/// Returns the embedder that `input` adds, without allocated parameters.
fn beta_embedder(input: GuidanceInput, width: usize, device: &Device) -> Option<TimestepEmbedder> {
    let two_layers = || TimestepEmbedder::new(width, FREQUENCIES, None, device);
    match input {
        GuidanceInput::Linear => None,
        GuidanceInput::Mlp => Some(two_layers()),
        GuidanceInput::ThreeLayerMlp => Some(two_layers().with_third_layer(width, device)),
    }
}

impl<P: Clock> Backbone for Transformer<P> {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Noisy { x_t, t } = input else {
            panic!("the network reads noisy latents; the check phase refuses other families")
        };
        let dtype = self.x_embedder.proj.dtype();
        let c = silu(self.condition(t, condition, control.guidance.as_deref(), &x_t.device().inner()));
        let mut tokens = self.x_embedder.forward(x_t.clone().cast(dtype)) + self.pos_embed.val();
        for (i, block) in self.blocks.iter().enumerate() {
            let run = |tokens| block.forward(tokens, c.clone(), &control.hooks, i);
            tokens = control.hooks.block(i, tokens, run);
        }
        let patch = self.config.checked().patch_size;
        let out = from_patches(self.final_layer.forward(tokens, c), [self.config.input_size; 2], patch);
        let out = if P::HAS_VARIANCE { out } else { out.narrow(2, 0, self.config.in_channels) };
        self.config.to_native(out).cast(x_t.dtype())
    }
}

impl Block {
    fn forward(&self, x: Tensor<3>, c: Tensor<2>, hooks: &Hooked, index: usize) -> Tensor<3> {
        let [shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp] =
            self.ada_ln.forward(c).chunk(6, 1).try_into().expect("six equal chunks");
        let attended = self.attn.forward(
            adaptive_layer_norm(x.clone(), EPSILON, shift_attn, scale_attn),
            hooks,
            AttentionSite::own(index),
        );
        let x = gated_add(x, attended, gate_attn);
        let mixed = self.mlp.forward(adaptive_layer_norm(x.clone(), EPSILON, shift_mlp, scale_mlp));
        gated_add(x, mixed, gate_mlp)
    }
}

impl FinalLayer {
    fn forward(&self, x: Tensor<3>, c: Tensor<2>) -> Tensor<3> {
        let [shift, scale] = self.ada_ln.forward(c).chunk(2, 1).try_into().expect("two equal chunks");
        self.linear.forward(adaptive_layer_norm(x, EPSILON, shift, scale))
    }
}

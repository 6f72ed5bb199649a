//! VAR: a transformer that predicts a pyramid of token maps, level by level, modulated by the class (adaLN).
//!
//! Source: arXiv:2404.02905. The guidance input is our port of GFT's appendix (arXiv:2501.15420), for which no
//! official code exists.
//! Read this file first. `checkpoint.rs` holds the official parameter names.

// Two parameters keep the capital letters of their official names.
#![allow(non_snake_case)]

#[cfg(test)]
use framework_dylib as _;

mod official;

use framework::burn;
use framework::burn::module::{Module, Param};
use framework::burn::tensor::{Bool, TensorData};
use framework::checkpoint::names::OfficialNames;
use framework::error::Problems;
use framework::network::backbone::{Backbone, BackboneConfig, Cache, HookSites};
use framework::nn::hooks::{AttentionSite, Hooked, Packed};
use framework::nn::parameters::Init;
use framework::nn::{
    Embedding, EmbeddingInit, Linear, Mlp, Span, TimestepEmbedder, adaptive_layer_norm, affine, gated_add, heads,
    merge_heads, parameter, silu, unit_heads,
};
use framework::prelude::*;
use framework::process::tokens::TokenProcess;

/// Published sizes, named by depth. The suffix `s` marks a modulation shared by all blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Size {
    D16,
    D20,
    D24,
    D30,
    #[serde(rename = "d36-s")]
    D36S,
}

/// Dimensions of the network, which a published size sets together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    depth: usize,
    embed_dim: usize,
    num_heads: usize,
    shared_aln: bool,
}

impl Size {
    /// Returns the published dimensions: the width is 64 depth, and there are as many heads as blocks.
    /// Source: arXiv:2404.02905 eq. 8.
    fn numbers(self) -> Numbers {
        let (depth, shared_aln) = match self {
            Self::D16 => (16, false),
            Self::D20 => (20, false),
            Self::D24 => (24, false),
            Self::D30 => (30, false),
            Self::D36S => (36, true),
        };
        Numbers { depth, embed_dim: 64 * depth, num_heads: depth, shared_aln }
    }
}

/// How the guidance number enters the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceInput {
    /// Embeds 1000 times the number, and adds the result to the class embedding.
    Mlp,
}

/// Dimensions of VAR, set by a published name (`size`) or one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VarConfig {
    /// Published size. If it is set, leave out `depth`, `embed_dim`, `num_heads` and `shared_aln`.
    #[serde(default)]
    pub size: Option<Size>,
    /// Number of transformer blocks.
    #[serde(default)]
    #[schemars(range(min = 1, max = 512))]
    pub depth: Option<usize>,
    /// Width of the transformer. Must be a multiple of `num_heads`.
    #[serde(default)]
    #[schemars(range(min = 1, max = 16384))]
    pub embed_dim: Option<usize>,
    /// Number of attention heads per block.
    #[serde(default)]
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: Option<usize>,
    /// Shares one modulation layer among all blocks. Each block adds a learned offset. null = false.
    #[serde(default)]
    pub shared_aln: Option<bool>,
    /// Hidden width of the MLP in each block, as a multiple of `embed_dim`.
    #[serde(default = "mlp_ratio")]
    #[schemars(range(min = 0.25, max = 32.0))]
    pub mlp_ratio: f64,
    /// Normalizes queries and keys to unit length and learns one scale per head, as every released model does.
    #[serde(default = "yes")]
    pub attn_l2_norm: bool,
    /// Number of classes, without the null class. The null class has an additional row in the class table.
    #[serde(default = "num_classes")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub num_classes: usize,
    /// Side lengths of the token maps, coarse to fine. Must be strictly increasing. Published for 256-pixel images:
    /// 1, 2, 3, 4, 5, 6, 8, 10, 13, 16.
    #[serde(default = "patch_nums")]
    #[schemars(length(min = 1), inner(range(min = 1, max = 1024)))]
    pub patch_nums: Vec<usize>,
    /// Vocabulary size of the tokenizer.
    #[serde(default = "vocabulary", rename = "V")]
    #[schemars(range(min = 2, max = 10_000_000))]
    pub vocabulary: usize,
    /// Number of channels of the tokenizer's features. Every level after the first reads the features of the
    /// coarser levels.
    #[serde(default = "channels", rename = "Cvae")]
    #[schemars(range(min = 1, max = 65536))]
    pub channels: usize,
    /// Epsilon of the layer norms.
    #[serde(default = "norm_eps")]
    #[schemars(range(min = 1e-12, max = 1.0))]
    pub norm_eps: f64,
    /// How the guidance number of a guidance-free objective enters the network. null = no guidance input.
    #[serde(default)]
    pub guidance_input: Option<GuidanceInput>,
    /// Initialization of embeddings and linear layers.
    #[serde(default)]
    pub embedding_init: EmbeddingInit,
}

fn mlp_ratio() -> f64 {
    4.0
}
fn yes() -> bool {
    true
}
fn num_classes() -> usize {
    1000
}
fn patch_nums() -> Vec<usize> {
    vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
}
fn vocabulary() -> usize {
    4096
}
fn channels() -> usize {
    32
}
fn norm_eps() -> f64 {
    1e-6
}

framework::register!(backbone "var" => VarConfig, "arXiv:2404.02905");

impl VarConfig {
    fn numbers(&self) -> Option<Numbers> {
        match self.size {
            Some(size) => Some(size.numbers()),
            None => Some(Numbers {
                depth: self.depth?,
                embed_dim: self.embed_dim?,
                num_heads: self.num_heads?,
                shared_aln: self.shared_aln.unwrap_or(false),
            }),
        }
    }

    /// Returns the dimensions of an entry that passed the check phase.
    fn checked(&self) -> Numbers {
        self.numbers().expect("the check phase refuses a var without dimensions")
    }

    fn hidden(&self) -> usize {
        (self.checked().embed_dim as f64 * self.mlp_ratio).round() as usize
    }

    fn positions(&self) -> usize {
        self.patch_nums.iter().map(|side| side * side).sum()
    }

    /// Returns the number of positions in the first level.
    fn first(&self) -> usize {
        self.patch_nums[0] * self.patch_nums[0]
    }

    /// Returns the level of each position.
    fn levels(&self) -> Vec<usize> {
        self.patch_nums.iter().enumerate().flat_map(|(k, side)| vec![k; side * side]).collect()
    }
}

impl BackboneConfig for VarConfig {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let given = [
            ("depth", self.depth.is_some(), true),
            ("embed_dim", self.embed_dim.is_some(), true),
            ("num_heads", self.num_heads.is_some(), true),
            ("shared_aln", self.shared_aln.is_some(), false),
        ];
        for (name, is_given, needed) in given {
            if self.size.is_some() && is_given {
                problems.push(
                    Problem::new(format!("/{name}"), format!("`{name}` is set, but `size` already determines it"))
                        .accepts("either `size`, or depth, embed_dim and num_heads")
                        .fix(format!("delete /backbone/{name} or /backbone/size")),
                );
            } else if self.size.is_none() && !is_given && needed {
                problems.push(
                    Problem::new("", format!("neither `size` nor `{name}` is set"))
                        .accepts("either `size` (such as \"d16\"), or depth, embed_dim and num_heads"),
                );
            }
        }
        if !self.patch_nums.windows(2).all(|pair| pair[0] < pair[1]) {
            let what = format!("`patch_nums` {:?} is not strictly increasing", self.patch_nums);
            problems.push(Problem::new("/patch_nums", what).accepts("strictly increasing sides, coarse to fine"));
        }
        if let Some(Numbers { embed_dim, num_heads, .. }) = self.numbers()
            && !embed_dim.is_multiple_of(num_heads)
        {
            let what = format!("`num_heads` = {num_heads} does not divide `embed_dim` = {embed_dim}");
            problems.push(Problem::new("/num_heads", what).accepts(format!("a divisor of {embed_dim}")));
        }
        problems
    }

    fn accepts(&self) -> Accepts {
        Accepts {
            condition: ConditionShape::Class { count: self.num_classes },
            guidance_input: self.guidance_input.is_some(),
            guidance_field: "/guidance_input",
            variance: false,
            hooks: HookSites { blocks: self.checked().depth, text_attention: false, decode_cache: true, grid: false },
            cache: true,
        }
    }

    fn latent_shape(&self) -> LatentShape {
        LatentShape::pyramid(&self.patch_nums, self.vocabulary, self.channels)
    }

    fn process(&self) -> Box<dyn Process> {
        Box::new(TokenProcess::next_level(&self.patch_nums))
    }

    fn init(&self, device: &Device) -> BoxBackbone {
        BoxBackbone::new(Var::new(self, device))
    }

    fn initializer(&self, path: &str, shape: &[usize]) -> Init {
        let published = self.embedding_init == EmbeddingInit::Published;
        let Numbers { embed_dim, depth, .. } = self.checked();
        // Source: the released training code. Tables and layers have a standard deviation of sqrt(1 / (3 D)). It is
        // divided by sqrt(2 depth) for residual outputs and by 50 for the head. It is divided by 1000 for
        // modulations, so that every block starts close to the identity.
        let std = (1.0 / embed_dim as f64 / 3.0).sqrt();
        let table = path.contains("emb") || path.starts_with("pos_") || path.ends_with("ada_gss");
        match path {
            _ if path.ends_with("scale_mul_1H11") => Init::Filled(4.0_f64.ln()),
            _ if path.ends_with("bias") => Init::Zeros,
            _ if path.contains("ada_lin") => Init::Normal(std * 1e-3),
            _ if !published && path.starts_with("class_emb") => Init::Normal(1.0),
            _ if !published && path.contains("beta_embedder") => {
                Init::XavierUniform { fan_in: shape[0], fan_out: shape[1] }
            }
            _ if table => Init::Normal(std),
            _ if path.starts_with("head.") => Init::Normal(0.02 * std),
            _ if path.ends_with("proj.weight") || path.ends_with("fc2.weight") => {
                Init::Normal(std / (2.0 * depth as f64).sqrt())
            }
            _ if published => Init::Normal(std),
            _ => Init::XavierUniform { fan_in: shape[0], fan_out: shape[1] },
        }
    }

    fn formats(&self) -> Vec<OfficialNames> {
        vec![official::names()]
    }

    fn t_of_native(&self, native: f64) -> f64 {
        native
    }

    fn flops(&self) -> f64 {
        let Numbers { depth, embed_dim, shared_aln, .. } = self.checked();
        let (width, hidden, length) = (embed_dim as f64, self.hidden() as f64, self.positions() as f64);
        let modulation = if shared_aln { 0.0 } else { 12.0 * width * width };
        let block = 2.0 * length * (4.0 * width * width + 2.0 * width * hidden) + 4.0 * length * length * width;
        let ends = 2.0 * length * width * (self.channels + self.vocabulary) as f64 + 16.0 * width * width;
        depth as f64 * (block + modulation) + ends
    }

    fn activations(&self) -> f64 {
        let Numbers { depth, embed_dim, .. } = self.checked();
        let length = self.positions() as f64;
        // Stored per block: the inputs of norms, linear layers, gates and GELU, and the queries, keys and values
        // before and after normalization to unit length. The output adds the logits and their gradient.
        let block = length * (13.0 * embed_dim as f64 + 2.0 * self.hidden() as f64);
        depth as f64 * block + 2.0 * length * self.vocabulary as f64
    }
}

/// Self-attention within and across levels. Queries and values have a bias, keys have none.
#[derive(Module, Debug)]
struct SelfAttention {
    scale_mul_1H11: Option<Param<Tensor<4>>>,
    q_bias: Param<Tensor<1>>,
    v_bias: Param<Tensor<1>>,
    mat_qkv: Linear,
    proj: Linear,
    #[module(skip)]
    num_heads: usize,
}

/// Transformer block. Its modulation comes from its own layer (`ada_lin`), or from the shared layer plus an offset
/// (`ada_gss`).
#[derive(Module, Debug)]
struct Block {
    attn: SelfAttention,
    ffn: Mlp,
    ada_lin: Option<Linear>,
    ada_gss: Option<Param<Tensor<4>>>,
}

/// Modulation of the final norm.
#[derive(Module, Debug)]
struct HeadNorm {
    ada_lin: Linear,
}

/// The VAR network. Field names follow the official checkpoints.
#[derive(Module, Debug)]
pub struct Var {
    word_embed: Linear,
    class_emb: Embedding,
    beta_embedder: Option<TimestepEmbedder>,
    pos_start: Param<Tensor<3>>,
    pos_1LC: Param<Tensor<3>>,
    lvl_embed: Embedding,
    shared_ada_lin: Option<Linear>,
    blocks: Vec<Block>,
    head_nm: HeadNorm,
    head: Linear,
    #[module(skip)]
    config: VarConfig,
}

/// Width of the sinusoids of the guidance number.
const FREQUENCIES: usize = 256;
/// Upper limit of an attention scale. The learned logarithm of the scale is clamped to ln(100).
const LARGEST_SCALE: f64 = 100.0;

impl Var {
    /// Builds the network without allocating its parameters.
    pub fn new(config: &VarConfig, device: &Device) -> Self {
        let Numbers { depth, embed_dim: width, num_heads, shared_aln } = config.checked();
        let block = |_| Block {
            attn: SelfAttention {
                scale_mul_1H11: config.attn_l2_norm.then(|| parameter([1, num_heads, 1, 1], device)),
                q_bias: parameter([width], device),
                v_bias: parameter([width], device),
                mat_qkv: Linear::without_bias(width, 3 * width, device),
                proj: Linear::new(width, width, device),
                num_heads,
            },
            ffn: Mlp::new(width, config.hidden(), device),
            ada_lin: (!shared_aln).then(|| Linear::new(width, 6 * width, device)),
            ada_gss: shared_aln.then(|| parameter([1, 1, 6, width], device)),
        };
        Self {
            word_embed: Linear::new(config.channels, width, device),
            class_emb: Embedding::new(config.num_classes + 1, width, device),
            beta_embedder: config.guidance_input.map(|_| TimestepEmbedder::new(width, FREQUENCIES, None, device)),
            pos_start: parameter([1, config.first(), width], device),
            pos_1LC: parameter([1, config.positions(), width], device),
            lvl_embed: Embedding::new(config.patch_nums.len(), width, device),
            shared_ada_lin: shared_aln.then(|| Linear::new(width, 6 * width, device)),
            blocks: (0..depth).map(block).collect(),
            head_nm: HeadNorm { ada_lin: Linear::new(width, 2 * width, device) },
            head: Linear::new(width, config.vocabulary, device),
            config: config.clone(),
        }
    }

    /// Returns the sum of the class and guidance embeddings, one vector per sample: `[B, D]`.
    fn condition(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<2> {
        let class = self.class_emb.rows(&condition.class_rows(self.config.num_classes));
        match (&self.beta_embedder, guidance) {
            (Some(embedder), Some(guidance)) => {
                let thousands: Vec<f64> = guidance.iter().map(|g| 1000.0 * g).collect();
                let device = class.device().inner();
                class + embedder.forward(&thousands, None, &device)
            }
            _ => class,
        }
    }

    /// Returns the attention mask of the queries `from..to` over the keys `0..to`. It hides keys of finer levels.
    /// Returns `None` if no key is hidden.
    fn mask(&self, from: usize, to: usize, batch: usize, device: &Device) -> Option<Tensor<4, Bool>> {
        let levels = &self.config.levels()[..to];
        if levels[from] == levels[to - 1] {
            return None;
        }
        let hidden: Vec<bool> =
            levels[from..].iter().flat_map(|own| levels.iter().map(move |other| other > own)).collect();
        let mask = Tensor::<4, Bool>::from_data(TensorData::new(hidden, [1, 1, to - from, to]), device);
        Some(mask.expand([batch, self.config.checked().num_heads, to - from, to]))
    }
}

impl Backbone for Var {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Levels { features } = input else {
            panic!("var reads levels; the check phase refuses other families")
        };
        let [batch, end, _] = features.dims();
        let (cache, first, device) = (control.cache.as_ref(), self.config.first(), features.device().inner());
        let read = cache.map_or(0, Cache::read);
        let c = self.condition(condition, control.guidance.as_deref());
        let width = c.dims()[1];
        // The first level starts from the class alone. Every other level reads the features of the coarser levels.
        let words = |from: usize| {
            let features = features.clone().narrow(1, from, end - from).cast(c.dtype());
            self.word_embed.forward(features)
        };
        let start = || c.clone().unsqueeze_dim::<3>(1).expand([batch, first, width]) + self.pos_start.val();
        let x = match read {
            0 if end == first => start(),
            0 => Tensor::cat(vec![start(), words(first)], 1),
            _ => words(read),
        };
        let levels: Vec<i64> = self.config.levels()[read..end].iter().map(|level| *level as i64).collect();
        let places = self.lvl_embed.rows(&levels).unsqueeze::<3>() + self.pos_1LC.val().narrow(1, read, end - read);
        let mut x = x + places;
        let mask = self.mask(read, end, batch, &device);
        let active = silu(c);
        let shared = self.shared_ada_lin.as_ref().map(|ada| ada.forward(active.clone()).reshape([batch, 1, 6, width]));
        for (i, block) in self.blocks.iter().enumerate() {
            let modulation = block.modulation(&active, shared.as_ref());
            let state = Pass { mask: mask.clone(), cache, hooks: &control.hooks, index: i };
            x = control.hooks.block(i, x, |x| block.forward(x, modulation, state, self.config.norm_eps));
        }
        if let Some(cache) = cache {
            cache.advance(end);
        }
        let [scale, shift] = self.head_nm.ada_lin.forward(active).chunk(2, 1).try_into().expect("two equal chunks");
        let x = adaptive_layer_norm(x, self.config.norm_eps, shift, scale);
        self.head.forward(x)
    }
}

/// Inputs of a block apart from its tokens.
struct Pass<'a> {
    mask: Option<Tensor<4, Bool>>,
    cache: Option<&'a Cache>,
    hooks: &'a Hooked,
    index: usize,
}

impl Block {
    /// Returns the gates, scales and shifts of attention (1) and MLP (2), each `[B, D]`, in the official order:
    /// gamma1, gamma2, scale1, scale2, shift1, shift2.
    fn modulation(&self, active: &Tensor<2>, shared: Option<&Tensor<4>>) -> [Tensor<2>; 6] {
        let [batch, width] = active.dims();
        let all = match (&self.ada_lin, &self.ada_gss, shared) {
            (Some(ada), ..) => ada.forward(active.clone()).reshape([batch, 1, 6, width]),
            (None, Some(offset), Some(shared)) => shared.clone() + offset.val(),
            _ => unreachable!("a block has its own modulation layer or an offset to the shared one"),
        };
        std::array::from_fn(|i| all.clone().narrow(2, i, 1).reshape([batch, width]))
    }

    fn forward(
        &self,
        x: Tensor<3>,
        [gamma_attn, gamma_ffn, scale_attn, scale_ffn, shift_attn, shift_ffn]: [Tensor<2>; 6],
        pass: Pass<'_>,
        epsilon: f64,
    ) -> Tensor<3> {
        let modulated = adaptive_layer_norm(x.clone(), epsilon, shift_attn, scale_attn);
        let x = gated_add(x, self.attn.forward(modulated, pass), gamma_attn);
        let modulated = adaptive_layer_norm(x.clone(), epsilon, shift_ffn, scale_ffn);
        let mixed = self.ffn.forward(modulated);
        gated_add(x, mixed, gamma_ffn)
    }
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>, Pass { mask, cache, hooks, index }: Pass<'_>) -> Tensor<3> {
        let (width, site) = (x.dims()[2], AttentionSite::own(index));
        let [q_bias, v_bias] = [&self.q_bias, &self.v_bias].map(Param::val);
        let bias = Tensor::cat(vec![q_bias.clone(), q_bias.zeros_like(), v_bias], 0);
        let mut qkv = affine(x, self.mat_qkv.weight.val(), Some(bias));
        let mut scale = 0.25 / ((width / self.num_heads) as f64).sqrt();
        if let Some(log_scale) = &self.scale_mul_1H11 {
            let factors = log_scale.val().clamp_max(LARGEST_SCALE.ln()).exp();
            (qkv, scale) = (unit_heads(qkv, factors.reshape([self.num_heads])), 1.0);
        }
        let mixed = match cache {
            Some(cache) => {
                let [q, k, v] = [0, 1, 2].map(|i| heads(qkv.clone().narrow(2, i * width, width), self.num_heads));
                let [k, v] = hooks.cached(index, cache.extend(index, k, v));
                merge_heads(hooks.attend(site, [q, k, v], Span::All, mask, Some(scale)))
            }
            None => {
                let packed = Packed { num_heads: self.num_heads, span: Span::All, mask, scale: Some(scale) };
                hooks.attend_packed(site, qkv, packed)
            }
        };
        self.proj.forward(mixed)
    }
}

//! LlamaGen: a language model that predicts image tokens in raster order, after a class token or a text.
//!
//! Source: arXiv:2406.06525, arXiv:2501.15420 (GFT's guidance input).
//! Read this file first. `official.rs` holds the official parameter names.

#[cfg(test)]
use framework_dylib as _;

mod official;

use framework::burn;
use framework::burn::module::{Module, Param};
use framework::checkpoint::names::OfficialNames;
use framework::error::Problems;
use framework::network::backbone::{Backbone, BackboneConfig, Cache, HookSites};
use framework::nn::hooks::{AttentionSite, Hooked, Packed};
use framework::nn::parameters::Init;
use framework::nn::{
    Activation, Embedding, EmbeddingInit, GatedMlp, Linear, Place, RmsNorm, Rotary, Span, TimestepEmbedder, activate,
    heads, merge_heads, parameter,
};
use framework::prelude::*;
use framework::process::tokens::TokenProcess;

/// Published sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Size {
    B,
    L,
    #[serde(rename = "XL")]
    Xl,
    #[serde(rename = "XXL")]
    Xxl,
    #[serde(rename = "3B")]
    ThreeB,
}

/// Dimensions of the network, which a published size sets together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    dim: usize,
    n_layer: usize,
    n_head: usize,
}

impl Size {
    /// Returns the published dimensions. Source: arXiv:2406.06525 table 2.
    fn numbers(self) -> Numbers {
        let (n_layer, n_head, dim) = match self {
            Self::B => (12, 12, 768),
            Self::L => (24, 16, 1024),
            Self::Xl => (36, 20, 1280),
            Self::Xxl => (48, 24, 1536),
            Self::ThreeB => (24, 32, 3200),
        };
        Numbers { dim, n_layer, n_head }
    }
}

/// Kind of prefix that precedes the image tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelType {
    /// A single class token.
    #[default]
    C2i,
    /// The projected features of a text.
    T2i,
}

/// How the guidance number enters the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceInput {
    /// Embeds 1000 times the number, and adds the result to the prefix of the image tokens.
    Mlp,
}

/// Dimensions of LlamaGen, set by a published name (`size`) or one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LlamaGenConfig {
    /// Published size. If it is set, leave out `dim`, `n_layer` and `n_head`.
    pub size: Option<Size>,
    /// Width of the transformer. Must be a multiple of 4 `n_head`.
    #[schemars(range(min = 4, max = 16384))]
    pub dim: Option<usize>,
    /// Number of transformer layers.
    #[schemars(range(min = 1, max = 512))]
    pub n_layer: Option<usize>,
    /// Number of attention heads per layer.
    #[schemars(range(min = 1, max = 256))]
    pub n_head: Option<usize>,
    /// Vocabulary size of the tokenizer.
    #[schemars(range(min = 2, max = 10_000_000))]
    pub vocab_size: usize,
    /// Number of tokens per image. Must be a square number. Published: 256 (16x16) and 576 (24x24).
    #[schemars(range(min = 1, max = 1_048_576))]
    pub block_size: usize,
    /// Kind of prefix that precedes the image tokens.
    pub model_type: ModelType,
    /// Number of classes, without the null class. The null class has an additional row in the class table.
    /// null = 1000. Only for `c2i`.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub num_classes: Option<usize>,
    /// Number of tokens per text. null = 120, as published. Only for `t2i`.
    #[schemars(range(min = 1, max = 4096))]
    pub cls_token_num: Option<usize>,
    /// Width of the text features. null = 2048, as published. Only for `t2i`.
    #[schemars(range(min = 1, max = 65536))]
    pub caption_dim: Option<usize>,
    /// Granularity of the MLP's hidden width, which is 8/3 `dim`, rounded up to a multiple of this value.
    #[schemars(range(min = 1, max = 65536))]
    pub multiple_of: usize,
    /// Epsilon of the RMS norms.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub norm_eps: f64,
    /// Base of the wavelengths in the rotary position embedding.
    #[schemars(range(min = 1.0, max = 1e9))]
    pub rope_base: f64,
    /// How the guidance number of a guidance-free objective enters the network. null = no guidance input.
    pub guidance_input: Option<GuidanceInput>,
    /// Initialization of embeddings and linear layers.
    pub embedding_init: EmbeddingInit,
}

impl Default for LlamaGenConfig {
    fn default() -> Self {
        Self {
            size: None,
            dim: None,
            n_layer: None,
            n_head: None,
            vocab_size: 16384,
            block_size: 256,
            model_type: ModelType::default(),
            num_classes: None,
            cls_token_num: None,
            caption_dim: None,
            multiple_of: 256,
            norm_eps: 1e-5,
            rope_base: 10000.0,
            guidance_input: None,
            embedding_init: EmbeddingInit::default(),
        }
    }
}

framework::register!(backbone "llamagen" => LlamaGenConfig, "arXiv:2406.06525");

impl LlamaGenConfig {
    fn numbers(&self) -> Option<Numbers> {
        match self.size {
            Some(size) => Some(size.numbers()),
            None => Some(Numbers { dim: self.dim?, n_layer: self.n_layer?, n_head: self.n_head? }),
        }
    }

    /// Returns the dimensions of an entry that passed the check phase.
    fn checked(&self) -> Numbers {
        self.numbers().expect("the check phase refuses a llamagen without dimensions")
    }

    fn side(&self) -> usize {
        self.block_size.isqrt()
    }

    fn classes(&self) -> usize {
        self.num_classes.unwrap_or(1000)
    }

    /// Returns the number of sequence entries that precede the image tokens.
    fn prefix(&self) -> usize {
        match self.model_type {
            ModelType::C2i => 1,
            ModelType::T2i => self.cls_token_num.unwrap_or(120),
        }
    }

    fn text_width(&self) -> usize {
        self.caption_dim.unwrap_or(2048)
    }

    fn hidden(&self) -> usize {
        (8 * self.checked().dim / 3).next_multiple_of(self.multiple_of)
    }
}

impl BackboneConfig for LlamaGenConfig {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        for (name, value) in [("dim", self.dim), ("n_layer", self.n_layer), ("n_head", self.n_head)] {
            match (self.size, value) {
                (Some(_), Some(_)) => problems.push(
                    Problem::new(format!("/{name}"), format!("`{name}` is set, but `size` already determines it"))
                        .accepts("either `size`, or dim, n_layer and n_head")
                        .fix(format!("delete /backbone/{name} or /backbone/size")),
                ),
                (None, None) => problems.push(
                    Problem::new("", format!("neither `size` nor `{name}` is set"))
                        .accepts("either `size` (such as \"XL\"), or dim, n_layer and n_head"),
                ),
                _ => {}
            }
        }
        let text = self.model_type == ModelType::T2i;
        let of_text = [("cls_token_num", self.cls_token_num), ("caption_dim", self.caption_dim)];
        let idle: &[_] = if text { &[("num_classes", self.num_classes)] } else { &of_text };
        for (name, _) in idle.iter().filter(|(_, value)| value.is_some()) {
            let what = format!("`{name}` has no effect with this `model_type`");
            let fix = format!("delete /backbone/{name}");
            problems.push(Problem::new(format!("/{name}"), what).and_at("/model_type").accepts("null").fix(fix));
        }
        if self.side().pow(2) != self.block_size {
            let what = format!("`block_size` = {} is not a square number", self.block_size);
            problems.push(Problem::new("/block_size", what).accepts("a square number, e.g. 256"));
        }
        if let Some(Numbers { dim, n_head, .. }) = self.numbers()
            && !dim.is_multiple_of(4 * n_head)
        {
            let what = format!("`dim` = {dim} is not a multiple of 4 x `n_head` = {}", 4 * n_head);
            problems
                .push(Problem::new("/dim", what).and_at("/n_head").accepts("heads of a width that is a multiple of 4"));
        }
        problems
    }

    fn accepts(&self) -> Accepts {
        Accepts {
            condition: match self.model_type {
                ModelType::T2i => ConditionShape::Text { length: None, width: self.text_width() },
                _ => ConditionShape::Class { count: self.classes() },
            },
            guidance_input: self.guidance_input.is_some(),
            guidance_field: "/guidance_input",
            variance: false,
            hooks: HookSites { blocks: self.checked().n_layer, text_attention: false, decode_cache: true, grid: false },
            cache: true,
        }
    }

    fn latent_shape(&self) -> LatentShape {
        LatentShape::tokens([self.side(); 2], self.vocab_size)
    }

    fn process(&self) -> Box<dyn Process> {
        Box::new(TokenProcess::next_token(self.block_size))
    }

    fn init(&self, device: &Device) -> BoxBackbone {
        BoxBackbone::new(LlamaGen::new(self, device))
    }

    fn initializer(&self, path: &str, shape: &[usize]) -> Init {
        let published = self.embedding_init == EmbeddingInit::Published;
        match path {
            "output.weight" => Init::Zeros,
            "cls_embedding.uncond_embedding" => Init::Normal((shape[1] as f64).powf(-0.5)),
            _ if path.ends_with("norm.weight") => Init::Ones,
            _ if path.ends_with("bias") => Init::Zeros,
            _ if published => Init::Normal(0.02),
            _ if path.contains("embedding_table") || path.starts_with("tok_embeddings") => Init::Normal(1.0),
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
        let Numbers { dim, n_layer, .. } = self.checked();
        let (width, hidden) = (dim as f64, self.hidden() as f64);
        let length = (self.prefix() + self.block_size - 1) as f64;
        let layer = 2.0 * length * (4.0 * width * width + 3.0 * width * hidden) + 4.0 * length * length * width;
        n_layer as f64 * layer + 2.0 * self.block_size as f64 * width * self.vocab_size as f64
    }

    fn activations(&self) -> f64 {
        let Numbers { dim, n_layer, .. } = self.checked();
        let length = (self.prefix() + self.block_size - 1) as f64;
        // Stored per layer: the inputs of norms, linear layers and the gate, and the queries, keys and values
        // before and after the rotation. The output adds the logits and their gradient.
        let layer = length * (10.0 * dim as f64 + 3.0 * self.hidden() as f64);
        n_layer as f64 * layer + 2.0 * (self.block_size * self.vocab_size) as f64
    }
}

/// Self-attention without biases, with rotary position embedding of queries and keys.
#[derive(Module, Debug)]
struct SelfAttention {
    wqkv: Linear,
    wo: Linear,
    #[module(skip)]
    n_head: usize,
}

/// Transformer layer: attention and gated MLP, each preceded by a norm.
#[derive(Module, Debug)]
struct Layer {
    attention: SelfAttention,
    feed_forward: GatedMlp,
    attention_norm: RmsNorm,
    ffn_norm: RmsNorm,
}

/// Projection of the text features.
#[derive(Module, Debug)]
struct CaptionProjection {
    fc1: Linear,
    fc2: Linear,
}

/// Weights of the prefix that precedes the image tokens. The prefix is a row of the class table, whose last row
/// belongs to the null class, or the projected features of a text.
#[derive(Module, Debug)]
struct Prefix {
    embedding_table: Option<Embedding>,
    cap_proj: Option<CaptionProjection>,
    uncond_embedding: Option<Param<Tensor<2>>>,
}

/// The LlamaGen network. Field names follow the official checkpoints.
#[derive(Module, Debug)]
pub struct LlamaGen {
    cls_embedding: Prefix,
    t_embedder: Option<TimestepEmbedder>,
    tok_embeddings: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Linear,
    #[module(skip)]
    config: LlamaGenConfig,
}

/// Width of the sinusoids of the guidance number.
const FREQUENCIES: usize = 256;

impl LlamaGen {
    /// Builds the network without allocating its parameters.
    pub fn new(config: &LlamaGenConfig, device: &Device) -> Self {
        let Numbers { dim, n_layer, n_head } = config.checked();
        let layer = |_| Layer {
            attention: SelfAttention {
                wqkv: Linear::without_bias(dim, 3 * dim, device),
                wo: Linear::without_bias(dim, dim, device),
                n_head,
            },
            feed_forward: GatedMlp::new(dim, config.hidden(), device),
            attention_norm: RmsNorm::new(dim, config.norm_eps, device),
            ffn_norm: RmsNorm::new(dim, config.norm_eps, device),
        };
        let text = config.model_type == ModelType::T2i;
        let width = config.text_width();
        Self {
            cls_embedding: Prefix {
                embedding_table: (!text).then(|| Embedding::new(config.classes() + 1, dim, device)),
                cap_proj: text.then(|| CaptionProjection {
                    fc1: Linear::without_bias(width, dim, device),
                    fc2: Linear::without_bias(dim, dim, device),
                }),
                uncond_embedding: text.then(|| parameter([config.prefix(), width], device)),
            },
            t_embedder: config.guidance_input.map(|_| TimestepEmbedder::new(dim, FREQUENCIES, None, device)),
            tok_embeddings: Embedding::new(config.vocab_size, dim, device),
            layers: (0..n_layer).map(layer).collect(),
            norm: RmsNorm::new(dim, config.norm_eps, device),
            output: Linear::without_bias(dim, config.vocab_size, device),
            config: config.clone(),
        }
    }

    /// Returns the prefix that precedes the image tokens, `[B, prefix, D]`.
    fn prefix(&self, condition: &Condition, guidance: Option<&[f64]>) -> Tensor<3> {
        let prefix = match (&self.cls_embedding.embedding_table, condition) {
            (Some(table), _) => table.rows(&condition.class_rows(self.config.classes())).unsqueeze_dim(1),
            (None, Condition::Text { features, dropped, .. }) => self.text(features, dropped),
            _ => panic!("a text-conditional llamagen was given no text; the check phase refuses that"),
        };
        match (&self.t_embedder, guidance) {
            (Some(embedder), Some(guidance)) => {
                let thousands: Vec<f64> = guidance.iter().map(|g| 1000.0 * g).collect();
                let device = prefix.device().inner();
                prefix + embedder.forward(&thousands, None, &device).unsqueeze_dim(1)
            }
            _ => prefix,
        }
    }

    /// Projects text features `[B, prefix, F]`. Dropped samples use the learned null features instead.
    fn text(&self, features: &Tensor<3>, dropped: &[bool]) -> Tensor<3> {
        let (Some(projection), Some(null)) = (&self.cls_embedding.cap_proj, &self.cls_embedding.uncond_embedding)
        else {
            unreachable!("a network without a class table has both")
        };
        let null: Tensor<3> = null.val().unsqueeze();
        let rows: Vec<Tensor<3>> = dropped
            .iter()
            .enumerate()
            .map(
                |(i, dropped)| {
                    if *dropped { null.clone() } else { features.clone().narrow(0, i, 1).cast(null.dtype()) }
                },
            )
            .collect();
        projection.fc2.forward(activate(projection.fc1.forward(Tensor::cat(rows, 0)), Activation::GeluTanh))
    }

    /// Returns the rotations of the sequence entries `from..to`.
    fn rotary(&self, from: usize, to: usize, like: &Tensor<3>) -> Rotary {
        let (prefix, side) = (self.config.prefix(), self.config.side());
        let place = |i: usize| match i.checked_sub(prefix) {
            None => Place::Nowhere,
            Some(token) => Place::At(token / side, token % side),
        };
        let places: Vec<Place> = (from..to).map(place).collect();
        let Numbers { dim, n_head, .. } = self.config.checked();
        Rotary::new(&places, dim / n_head, self.config.rope_base, like.dtype(), &like.device().inner())
    }
}

impl Backbone for LlamaGen {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Tokens { ids } = input else {
            panic!("llamagen reads tokens; the check phase refuses other families")
        };
        let (length, prefix) = (ids.dims()[1], self.config.prefix());
        let cache = control.cache.as_ref();
        // The sequence is [prefix, all tokens except the last]. Entries before `read` are in the cache already.
        let (read, end) = (cache.map_or(0, Cache::read), prefix + length - 1);
        let tokens = |from: usize| self.tok_embeddings.forward(ids.clone().narrow(1, from, length - 1 - from));
        let mut x = match read {
            0 if length == 1 => self.prefix(condition, control.guidance.as_deref()),
            0 => Tensor::cat(vec![self.prefix(condition, control.guidance.as_deref()), tokens(0)], 1),
            _ => tokens(read - prefix),
        };
        let rotary = self.rotary(read, end, &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = control.hooks.block(i, x, |x| layer.forward(x, &rotary, (cache, &control.hooks), i));
        }
        if let Some(cache) = cache {
            cache.advance(end);
        }
        // The last entry of the prefix predicts the first token, so drop the outputs of the entries before it.
        let skip = if read == 0 { prefix - 1 } else { 0 };
        self.output.forward(self.norm.forward(x.narrow(1, skip, end - read - skip)))
    }
}

impl Layer {
    fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        (cache, hooks): (Option<&Cache>, &Hooked),
        index: usize,
    ) -> Tensor<3> {
        let x = x.clone() + self.attention.forward(self.attention_norm.forward(x), rotary, (cache, hooks), index);
        x.clone() + self.feed_forward.forward(self.ffn_norm.forward(x))
    }
}

impl SelfAttention {
    fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        (cache, hooks): (Option<&Cache>, &Hooked),
        index: usize,
    ) -> Tensor<3> {
        let (width, site) = (x.dims()[2], AttentionSite::own(index));
        let qkv = rotary.turn(self.wqkv.forward(x));
        let mixed = match cache {
            None => {
                let packed = Packed { span: Span::Causal, ..Packed::all(self.n_head) };
                hooks.attend_packed(site, qkv, packed)
            }
            Some(cache) => {
                let part = |i: usize| heads(qkv.clone().narrow(2, i * width, width), self.n_head);
                let [k, v] = hooks.cached(index, cache.extend(index, part(1), part(2)));
                merge_heads(hooks.attend(site, [part(0), k, v], Span::Causal, None, None))
            }
        };
        self.wo.forward(mixed)
    }
}

//! LlamaGen: a language model that predicts image tokens in raster order, after a class token or a text.
//!
//! Source: arXiv:2406.06525, arXiv:2501.15420 (GFT's guidance input).
//! Read this file first. `network.rs` holds the network, and `official.rs` the official parameter names.

#[cfg(test)]
use framework_dylib as _;

mod network;
mod official;

pub use network::LlamaGen;

use framework::checkpoint::component::OfficialFile;
use framework::checkpoint::names::OfficialNames;
use framework::checkpoint::refit::Refit;
use framework::error::Problems;
use framework::network::backbone::{BackboneConfig, HookSites};
use framework::nn::EmbeddingInit;
use framework::nn::parameters::Init;
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
    /// Probability in training of dropping an element of the token embeddings, in [0, 1). Published recipe: 0.1.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub token_dropout_p: f64,
    /// Probability in training of dropping an output element of attention, in [0, 1). Published recipe: 0.1. Attention
    /// weights are not dropped, because the fused kernel never stores them.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub resid_dropout_p: f64,
    /// Probability in training of dropping an output element of an MLP, in [0, 1). Published recipe: 0.1.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub ffn_dropout_p: f64,
    /// Probability in training of skipping attention or MLP of the last layer for a sample, in [0, 1). It rises linearly
    /// from 0 at the first layer. Published recipe: 0.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub drop_path_rate: f64,
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
            token_dropout_p: 0.0,
            resid_dropout_p: 0.0,
            ffn_dropout_p: 0.0,
            drop_path_rate: 0.0,
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

    fn official_file(&self) -> OfficialFile {
        OfficialFile { name: "model.pt", entry: "model", ..OfficialFile::default() }
    }

    fn refit(&self, path: &str) -> Option<Refit> {
        // The positions are rotations, which are computed.
        (path == "cls_embedding.embedding_table.weight").then_some(Refit::Classes { null: true })
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

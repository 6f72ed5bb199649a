//! VAR: a transformer that predicts a pyramid of token maps, level by level, modulated by the class (adaLN).
//!
//! Source: arXiv:2404.02905. The guidance input is our port of GFT's appendix (arXiv:2501.15420), for which no
//! official code exists.
//! Read this file first. `network.rs` holds the network, and `official.rs` the official parameter names.

#[cfg(test)]
use framework_dylib as _;

mod network;
mod official;

pub use network::Var;

use framework::checkpoint::component::OfficialFile;
use framework::checkpoint::names::OfficialNames;
use framework::checkpoint::refit::Refit;
use framework::error::Problems;
use framework::network::backbone::{BackboneConfig, HookSites};
use framework::nn::EmbeddingInit;
use framework::nn::parameters::Init;
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
#[serde(default, deny_unknown_fields)]
pub struct VarConfig {
    /// Published size. If it is set, leave out `depth`, `embed_dim`, `num_heads` and `shared_aln`.
    pub size: Option<Size>,
    /// Number of transformer blocks.
    #[schemars(range(min = 1, max = 512))]
    pub depth: Option<usize>,
    /// Width of the transformer. Must be a multiple of `num_heads`.
    #[schemars(range(min = 1, max = 16384))]
    pub embed_dim: Option<usize>,
    /// Number of attention heads per block.
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: Option<usize>,
    /// Shares one modulation layer among all blocks. Each block adds a learned offset. null = false.
    pub shared_aln: Option<bool>,
    /// Hidden width of the MLP in each block, as a multiple of `embed_dim`.
    #[schemars(range(min = 0.25, max = 32.0))]
    pub mlp_ratio: f64,
    /// Normalizes queries and keys to unit length and learns one scale per head, as every released model does.
    pub attn_l2_norm: bool,
    /// Number of classes, without the null class. The null class has an additional row in the class table.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub num_classes: usize,
    /// Side lengths of the token maps, coarse to fine. Must be strictly increasing. Published for 256-pixel images:
    /// 1, 2, 3, 4, 5, 6, 8, 10, 13, 16.
    #[schemars(length(min = 1), inner(range(min = 1, max = 1024)))]
    pub patch_nums: Vec<usize>,
    /// Vocabulary size of the tokenizer.
    #[serde(rename = "V")]
    #[schemars(range(min = 2, max = 10_000_000))]
    pub vocabulary: usize,
    /// Number of channels of the tokenizer's features. Every level after the first reads the features of the
    /// coarser levels.
    #[serde(rename = "Cvae")]
    #[schemars(range(min = 1, max = 65536))]
    pub channels: usize,
    /// Epsilon of the layer norms.
    #[schemars(range(min = 1e-12, max = 1.0))]
    pub norm_eps: f64,
    /// Probability in training of dropping an output element of attention or MLP, in [0, 1). Published recipe: 0.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub drop_rate: f64,
    /// Probability in training of skipping attention or MLP of the last block for a sample, in [0, 1). It rises linearly
    /// from 0 at the first block. Published recipe: 0.1 `depth` / 24.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub drop_path_rate: f64,
    /// How the guidance number of a guidance-free objective enters the network. null = no guidance input.
    pub guidance_input: Option<GuidanceInput>,
    /// Initialization of embeddings and linear layers.
    pub embedding_init: EmbeddingInit,
}

impl Default for VarConfig {
    fn default() -> Self {
        Self {
            size: None,
            depth: None,
            embed_dim: None,
            num_heads: None,
            shared_aln: None,
            mlp_ratio: 4.0,
            attn_l2_norm: true,
            num_classes: 1000,
            patch_nums: vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            vocabulary: 4096,
            channels: 32,
            norm_eps: 1e-6,
            drop_rate: 0.0,
            drop_path_rate: 0.0,
            guidance_input: None,
            embedding_init: EmbeddingInit::default(),
        }
    }
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

    fn official_file(&self) -> OfficialFile {
        OfficialFile {
            name: "model.pth",
            buffers: official::buffers(self.checked(), &self.levels()),
            ..OfficialFile::default()
        }
    }

    fn refit(&self, path: &str) -> Option<Refit> {
        (path == "class_emb.weight").then_some(Refit::Classes { null: true })
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

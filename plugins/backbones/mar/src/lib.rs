//! MAR: a masked autoencoder reads the known tokens of a latent. A small diffusion network, the head, samples every
//! other token, conditioned on the decoder's output at the token's position.
//!
//! Source: arXiv:2406.11838. The published dropout of 0.1 is omitted, because predictions use no random numbers.
//! The guidance input is our port of arXiv:2501.15420, which trains MAR but releases no code for it.
//! Read this file first. `network.rs` holds the network, `head.rs` its diffusion network, and `official.rs` the
//! official parameter names.
//! Shapes: L tokens of D channels; E and W are the widths of encoder and decoder.

#[cfg(test)]
use framework_dylib as _;

mod head;
mod network;
mod official;

pub use network::{Mar, Pass};

use framework::checkpoint::component::OfficialFile;
use framework::checkpoint::names::OfficialNames;
use framework::checkpoint::refit::Refit;
use framework::error::Problems;
use framework::network::backbone::{BackboneConfig, HookSites};
use framework::nn::EmbeddingInit;
use framework::nn::parameters::Init;
use framework::prelude::*;
use framework::process::diffusion::{Betas, VpConfig, VpPrediction};
use framework::process::masked::Masked;
use framework::process::patches::Patches;

/// Width of the sinusoids of time and of the guidance number.
const FREQUENCIES: usize = 256;
/// Epsilon of every layer norm.
const EPSILON: f64 = 1e-6;

/// Published sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Size {
    B,
    L,
    H,
}

/// Width, depth and number of heads of a transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    embed_dim: usize,
    depth: usize,
    num_heads: usize,
}

/// Dimensions of the network, which a published size sets together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    encoder: Numbers,
    decoder: Numbers,
    diffloss_d: usize,
    diffloss_w: usize,
}

impl Size {
    /// Returns the published dimensions. Source: the model definitions and training commands in the code of
    /// arXiv:2406.11838.
    fn sizes(self) -> Sizes {
        let (embed_dim, depth, num_heads, diffloss_d, diffloss_w) = match self {
            Self::B => (768, 12, 12, 6, 1024),
            Self::L => (1024, 16, 16, 8, 1280),
            Self::H => (1280, 20, 16, 12, 1536),
        };
        let half = Numbers { embed_dim, depth, num_heads };
        Sizes { encoder: half, decoder: half, diffloss_d, diffloss_w }
    }
}

/// How the guidance number enters the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceInput {
    /// Embeds 1000 times the number, and adds the result to the class tokens.
    Mlp,
}

/// Diffusion process of the head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HeadProcess {
    /// Noise schedule.
    pub betas: Betas,
    /// Number of training timesteps T, from 2 to 100000.
    #[schemars(range(min = 2, max = 100_000))]
    pub timesteps: usize,
    /// Quantity that the head predicts.
    pub prediction: VpPrediction,
    /// Trains the variance channels with the variational bound of each step. GFT trains MAR without this loss.
    pub variance_loss: bool,
}

impl Default for HeadProcess {
    fn default() -> Self {
        Self { betas: Betas::Cosine, timesteps: 1000, prediction: VpPrediction::Eps, variance_loss: true }
    }
}

/// Dimensions of MAR, set by a published name (`size`) or one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MarConfig {
    /// Published size. If it is set, leave out all `encoder_*`, `decoder_*` and `diffloss_*` fields.
    pub size: Option<Size>,
    /// Side length of the square image, in pixels.
    #[schemars(range(min = 1, max = 16384))]
    pub img_size: usize,
    /// Side length of a latent position, in pixels. Must divide `img_size`.
    #[schemars(range(min = 1, max = 1024))]
    pub vae_stride: usize,
    /// Side length of a token, in latent positions. Must divide `img_size / vae_stride`.
    #[schemars(range(min = 1, max = 64))]
    pub patch_size: usize,
    /// Number of latent channels.
    #[schemars(range(min = 1, max = 1024))]
    pub vae_embed_dim: usize,
    /// Width of the encoder. Must be a multiple of `encoder_num_heads`.
    #[schemars(range(min = 1, max = 16384))]
    pub encoder_embed_dim: Option<usize>,
    /// Number of encoder blocks.
    #[schemars(range(min = 1, max = 512))]
    pub encoder_depth: Option<usize>,
    /// Number of attention heads per encoder block.
    #[schemars(range(min = 1, max = 256))]
    pub encoder_num_heads: Option<usize>,
    /// Width of the decoder. Must be a multiple of `decoder_num_heads`. null = the width of the encoder.
    #[schemars(range(min = 1, max = 16384))]
    pub decoder_embed_dim: Option<usize>,
    /// Number of decoder blocks. null = the number of encoder blocks.
    #[schemars(range(min = 1, max = 512))]
    pub decoder_depth: Option<usize>,
    /// Number of attention heads per decoder block. null = the number of heads of the encoder.
    #[schemars(range(min = 1, max = 256))]
    pub decoder_num_heads: Option<usize>,
    /// Number of blocks in the head.
    #[schemars(range(min = 1, max = 512))]
    pub diffloss_d: Option<usize>,
    /// Width of the head.
    #[schemars(range(min = 1, max = 16384))]
    pub diffloss_w: Option<usize>,
    /// Hidden width of the MLP in each transformer block, as a multiple of the transformer's width.
    #[schemars(range(min = 0.25, max = 32.0))]
    pub mlp_ratio: f64,
    /// Number of classes, without the null class. The null class has a separate embedding.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub class_num: usize,
    /// Number of class tokens that precede the tokens of the latent.
    #[schemars(range(min = 1, max = 4096))]
    pub buffer_size: usize,
    /// Minimum fraction of tokens that training hides, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mask_ratio_min: f64,
    /// Probability in training of dropping an element of the attention outputs and of both MLP layers in encoder and
    /// decoder, in [0, 1). Published recipe: 0.1. Attention weights are not dropped, because the fused kernel never
    /// stores them.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub proj_dropout: f64,
    /// Number of pairs of time and noise at which each hidden token trains the head.
    #[schemars(range(min = 1, max = 1024))]
    pub diffusion_batch_mul: usize,
    /// Predicts a variance in addition to the noise, which doubles the output channels. The published checkpoints
    /// have it.
    pub learn_sigma: bool,
    /// How the guidance number of a guidance-free objective enters the network. null = no guidance input. This is
    /// our port of arXiv:2501.15420, which releases no code for MAR.
    pub guidance_input: Option<GuidanceInput>,
    /// Initialization of the class, null, time and guidance embeddings.
    pub embedding_init: EmbeddingInit,
    /// Noise schedule of the head, and the quantity that the head predicts.
    pub process: HeadProcess,
}

impl Default for MarConfig {
    fn default() -> Self {
        Self {
            size: None,
            img_size: 256,
            vae_stride: 16,
            patch_size: 1,
            vae_embed_dim: 16,
            encoder_embed_dim: None,
            encoder_depth: None,
            encoder_num_heads: None,
            decoder_embed_dim: None,
            decoder_depth: None,
            decoder_num_heads: None,
            diffloss_d: None,
            diffloss_w: None,
            mlp_ratio: 4.0,
            class_num: 1000,
            buffer_size: 64,
            mask_ratio_min: 0.7,
            proj_dropout: 0.0,
            diffusion_batch_mul: 4,
            learn_sigma: true,
            guidance_input: None,
            embedding_init: EmbeddingInit::default(),
            process: HeadProcess::default(),
        }
    }
}

framework::register!(backbone "mar" => MarConfig, "arXiv:2406.11838");

impl MarConfig {
    fn sizes(&self) -> Option<Sizes> {
        if let Some(size) = self.size {
            return Some(size.sizes());
        }
        let encoder = Numbers {
            embed_dim: self.encoder_embed_dim?,
            depth: self.encoder_depth?,
            num_heads: self.encoder_num_heads?,
        };
        let decoder = Numbers {
            embed_dim: self.decoder_embed_dim.unwrap_or(encoder.embed_dim),
            depth: self.decoder_depth.unwrap_or(encoder.depth),
            num_heads: self.decoder_num_heads.unwrap_or(encoder.num_heads),
        };
        Some(Sizes { encoder, decoder, diffloss_d: self.diffloss_d?, diffloss_w: self.diffloss_w? })
    }

    /// Returns the dimensions of an entry that passed the check phase.
    fn checked(&self) -> Sizes {
        self.sizes().expect("the check phase refuses a mar without dimensions")
    }

    fn patches(&self) -> Patches {
        Patches { grid: [self.img_size / self.vae_stride; 2], patch: self.patch_size }
    }

    /// Returns the number of channels per token.
    fn token_width(&self) -> usize {
        self.vae_embed_dim * self.patch_size * self.patch_size
    }

    fn out_channels(&self) -> usize {
        self.token_width() * if self.learn_sigma { 2 } else { 1 }
    }

    fn mlp_width(&self, embed_dim: usize) -> usize {
        (embed_dim as f64 * self.mlp_ratio) as usize
    }

    /// Builds the masked process.
    pub fn masked(&self) -> Masked {
        let HeadProcess { betas, timesteps, prediction, variance_loss } = self.process;
        let head = VpConfig { betas, timesteps, prediction, variance_loss, ..VpConfig::default() }.process();
        let (mask_ratio_min, repeats) = (self.mask_ratio_min, self.diffusion_batch_mul);
        Masked { patches: self.patches(), mask_ratio_min, repeats, head }
    }

    /// Returns the work that the cost estimates assume: both transformers with their number of tokens, and the
    /// number of rows of the head. Training hides the minimum fraction of tokens in this case.
    fn work(&self) -> ([(Numbers, f64); 2], f64) {
        let Sizes { encoder, decoder, .. } = self.checked();
        let (buffer, tokens) = (self.buffer_size as f64, self.patches().tokens() as f64);
        let known = ((1.0 - self.mask_ratio_min) * tokens).floor();
        let parts = [(encoder, buffer + known), (decoder, buffer + tokens)];
        (parts, (tokens - known) * self.diffusion_batch_mul as f64)
    }
}

impl BackboneConfig for MarConfig {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let given = [
            ("encoder_embed_dim", self.encoder_embed_dim, true),
            ("encoder_depth", self.encoder_depth, true),
            ("encoder_num_heads", self.encoder_num_heads, true),
            ("decoder_embed_dim", self.decoder_embed_dim, false),
            ("decoder_depth", self.decoder_depth, false),
            ("decoder_num_heads", self.decoder_num_heads, false),
            ("diffloss_d", self.diffloss_d, true),
            ("diffloss_w", self.diffloss_w, true),
        ];
        for (name, value, required) in given {
            match (self.size, value) {
                (Some(_), Some(_)) => problems.push(
                    Problem::new(format!("/{name}"), format!("`{name}` is set, but `size` already determines it"))
                        .accepts("either `size`, or the dimensions of encoder, decoder and head")
                        .fix(format!("delete /backbone/{name} or /backbone/size")),
                ),
                (None, None) if required => problems.push(
                    Problem::new("", format!("neither `size` nor `{name}` is set")).accepts(
                        "either `size` (such as \"B\"), or encoder_embed_dim, encoder_depth, encoder_num_heads, diffloss_d and diffloss_w",
                    ),
                ),
                _ => {}
            }
        }
        if self.process.variance_loss && !self.learn_sigma {
            let what = "`variance_loss` trains channels that the network does not have";
            let problem = Problem::new("/process/variance_loss", what).and_at("/learn_sigma");
            problems.push(problem.accepts("`variance_loss` with \"learn_sigma\": true"));
        }
        let mut divides = |part: usize, name: &str, whole: usize, of: &str| {
            let divides = whole.is_multiple_of(part);
            if !divides {
                problems.push(
                    Problem::new(format!("/{name}"), format!("`{name}` = {part} does not divide {of} = {whole}"))
                        .accepts(format!("a divisor of {whole}")),
                );
            }
            divides
        };
        if divides(self.vae_stride, "vae_stride", self.img_size, "`img_size`") {
            let side = self.img_size / self.vae_stride;
            divides(self.patch_size, "patch_size", side, "the latent's side `img_size` / `vae_stride`");
        }
        if let Some(Sizes { encoder, decoder, .. }) = self.sizes() {
            divides(encoder.num_heads, "encoder_num_heads", encoder.embed_dim, "the encoder's width");
            divides(decoder.num_heads, "decoder_num_heads", decoder.embed_dim, "the decoder's width");
        }
        problems
    }

    fn accepts(&self) -> Accepts {
        Accepts {
            condition: ConditionShape::Class { count: self.class_num },
            guidance_input: self.guidance_input.is_some(),
            guidance_field: "/guidance_input",
            variance: self.learn_sigma,
            hooks: HookSites {
                blocks: {
                    let Sizes { encoder, decoder, .. } = self.checked();
                    encoder.depth + decoder.depth
                },
                text_attention: false,
                decode_cache: false,
                grid: false,
            },
            cache: true,
        }
    }

    fn latent_shape(&self) -> LatentShape {
        LatentShape::values(self.patches().grid, self.vae_embed_dim)
    }

    fn process(&self) -> Box<dyn Process> {
        Box::new(self.masked())
    }

    fn init(&self, device: &Device) -> BoxBackbone {
        BoxBackbone::new(Mar::new(self, device))
    }

    fn initializer(&self, path: &str, shape: &[usize]) -> Init {
        let published = self.embedding_init == EmbeddingInit::Published;
        match path {
            "class_emb" | "fake_latent" => Init::Normal(if published { 0.02 } else { 1.0 }),
            "mask_token" => Init::Normal(0.02),
            _ if path.ends_with("pos_embed_learned") => Init::Normal(0.02),
            _ if path.ends_with("bias") || path.contains("ada_ln") => Init::Zeros,
            _ if path.starts_with("diffloss.final_layer") => Init::Zeros,
            _ if published && (path.starts_with("diffloss.time_embed") || path.starts_with("beta_embedder")) => {
                Init::Normal(0.02)
            }
            _ => match *shape {
                [fan_in, fan_out] => Init::XavierUniform { fan_in, fan_out },
                // The weights of norms.
                _ => Init::Ones,
            },
        }
    }

    fn formats(&self) -> Vec<OfficialNames> {
        vec![official::names()]
    }

    fn official_file(&self) -> OfficialFile {
        OfficialFile { name: "model.pth", entry: "model_ema", ..OfficialFile::default() }
    }

    fn refit(&self, path: &str) -> Option<Refit> {
        match path {
            "class_emb" => Some(Refit::Classes { null: false }),
            "encoder_pos_embed_learned" | "decoder_pos_embed_learned" => {
                Some(Refit::Positions { before: self.buffer_size })
            }
            "diffusion_pos_embed_learned" => Some(Refit::Positions { before: 0 }),
            _ => None,
        }
    }

    fn t_of_native(&self, native: f64) -> f64 {
        self.masked().head.t_of_index(native)
    }

    fn flops(&self) -> f64 {
        let (parts, rows) = self.work();
        let transformer = |(Numbers { embed_dim, depth, .. }, tokens): (Numbers, f64)| {
            let (width, mlp) = (embed_dim as f64, self.mlp_width(embed_dim) as f64);
            let block = 2.0 * tokens * (4.0 * width * width + 2.0 * width * mlp) + 4.0 * tokens * tokens * width;
            depth as f64 * block
        };
        let Sizes { decoder, diffloss_d, diffloss_w, .. } = self.checked();
        let (depth, width) = (diffloss_d as f64, diffloss_w as f64);
        let ends = decoder.embed_dim + self.token_width() + self.out_channels();
        let head = 2.0 * rows * (depth * 5.0 * width * width + 2.0 * width * width + width * ends as f64);
        parts.into_iter().map(transformer).sum::<f64>() + head
    }

    fn activations(&self) -> f64 {
        let (parts, rows) = self.work();
        let transformer = |(Numbers { embed_dim, depth, .. }, tokens): (Numbers, f64)| {
            let (width, mlp) = (embed_dim as f64, self.mlp_width(embed_dim) as f64);
            // Stored per block: the inputs of norms, linear layers and GELU, and the queries, keys and values.
            depth as f64 * tokens * (9.0 * width + 2.0 * mlp)
        };
        let Sizes { diffloss_d, diffloss_w, .. } = self.checked();
        // Stored per row and block of the head: the inputs of norm, linear layers, SiLU and gate, and the modulation.
        // Every row has its own modulation.
        parts.into_iter().map(transformer).sum::<f64>() + rows * (diffloss_d * 10 * diffloss_w) as f64
    }
}

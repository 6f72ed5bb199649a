//! CLIP's frozen text encoder, which computes the features that Stable Diffusion attends to.
//!
//!   features = final_layer_norm(transformer(ids)),   all positions, padding included
//!
//! Source: arXiv:2103.00020 sec. 2.4; arXiv:2112.10752 for its use. The null caption is the negative prompt; it is
//! "" during training.
//! Shapes: ids `[B, L]`, features `[B, L, D]`.

use crate::bpe::Bpe;
use framework::checkpoint::names::{BESIDE_LATENT_DIFFUSION, Layout, OfficialName, OfficialNames};
use framework::checkpoint::official::{self, Report};
use framework::error::{Error, Problems, Result};
use framework::network::condition::ConditionShape;
use framework::network::conditioner::Conditioner;
use framework::nn::parameters;
use framework::nn::{TextEncoder, TextEncoderConfig};
use framework::prelude::*;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

/// CLIP's text encoder. The defaults match ViT-L/14, which Stable Diffusion 1.5 uses.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipText {
    /// The weights: the folder text_encoder/ of a `diffusers` pipeline, the folder of the whole pipeline, or a
    /// file (.safetensors, .bin, or the .ckpt of the whole model). A relative path starts at the working
    /// directory.
    pub path: PathBuf,
    /// The tokenizer: `tokenizer.json`, `vocab.json` with `merges.txt` next to it,
    /// `bpe_simple_vocab_16e6.txt.gz`, or a folder that holds one of these files.
    pub tokenizer: PathBuf,
    /// The negative prompt, which guided samples move away from. It is the null caption.
    #[serde(default)]
    pub negative: String,
    /// Length of every encoded text, in tokens. Longer texts are cut; shorter texts are padded.
    #[serde(default = "length")]
    #[schemars(range(min = 2, max = 65_536))]
    pub length: usize,
    /// Number of distinct tokens: the vocabulary.
    #[serde(default = "vocab_size")]
    #[schemars(range(min = 2, max = 10_000_000))]
    pub vocab_size: usize,
    /// Width of the features.
    #[serde(default = "hidden_size")]
    #[schemars(range(min = 1, max = 65_536))]
    pub hidden_size: usize,
    /// Hidden width of the MLPs.
    #[serde(default = "intermediate_size")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub intermediate_size: usize,
    /// Number of transformer layers.
    #[serde(default = "num_layers")]
    #[schemars(range(min = 1, max = 512))]
    pub num_layers: usize,
    /// Number of attention heads per layer; a divisor of `hidden_size`.
    #[serde(default = "num_heads")]
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: usize,
    #[serde(skip)]
    loaded: Option<Loaded>,
}

#[derive(Clone, Debug)]
struct Loaded {
    bpe: Bpe,
    network: TextEncoder,
    device: Device,
}

fn length() -> usize {
    77
}
fn vocab_size() -> usize {
    49_408
}
fn hidden_size() -> usize {
    768
}
fn intermediate_size() -> usize {
    3072
}
fn num_layers() -> usize {
    12
}
fn num_heads() -> usize {
    12
}

framework::register!(conditioner "clip_text" => ClipText, "arXiv:2103.00020", "arXiv:2112.10752");

impl ClipText {
    /// Creates the network. Its parameters are not allocated yet.
    pub fn init(&self, device: &Device) -> TextEncoder {
        let config = TextEncoderConfig {
            vocab_size: self.vocab_size,
            length: self.length,
            width: self.hidden_size,
            hidden: self.intermediate_size,
            layers: self.num_layers,
            num_heads: self.num_heads,
        };
        TextEncoder::new(&config, device)
    }

    /// Returns the names of two formats: `transformers`, and the CompVis checkpoint, which nests the same
    /// names.
    pub fn formats(&self) -> Vec<OfficialNames> {
        let format = |format, folder, nesting, ignored| OfficialNames {
            format,
            folder,
            of: Arc::new(move |path: &str| OfficialName { name: name(path), layout: layout(path) }),
            nesting,
            ignored,
            optional: &[],
        };
        vec![
            format("diffusers", "text_encoder", &[], &[("position_ids", "indices that count from 0")]),
            format(
                "compvis",
                "",
                &["state_dict.cond_stage_model.transformer.", "cond_stage_model.transformer."],
                BESIDE_LATENT_DIFFUSION,
            ),
        ]
    }

    fn loaded(&self) -> Result<&Loaded> {
        self.loaded.as_ref().ok_or_else(|| Error::Run("the text encoder is not loaded".into()))
    }

    /// Computes the features `[B, L, D]` of texts. Equal texts are computed once.
    fn features(&self, captions: &[&str]) -> Result<Tensor<3>> {
        let Loaded { bpe, network, device } = self.loaded()?;
        let mut texts: Vec<&str> = captions.to_vec();
        texts.sort_unstable();
        texts.dedup();
        let rows = texts.iter().map(|text| bpe.ids(text, self.length)).collect::<Result<Vec<_>>>()?;
        let ids: Vec<i64> = rows.iter().flatten().map(|id| *id as i64).collect();
        let ids = Tensor::<1, Int>::from_data(ids.as_slice(), device).reshape([rows.len(), self.length]);
        let place = |text: &&str| texts.binary_search(text).expect("the list holds every text") as i64;
        let places: Vec<i64> = captions.iter().map(place).collect();
        Ok(network.forward(ids).select(0, Tensor::<1, Int>::from_data(places.as_slice(), device)))
    }
}

fn name(path: &str) -> String {
    match path.split('.').next() {
        Some("layers") => format!("text_model.encoder.{path}"),
        Some("final_layer_norm") => format!("text_model.{path}"),
        _ => format!("text_model.embeddings.{path}"),
    }
}

fn layout(path: &str) -> Layout {
    let linear = path.ends_with(".weight") && (path.contains("self_attn") || path.contains("mlp"));
    if linear { Layout::Transposed } else { Layout::Same }
}

impl Conditioner for ClipText {
    fn check(&self) -> Problems {
        if self.hidden_size.is_multiple_of(self.num_heads) {
            return Problems::new();
        }
        let what = format!("`num_heads` = {} does not divide `hidden_size` = {}", self.num_heads, self.hidden_size);
        vec![Problem::new("/num_heads", what).accepts(format!("a divisor of {}", self.hidden_size))]
    }

    fn produces(&self) -> ConditionShape {
        ConditionShape::Text { length: Some(self.length), width: self.hidden_size }
    }

    fn load(&mut self, device: &Device) -> Result<()> {
        let bpe = Bpe::open(&self.tokenizer)?;
        if bpe.vocabulary() > self.vocab_size {
            let what = format!("has {} tokens, but /conditioner/vocab_size is {}", bpe.vocabulary(), self.vocab_size);
            return Err(Error::file(&self.tokenizer, what));
        }
        let (network, _) = official::load_whole(self.init(device), &self.formats(), &self.path)?;
        self.loaded = Some(Loaded { bpe, network, device: device.clone() });
        Ok(())
    }

    fn convert(&self, from: &FilePath, to: &FilePath, format: Option<&str>) -> Result<Option<Report>> {
        official::convert(self.init(&Device::flex()), &self.formats(), [from, to], format).map(Some)
    }

    fn parameters(&self) -> usize {
        parameters::count(&self.init(&Device::flex()))
    }

    fn check_caption(&self, caption: &str) -> Result<Option<String>> {
        let read = self.length.saturating_sub(2);
        let longer = self.loaded()?.bpe.tokens(caption)?.len() > read;
        Ok(longer.then(|| format!("longer than the {read} tokens that the text encoder reads, and cut there")))
    }

    fn encode(&self, captions: &[Option<String>]) -> Result<Condition> {
        let mut texts: Vec<&str> =
            captions.iter().map(|caption| caption.as_deref().unwrap_or(&self.negative)).collect();
        // Append the null caption, so that one pass computes it together with the others.
        texts.push(&self.negative);
        let features = self.features(&texts)?;
        let count = captions.len();
        Ok(Condition::Text {
            null: features.clone().narrow(0, count, 1),
            features: features.narrow(0, 0, count),
            dropped: captions.iter().map(Option::is_none).collect(),
        })
    }
}

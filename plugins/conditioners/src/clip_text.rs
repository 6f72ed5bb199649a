//! CLIP's frozen text encoder, which computes the features that Stable Diffusion attends to.
//!
//!   features = final_layer_norm(transformer(ids)),   all positions, padding included
//!
//! Source: arXiv:2103.00020 sec. 2.4; arXiv:2112.10752 for its use. The null caption is the negative prompt; it is
//! "" during training.
//! Shapes: ids `[B, L]`, features `[B, L, D]`.

use crate::bpe::{Bpe, END, START};
use framework::burn::tensor::TensorData;
use framework::checkpoint::component::Component;
use framework::checkpoint::names::{BESIDE_LATENT_DIFFUSION, Layout, OfficialName, OfficialNames};
use framework::checkpoint::official::{self, Report};
use framework::checkpoint::published_config::PublishedConfig;
use framework::error::{Error, Problems, Result};
use framework::network::condition::ConditionShape;
use framework::network::conditioner::Conditioner;
use framework::nn::parameters;
use framework::nn::{TextEncoder, TextEncoderConfig};
use framework::prelude::*;
use framework::serde_json::{Map, Value, json};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

/// CLIP's text encoder. The defaults match ViT-L/14, which Stable Diffusion 1.5 uses.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path", "tokenizer"]))]
pub struct ClipText {
    /// The weights: the folder text_encoder/ of a `diffusers` pipeline, the folder of the whole pipeline, or a
    /// file (.safetensors, .bin, or the .ckpt of the whole model). A relative path starts at the working
    /// directory.
    pub path: PathBuf,
    /// The tokenizer: `tokenizer.json`, `vocab.json` with `merges.txt` next to it,
    /// `bpe_simple_vocab_16e6.txt.gz`, or a folder that holds one of these files.
    pub tokenizer: PathBuf,
    /// The negative prompt, which guided samples move away from. It is the null caption.
    pub negative: String,
    /// Length of every encoded text, in tokens. Longer texts are cut; shorter texts are padded.
    #[schemars(range(min = 2, max = 65_536))]
    pub length: usize,
    /// Number of distinct tokens: the vocabulary.
    #[schemars(range(min = 2, max = 10_000_000))]
    pub vocab_size: usize,
    /// Width of the features.
    #[schemars(range(min = 1, max = 65_536))]
    pub hidden_size: usize,
    /// Hidden width of the MLPs.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub intermediate_size: usize,
    /// Number of transformer layers.
    #[schemars(range(min = 1, max = 512))]
    pub num_layers: usize,
    /// Number of attention heads per layer; a divisor of `hidden_size`.
    #[schemars(range(min = 1, max = 256))]
    pub num_heads: usize,
    #[serde(skip)]
    loaded: Option<Loaded>,
}

impl Default for ClipText {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            tokenizer: PathBuf::new(),
            negative: String::new(),
            length: 77,
            vocab_size: 49_408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_layers: 12,
            num_heads: 12,
            loaded: None,
        }
    }
}

#[derive(Clone, Debug)]
struct Loaded {
    bpe: Bpe,
    network: TextEncoder,
    device: Device,
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

    /// Returns the names of three formats: `transformers` before version 5, the CompVis checkpoint, which nests the
    /// same names, and `transformers` 5, which writes no `text_model.`.
    pub fn formats(&self) -> Vec<OfficialNames> {
        let format = |format, folder, of: fn(&str) -> String, nesting, ignored| OfficialNames {
            format,
            folder,
            of: Arc::new(move |path: &str| OfficialName { name: of(path), layout: layout(path) }),
            nesting,
            ignored,
            optional: &[],
        };
        vec![
            format("diffusers", "text_encoder", name, &[], BESIDE_THE_TEXT_ENCODER),
            format(
                "compvis",
                "",
                name,
                &["state_dict.cond_stage_model.transformer.", "cond_stage_model.transformer."],
                BESIDE_LATENT_DIFFUSION,
            ),
            format("transformers5", "text_encoder", short_name, &[], BESIDE_THE_TEXT_ENCODER),
        ]
    }

    /// Compares the entry with the `config.json` next to the weights. Neither the number of heads nor the activation
    /// shows in the shapes of the weights.
    ///
    /// # Errors
    /// If the file is not JSON, or says something else.
    fn agrees_with_published(&self) -> Result<()> {
        let Some(mut file) = PublishedConfig::of(&self.path, "text_encoder")?.network else { return Ok(()) };
        // A whole CLIP nests the configuration of its text encoder.
        if let Some(Value::Object(inner)) = file.entries.get("text_config") {
            file.entries = inner.clone();
        }
        let own = [
            ("vocab_size", "/vocab_size", self.vocab_size),
            ("hidden_size", "/hidden_size", self.hidden_size),
            ("intermediate_size", "/intermediate_size", self.intermediate_size),
            ("num_hidden_layers", "/num_layers", self.num_layers),
            ("num_attention_heads", "/num_heads", self.num_heads),
        ];
        let own = own.map(|(key, field, own)| {
            file.differs(key, field, &json!(own)).map(|problem| {
                let fix = problem.fix.as_deref().unwrap_or_default().replace("/backbone", "/conditioner");
                problem.fix(fix)
            })
        });
        let mut problems: Problems = own.into_iter().flatten().collect();
        problems.extend(file.fixed("", &[("hidden_act", json!("quick_gelu"))]));
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Input(problems.into_iter().map(|problem| problem.under("/conditioner")).collect())),
        }
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

/// Returns the entries as a configuration.
fn configuration(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

impl ClipText {
    /// Returns the text encoder as `transformers` stores it.
    fn text_encoder(&self, tensors: Vec<(String, TensorData)>) -> Component {
        let config = configuration([
            ("architectures", json!(["CLIPTextModel"])),
            ("model_type", json!("clip_text_model")),
            ("vocab_size", json!(self.vocab_size)),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("projection_dim", json!(self.hidden_size)),
            ("num_hidden_layers", json!(self.num_layers)),
            ("num_attention_heads", json!(self.num_heads)),
            ("max_position_embeddings", json!(self.length)),
            ("hidden_act", json!("quick_gelu")),
            ("layer_norm_eps", json!(1e-5)),
            ("attention_dropout", json!(0.0)),
            ("dropout", json!(0.0)),
            ("initializer_range", json!(0.02)),
            ("initializer_factor", json!(1.0)),
            // As published with Stable Diffusion.
            ("bos_token_id", json!(0)),
            ("eos_token_id", json!(2)),
            ("pad_token_id", json!(1)),
            ("torch_dtype", json!("float32")),
        ]);
        Component {
            folder: "text_encoder",
            library: "transformers",
            class: "CLIPTextModel",
            config_file: "config.json",
            config,
            weights_file: "model.safetensors",
            tensors,
            ..Component::default()
        }
    }

    /// Returns the tokenizer as `transformers` stores it.
    fn tokenizer(&self, bpe: &Bpe) -> Result<Component> {
        let [start, end] = [START, END].map(|token| json!(token));
        let config = configuration([
            ("tokenizer_class", json!("CLIPTokenizer")),
            ("model_max_length", json!(self.length)),
            ("add_prefix_space", json!(false)),
            ("do_lower_case", json!(true)),
            ("errors", json!("replace")),
            ("bos_token", start.clone()),
            ("eos_token", end.clone()),
            ("unk_token", end.clone()),
            ("pad_token", end.clone()),
        ]);
        let special =
            [("bos_token", start), ("eos_token", end.clone()), ("unk_token", end.clone()), ("pad_token", end)];
        let special = Value::Object(configuration(special));
        let [vocabulary, merges] = bpe.files()?;
        Ok(Component {
            folder: "tokenizer",
            library: "transformers",
            class: "CLIPTokenizer",
            config_file: "tokenizer_config.json",
            config,
            files: vec![
                ("vocab.json", vocabulary),
                ("merges.txt", merges),
                ("special_tokens_map.json", special.to_string().into_bytes()),
            ],
            ..Component::default()
        })
    }
}

/// Contents of a whole CLIP other than its text encoder.
const BESIDE_THE_TEXT_ENCODER: &[(&str, &str)] = &[
    ("position_ids", "indices that count from 0"),
    ("vision_model.", "the image encoder"),
    ("visual_projection", "the projection of images"),
    ("text_projection", "the projection of texts"),
    ("logit_scale", "the scale of CLIP's loss"),
];

fn name(path: &str) -> String {
    format!("text_model.{}", short_name(path))
}

fn short_name(path: &str) -> String {
    match path.split('.').next() {
        Some("layers") => format!("encoder.{path}"),
        Some("final_layer_norm") => path.to_string(),
        _ => format!("embeddings.{path}"),
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
        self.agrees_with_published()?;
        let (network, _) = official::load_whole(self.init(device), &self.formats(), &self.path)?;
        self.loaded = Some(Loaded { bpe, network, device: device.clone() });
        Ok(())
    }

    fn convert(&self, from: &FilePath, to: &FilePath, format: Option<&str>) -> Result<Option<Report>> {
        official::convert(self.init(&Device::flex()), &self.formats(), [from, to], format).map(Some)
    }

    fn components(&self, format: &str) -> Result<Vec<Component>> {
        let formats = self.formats();
        let Some(names) = formats.iter().find(|names| names.format == format) else { return Ok(Vec::new()) };
        let Loaded { bpe, network, .. } = self.loaded()?;
        let mut tensors = official::named(parameters::export(network), names);
        if names.folder.is_empty() {
            tensors.iter_mut().for_each(|(name, _)| *name = format!("cond_stage_model.transformer.{name}"));
        }
        Ok(vec![self.text_encoder(tensors), self.tokenizer(bpe)?])
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

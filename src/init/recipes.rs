//! The recipes: which settings a document gets for which images and checkpoint. Each recipe is one function, and each is
//! trained by a test.

use crate::init::published::{Published, Vae};
use crate::init::survey::{Captions, Survey};
use crate::init::text::Entry;
use framework::error::{Problem, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Name, requirements and result of each recipe, for `init --list`.
pub const ALL: [[&str; 3]; 5] = [
    ["small-images", "FOLDER with class folders", "pixels of 8 to 64 on a side, SiT or DiT from scratch"],
    ["captions", "FOLDER with captions", "pixels of 8 to 64 on a side, U-Net and text encoder from scratch"],
    ["latents", "FOLDER with class folders, --vae PATH", "latents of a Stable Diffusion VAE, SiT or DiT from scratch"],
    ["own-classes", "DiT or SiT CHECKPOINT --data FOLDER --vae PATH", "a published network fine-tuned on own classes"],
    ["lora", "Stable Diffusion 1.5 folder --data FOLDER", "adapters for images with captions"],
];

/// What the user chose.
#[derive(Clone, Debug)]
pub struct Choices {
    /// Objective: gft, mg or cfg.
    pub objective: String,
    /// Transformer: sit or dit. The recipes with a U-Net do not read it.
    pub backbone: String,
    /// Side of the items, in pixels.
    pub image_size: usize,
    /// Optimizer steps.
    pub steps: usize,
}

/// A recipe with its entries filled in.
pub struct Recipe {
    /// Name in `init --list`.
    pub name: &'static str,
    /// Entries of the document, in order.
    pub entries: Vec<Entry>,
}

/// Sizes of a transformer for `tokens_side` tokens along a side.
struct Size {
    width: usize,
    depth: usize,
    heads: usize,
    patch: usize,
    batch: usize,
    rate: f64,
}

/// Returns the sizes for a latent of this side. Small inputs have small networks, which learn in minutes on a processor.
fn size(side: usize) -> Size {
    let size = |width, depth, heads, patch, batch, rate| Size { width, depth, heads, patch, batch, rate };
    match side {
        ..=8 => size(64, 3, 4, 2, 64, 2e-3),
        9..=16 => size(128, 4, 4, 2, 64, 1e-3),
        17..=32 => size(128, 4, 4, 4, 64, 1e-3),
        _ => size(192, 6, 6, side.div_ceil(8), 32, 7e-4),
    }
}

/// Returns the largest patch side up to `wanted` that divides `side`.
fn patch(side: usize, wanted: usize) -> usize {
    (1..=wanted.min(side)).rev().find(|patch| side.is_multiple_of(*patch)).unwrap_or(1)
}

fn about(text: String) -> Entry {
    ("about", String::new(), text.into())
}

fn head(what: String) -> Vec<Entry> {
    vec![("$schema", String::new(), "pipeline.schema.json".into()), ("version", String::new(), json!(1)), about(what)]
}

fn objective(choices: &Choices) -> (Entry, Value) {
    let (why, entry, guidance) = match choices.objective.as_str() {
        "cfg" => (
            "Condition dropping for classifier-free guidance: two passes per sampling step.",
            json!({ "type": "cfg" }),
            json!({ "type": "cfg", "scale": 2.0 }),
        ),
        "mg" => (
            "The network learns the guided prediction itself, at a fixed scale: one pass per sampling step.",
            json!({ "type": "mg", "scale": { "type": "fixed", "scale": 1.5 }, "t_high": 1.0 }),
            json!({ "type": "none" }),
        ),
        _ => (
            "Guidance-free training: one pass per sampling step, at any guidance scale (sample --scale).",
            json!({ "type": "gft" }),
            json!({ "type": "none", "scale": 2.0 }),
        ),
    };
    (("objective", why.to_string(), entry), guidance)
}

/// Returns the `data` entry of a folder.
fn data(survey: &Survey, image_size: usize, channels: usize) -> Entry {
    let mut entry = json!({
        "type": "image_folder", "path": survey.folder.display().to_string(), "image_size": image_size,
        "channels": channels,
    });
    match survey.captions {
        Some(Captions::Files) => entry["captions"] = "files".into(),
        Some(Captions::Metadata) => entry["captions"] = "metadata".into(),
        None => entry["num_classes"] = survey.classes.len().into(),
    }
    let why = "Images are resized so that the shorter side fits, and the centre square is cut out. Add \
               \"horizontal_flip\": true if mirrored images are as good as the originals (not for letters or digits).";
    ("data", why.to_string(), entry)
}

/// Returns the `train` entry. `rate` is the learning rate, `batch` the batch size.
fn train(choices: &Choices, survey: &Survey, batch: usize, rate: f64, more: Value) -> Entry {
    let steps = choices.steps;
    let decay = if steps < 2000 { 0.995 } else { 0.999 };
    let mut entry = json!({
        "steps": steps, "batch_size": batch.min(survey.images.max(1)), "learning_rate": rate,
        "warmup_steps": (steps / 10).min(200), "learning_rate_decay": { "type": "cosine" }, "clip_norm": 1.0,
        "ema": { "decay": decay, "warmup": true },
        "save_every": (steps / 4).max(1), "sample_every": (steps / 4).max(1), "sample_columns": 6,
        "metric_samples": 200,
    });
    if let (Value::Object(entry), Value::Object(more)) = (&mut entry, more) {
        entry.extend(more);
    }
    let why = "Stop at any time with Ctrl-C; the same command resumes. More steps may be set later.";
    ("train", why.to_string(), entry)
}

/// Returns the metrics that this many images support.
fn metrics(survey: &Survey) -> Entry {
    let mut metrics = Vec::new();
    if survey.classes.len() > 1 {
        metrics.push(json!({ "type": "class_accuracy" }));
    }
    if survey.images >= 64 {
        metrics.push(json!({ "type": "frechet", "features": { "type": "pca", "components": 32 } }));
    }
    metrics.push(json!({ "type": "nearest_neighbour" }));
    ("metrics", "Measured at the end, and written to report.md.".to_string(), metrics.into())
}

fn transformer(choices: &Choices, side: usize, channels: usize, classes: usize) -> (Entry, Entry, Size) {
    let size = size(side);
    let mut entry = json!({
        "type": choices.backbone, "hidden_size": size.width, "depth": size.depth, "num_heads": size.heads,
        "patch_size": patch(side, size.patch), "input_size": side, "in_channels": channels, "num_classes": classes,
        "embedding_init": "unit_variance",
    });
    if choices.objective == "gft" {
        entry["guidance_input"] = "mlp".into();
    }
    let why = "A wider or deeper network learns more and takes longer: raise hidden_size or depth.";
    (("backbone", why.to_string(), entry), sampler(&choices.backbone), size)
}

fn sampler(backbone: &str) -> Entry {
    let name = if backbone == "sit" { "euler" } else { "ddim" };
    ("sampler", String::new(), json!({ "type": name, "steps": 25 }))
}

/// Images with classes as pixels, from scratch.
pub fn small_images(survey: &Survey, choices: &Choices) -> Recipe {
    let channels = if survey.is_grey { 1 } else { 3 };
    let (backbone, sampler, size) = transformer(choices, choices.image_size, channels, survey.classes.len());
    let (objective, guidance) = objective(choices);
    let mut entries = head(format!("{} classes of images in {}.", survey.classes.len(), survey.folder.display()));
    entries.extend([
        data(survey, choices.image_size, channels),
        ("tokenizer", "The network reads the pixels themselves.".to_string(), json!({ "type": "pixels" })),
        backbone,
        objective,
        train(choices, survey, size.batch, size.rate, json!({})),
        sampler,
        ("guidance", String::new(), guidance),
        metrics(survey),
    ]);
    Recipe { name: "small-images", entries }
}

/// Images with classes as latents of an autoencoder, from scratch.
pub fn latents(survey: &Survey, choices: &Choices, vae: &Vae) -> Recipe {
    let side = choices.image_size / vae.factor;
    let (backbone, sampler, size) = transformer(choices, side, vae.channels, survey.classes.len());
    let (objective, guidance) = objective(choices);
    let mut entries = head(format!("{} classes of latents in {}.", survey.classes.len(), survey.folder.display()));
    let why = "Encoding takes most of the time. To do it once, run `unguided encode` and use the entry that it prints.";
    entries.extend([
        data(survey, choices.image_size, 3),
        ("tokenizer", why.to_string(), vae.entry.clone()),
        backbone,
        objective,
        train(choices, survey, size.batch, size.rate, json!({})),
        sampler,
        ("guidance", String::new(), guidance),
        metrics(survey),
    ]);
    Recipe { name: "latents", entries }
}

/// Most words of captions that a text encoder is trained for from scratch.
const MOST_WORDS: usize = 5000;

/// Images with captions as pixels, from scratch.
///
/// # Errors
/// If the captions have more words than a text encoder learns from scratch.
pub fn captions(survey: &Survey, choices: &Choices) -> Result<Recipe> {
    let (words, longest) = &survey.words;
    if words.is_empty() || words.len() > MOST_WORDS {
        let what = format!("the captions have {} different words", words.len());
        return Err(Problem::new(survey.folder.display().to_string(), what)
            .accepts(format!("1 to {MOST_WORDS} words for a text encoder from scratch"))
            .fix("fine-tune a published text-to-image network: unguided init SD_FOLDER --data FOLDER")
            .into());
    }
    let channels = if survey.is_grey { 1 } else { 3 };
    // The U-Net halves the sides once, and reads 2x2 pixels per position.
    let side = choices.image_size / 2;
    let mut backbone = json!({
        "type": "sd15", "sample_size": side, "in_channels": 4 * channels, "block_out_channels": [32, 64],
        "layers_per_block": 1, "attention": [1], "num_heads": 4, "cross_attention_dim": 64, "norm_num_groups": 16,
        "text_encoder": { "vocab_size": words.len() + 1, "length": longest, "layers": 2, "num_heads": 4 },
        "embedding_init": "unit_variance", "process": { "betas": "cosine", "prediction": "x" },
    });
    let (mut objective, guidance) = objective(choices);
    if choices.objective == "gft" {
        backbone["guidance_input"] = "linear".into();
        objective.2["beta_min"] = json!(0.4);
    } else {
        backbone["process"]["prediction"] = "v".into();
    }
    let mut entries = head(format!("Images with captions in {}.", survey.folder.display()));
    let conditioner = json!({ "type": "words", "length": longest, "words": words });
    entries.extend([
        data(survey, choices.image_size, channels),
        ("tokenizer", String::new(), json!({ "type": "pixels", "patch": 2 })),
        ("conditioner", "The words of the captions. A caption with another word is refused.".into(), conditioner),
        ("backbone", "A small U-Net, and a text encoder that is trained with it.".to_string(), backbone),
        objective,
        train(choices, survey, 16, 2e-3, json!({})),
        ("sampler", String::new(), json!({ "type": "ddpm", "steps": 50 })),
        ("guidance", String::new(), guidance),
        metrics(survey),
    ]);
    Ok(Recipe { name: "captions", entries })
}

/// Largest number of weights that are trained whole; a larger network gets adapters.
const MOST_WHOLE: usize = 150_000_000;

/// A published transformer, fine-tuned on own classes.
pub fn own_classes(
    survey: &Survey,
    choices: &Choices,
    vae: &Vae,
    (sizes, weights): (&Map<String, Value>, usize),
    checkpoint: &Path,
) -> Recipe {
    let mut backbone = json!({ "type": choices.backbone });
    if let Value::Object(entry) = &mut backbone {
        entry.extend(sizes.clone());
    }
    backbone["num_classes"] = survey.classes.len().into();
    let (objective, guidance) = objective(choices);
    if choices.objective == "gft" {
        backbone["guidance_input"] = "mlp".into();
    }
    let from = json!({ "from": { "checkpoint": checkpoint.display().to_string() } });
    let mut more = from;
    if weights > MOST_WHOLE {
        // The class table starts anew, so it is adapted as well.
        more["lora"] = json!({ "rank": 16, "parameters": "attn.*\\.weight$|embedding_table" });
    }
    let rate = if weights > MOST_WHOLE { 1e-4 } else { 2e-4 };
    let mut entries = head(format!(
        "{} fine-tuned on {} classes of {}.",
        checkpoint.display(),
        survey.classes.len(),
        survey.folder.display()
    ));
    let why = "The published sizes. The class embeddings start anew, and a guidance input starts without effect.";
    entries.extend([
        data(survey, choices.image_size, 3),
        ("tokenizer", "To encode once, run `unguided encode`.".to_string(), vae.entry.clone()),
        ("backbone", why.to_string(), backbone),
        objective,
        train(choices, survey, 8, rate, more),
        sampler(&choices.backbone),
        ("guidance", String::new(), guidance),
        metrics(survey),
    ]);
    Recipe { name: "own-classes", entries }
}

/// Stable Diffusion 1.5 with adapters, on images with captions.
pub fn lora(
    survey: &Survey,
    choices: &Choices,
    vae: &Vae,
    (sizes, text): (&Map<String, Value>, &Map<String, Value>),
    checkpoint: &Path,
) -> Recipe {
    let path = checkpoint.display().to_string();
    let mut backbone = json!({ "type": "sd15" });
    let mut conditioner = json!({
        "type": "clip_text", "path": path, "tokenizer": checkpoint.join("tokenizer").display().to_string(),
    });
    if let (Value::Object(backbone), Value::Object(conditioner)) = (&mut backbone, &mut conditioner) {
        backbone.extend(sizes.clone());
        conditioner.extend(text.clone());
    }
    let (objective, guidance) = objective(choices);
    if choices.objective == "gft" {
        // The form of `diffusers`, so that an exported pipeline reads its guidance_scale.
        backbone["guidance_input"] = "scale_of_beta".into();
    }
    let more = json!({ "from": { "checkpoint": path }, "lora": { "rank": 16 } });
    let mut entries = head(format!("Adapters for {path} on the captions in {}.", survey.folder.display()));
    entries.extend([
        data(survey, choices.image_size, 3),
        ("tokenizer", String::new(), vae.entry.clone()),
        ("conditioner", "The frozen text encoder of the pipeline.".to_string(), conditioner),
        ("backbone", "The sizes in the pipeline's config.json.".to_string(), backbone),
        objective,
        train(choices, survey, 4, 1e-4, more),
        ("sampler", String::new(), json!({ "type": "ddim", "steps": 25 })),
        ("guidance", String::new(), guidance),
        metrics(survey),
    ]);
    Recipe { name: "lora", entries }
}

/// Returns the classes of a checkpoint for the user, if it has classes.
pub fn described(published: &Published) -> String {
    match published {
        Published::Transformer { sizes, side, classes, .. } => {
            let number = |key: &str| sizes.get(key).and_then(Value::as_u64).unwrap_or_default();
            format!(
                "DiT or SiT: width {}, depth {}, patch {}, latents {side}x{side} of {} channels, {classes} classes",
                number("hidden_size"),
                number("depth"),
                number("patch_size"),
                number("in_channels"),
            )
        }
        Published::StableDiffusion { side, .. } => format!("Stable Diffusion: latents {side}x{side}"),
    }
}

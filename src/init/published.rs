//! Looks at a published checkpoint: which network it is, its sizes, its classes.

use framework::checkpoint::open::{self, Tensors};
use framework::error::{Error, Problem, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The network of a checkpoint.
#[derive(Debug, PartialEq)]
pub enum Published {
    /// DiT or SiT, which have the same tensors.
    Transformer {
        /// The backbone entry, without its type, classes and guidance input.
        sizes: Map<String, Value>,
        /// Side of the latent, in positions.
        side: usize,
        /// Classes of the checkpoint.
        classes: usize,
        /// What was assumed because the file does not tell it.
        notes: Vec<String>,
    },
    /// Stable Diffusion 1.5, or a smaller network of the same kind.
    StableDiffusion {
        /// The backbone entry, without its type and guidance input.
        sizes: Map<String, Value>,
        /// The entry of the text encoder, without its type and path.
        text: Map<String, Value>,
        /// Side of the latent, in positions.
        side: usize,
    },
}

/// An autoencoder of latent diffusion.
#[derive(Debug, PartialEq)]
pub struct Vae {
    /// The tokenizer entry.
    pub entry: Value,
    /// Pixels per latent position, along one side.
    pub factor: usize,
    /// Channels of the latent.
    pub channels: usize,
}

/// Reads the entries of a `config.json`, or none if the file does not exist.
fn config(path: PathBuf) -> Result<Map<String, Value>> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    let text = open::text(&path)?;
    serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("is not a JSON object: {e}")))
}

/// Copies entries under other names. Entries that the file does not state are left to the defaults.
fn copied(config: &Map<String, Value>, names: &[(&str, &str)]) -> Map<String, Value> {
    let copy = |(theirs, ours): &(&str, &str)| Some(((*ours).to_string(), config.get(*theirs)?.clone()));
    names.iter().filter_map(copy).filter(|(_, value)| !value.is_null()).collect()
}

/// Looks at the autoencoder at `path`: a file, its folder, or the folder of a whole pipeline.
///
/// # Errors
/// If the path does not exist, or its configuration cannot be read.
pub fn vae(path: &Path) -> Result<Vae> {
    exists(path, "--vae")?;
    let folder = if path.join("vae").is_dir() { path.join("vae") } else { path.to_path_buf() };
    let config = config(folder.join("config.json"))?;
    let mut entry = json!({ "type": "sd_vae", "path": path.display().to_string() });
    let names = [
        ("block_out_channels", "block_out_channels"),
        ("layers_per_block", "layers_per_block"),
        ("latent_channels", "latent_channels"),
    ];
    // State only what differs from the published sizes.
    let published = json!({ "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4 });
    for (key, value) in copied(&config, &names) {
        if published[&key] != value {
            entry[&key] = value;
        }
    }
    let levels = entry["block_out_channels"].as_array().map_or(4, Vec::len);
    let channels = entry["latent_channels"].as_u64().unwrap_or(4) as usize;
    Ok(Vae { entry, factor: 1 << (levels.clamp(1, 8) - 1), channels })
}

/// Refuses a path that does not exist.
fn exists(path: &Path, option: &str) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let near = run_folder::nearest_file::nearest_file(path);
    Err(Problem::new(option, format!("{} does not exist", path.display())).nearest(near).into())
}

/// Recognises the network of a checkpoint by its content.
///
/// # Errors
/// If the file cannot be read, or no recipe starts from its network.
pub fn recognise(path: &Path) -> Result<Published> {
    exists(path, "")?;
    if path.join("unet").is_dir() {
        return stable_diffusion(path);
    }
    if path.join("checkpoints").is_dir() || framework::checkpoint::metadata(path).ok().flatten().is_some() {
        return Err(Problem::new("", format!("{} is a run or a checkpoint of Unguided", path.display()))
            .accepts("a published checkpoint, or a folder of images")
            .fix("use its document, and set /train/from to this path")
            .into());
    }
    let tensors = open::open(path)?;
    match transformer(&tensors) {
        Some(found) => Ok(found),
        None => {
            let some: Vec<&str> = tensors.keys().take(3).map(String::as_str).collect();
            Err(Problem::new("", format!("no recipe starts from {}; its first tensors are {some:?}", path.display()))
                .accepts("a DiT or SiT release, or the diffusers folder of Stable Diffusion 1.5")
                .fix(
                    "for LlamaGen, VAR and MAR, start from the document in the book's chapter on published checkpoints",
                )
                .into())
        }
    }
}

/// Published pairs of width and number of heads. Source: arXiv:2212.09748 table 1.
const HEADS: [(usize, usize); 4] = [(384, 6), (768, 12), (1024, 16), (1152, 16)];

/// Recognises DiT or SiT, and reads its sizes from the shapes of its tensors.
fn transformer(tensors: &Tensors) -> Option<Published> {
    const FIRST: &str = "x_embedder.proj.weight";
    let prefixes = || tensors.keys().filter_map(|name| name.strip_suffix(FIRST));
    // A training container holds the weights twice; the average is the better one.
    let prefix = prefixes().find(|prefix| prefix.contains("ema")).or_else(|| prefixes().next())?.to_string();
    let shape = |name: &str| Some(tensors.get(&format!("{prefix}{name}"))?.shape.to_vec());
    let [width, channels, patch, _] = shape(FIRST)?[..] else { return None };
    let [_, positions, _] = shape("pos_embed")?[..] else { return None };
    let [rows, _] = shape("y_embedder.embedding_table.weight")?[..] else { return None };
    let outputs = *shape("final_layer.linear.weight")?.first()?;
    let depth = (0..).take_while(|i| shape(&format!("blocks.{i}.attn.qkv.weight")).is_some()).count();
    let mut notes = Vec::new();
    let known = HEADS.iter().find(|(known, _)| *known == width).map(|(_, heads)| *heads);
    let heads = known.unwrap_or_else(|| {
        let heads = (1..=(width / 16).clamp(1, 16)).rev().find(|heads| width.is_multiple_of(*heads)).unwrap_or(1);
        notes.push(format!(
            "the file does not tell the number of heads; {heads} is assumed (change it with --set /backbone/num_heads=N)"
        ));
        heads
    });
    let side = positions.isqrt() * patch;
    let Value::Object(mut sizes) = json!({
        "hidden_size": width, "depth": depth, "num_heads": heads, "patch_size": patch,
        "input_size": side, "in_channels": channels,
    }) else {
        unreachable!("an object literal")
    };
    if outputs == 2 * patch * patch * channels {
        sizes.insert("learn_sigma".to_string(), true.into());
    }
    // The last row of the table is the null class.
    Some(Published::Transformer { sizes, side, classes: rows.saturating_sub(1), notes })
}

/// Reads the sizes of Stable Diffusion from the configurations in its folder.
fn stable_diffusion(path: &Path) -> Result<Published> {
    let unet = config(path.join("unet").join("config.json"))?;
    let mut sizes = copied(
        &unet,
        &[
            ("sample_size", "sample_size"),
            ("in_channels", "in_channels"),
            ("block_out_channels", "block_out_channels"),
            ("layers_per_block", "layers_per_block"),
            ("attention_head_dim", "num_heads"),
            ("num_attention_heads", "num_heads"),
            ("cross_attention_dim", "cross_attention_dim"),
            ("norm_num_groups", "norm_num_groups"),
        ],
    );
    if let Some(blocks) = unet.get("down_block_types").and_then(Value::as_array) {
        let attends = |(_, kind): &(usize, &Value)| kind.as_str().is_some_and(|kind| kind.contains("CrossAttn"));
        let levels: Vec<usize> = blocks.iter().enumerate().filter(attends).map(|(level, _)| level).collect();
        sizes.insert("attention".to_string(), json!(levels));
    }
    let text = config(path.join("text_encoder").join("config.json"))?;
    let text = copied(
        &text,
        &[
            ("max_position_embeddings", "length"),
            ("vocab_size", "vocab_size"),
            ("hidden_size", "hidden_size"),
            ("intermediate_size", "intermediate_size"),
            ("num_hidden_layers", "num_layers"),
            ("num_attention_heads", "num_heads"),
        ],
    );
    let side = sizes.get("sample_size").and_then(Value::as_u64).unwrap_or(64) as usize;
    Ok(Published::StableDiffusion { sizes, text, side })
}

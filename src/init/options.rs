//! The options of `unguided init`. The doc comments here are its `--help` texts.

use clap::Args;
use clap::builder::TypedValueParser;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct InitOptions {
    /// A folder of images, or a published checkpoint.
    #[arg(value_name = "FOLDER|CHECKPOINT", required_unless_present = "list")]
    pub source: Option<PathBuf>,
    /// List the recipes.
    #[arg(long, exclusive = true)]
    pub list: bool,
    /// Images to fine-tune a checkpoint on.
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Autoencoder of Stable Diffusion, for networks on latents: its folder or file.
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// File to write [default: NAME.json, after the folder of images].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Training objective.
    #[arg(long, value_parser = ["gft", "mg", "cfg"])]
    pub objective: Option<String>,
    /// Transformer [default: sit; for a checkpoint, after its file name].
    #[arg(long, value_parser = ["sit", "dit"])]
    pub backbone: Option<String>,
    /// Height and width of the images, in pixels.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(2..).map(usize::from))]
    pub image_size: Option<usize>,
    /// Time to train, in minutes. It decides the number of steps.
    #[arg(long, value_parser = minutes)]
    pub minutes: Option<f64>,
    /// Override one value of the document by JSON pointer; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
    /// Ask nothing.
    #[arg(long)]
    pub yes: bool,
    /// Overwrite an existing file.
    #[arg(long)]
    pub force: bool,
}

/// Parses a number of minutes.
fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.01..=100_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("accepts 0.01 to 100000 minutes".to_string()),
    }
}

#[derive(Debug, Args)]
pub struct AdaptOptions {
    /// The published checkpoint.
    pub checkpoint: PathBuf,
    /// Images to fine-tune on.
    #[arg(long, value_name = "FOLDER")]
    pub data: PathBuf,
    /// Autoencoder of Stable Diffusion, for networks on latents: its folder or file.
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// Training objective.
    #[arg(long, value_parser = ["gft", "mg"], default_value = "gft")]
    pub objective: String,
    /// Transformer [default: after the checkpoint's file name].
    #[arg(long, value_parser = ["sit", "dit"])]
    pub backbone: Option<String>,
    /// Height and width of the images, in pixels [default: as published].
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(2..).map(usize::from))]
    pub image_size: Option<usize>,
    /// Time to train, in minutes. It decides the number of steps.
    #[arg(long, value_parser = minutes, default_value = "10")]
    pub minutes: f64,
    /// Override one value of the document by JSON pointer; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
    /// Document to write, or to go on with [default: the name of the exported file, with .json].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// File of the adapted weights, in the checkpoint's format [default: adapted.safetensors]. It is overwritten.
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Device: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

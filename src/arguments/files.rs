//! Arguments of the commands that read and write files of other programs. The doc comments here are the `--help` texts.

use crate::arguments::document::DocumentOptions;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct EncodeOptions {
    #[command(flatten)]
    pub document: DocumentOptions,
    /// Folder for the latent files.
    #[arg(long, value_name = "FOLDER")]
    pub output: PathBuf,
    /// Items per file.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub shard: u32,
    /// Float type of the latents. f16: 11 significant bits, at most 65,504. bf16: 8 significant bits. f32: exact.
    #[arg(long, value_enum, default_value_t = Float::F16)]
    pub dtype: Float,
    /// Also encode each image mirrored [default: only if the dataset mirrors its images].
    #[arg(long)]
    pub flip: bool,
    /// Images per batch.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Device, by the names that `devices` lists [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

/// Float types of latent files.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Args)]
pub struct ForwardOptions {
    /// The pipeline document. Only its backbone or its tokenizer is used.
    #[arg(long)]
    pub pipeline: PathBuf,
    /// Run the tokenizer instead of the backbone.
    #[arg(long)]
    pub tokenizer: bool,
    /// Official (.pt, .pth, .ckpt, .safetensors) or native weights. With --tokenizer, sets /tokenizer/path.
    #[arg(long, required_unless_present = "tokenizer")]
    pub checkpoint: Option<PathBuf>,
    /// File of the input tensors.
    #[arg(long)]
    pub input: PathBuf,
    /// File to write the output tensors to.
    #[arg(long)]
    pub output: PathBuf,
    /// Device, by the names that `devices` lists [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExportOptions {
    /// A run folder or a checkpoint.
    pub from: PathBuf,
    /// Layout to write.
    #[arg(long, value_enum)]
    pub to: ExportLayout,
    /// Folder to write: a new or empty one.
    pub folder: PathBuf,
    /// Weights to write. A run without an average has online weights only.
    #[arg(long, value_enum, default_value_t = ExportWeights::Ema)]
    pub weights: ExportWeights,
    /// Fold this guidance scale into the weights. The network then has no guidance input, and every program samples the
    /// scale in one pass.
    #[arg(long)]
    pub scale: Option<f64>,
    /// Override one value of the checkpoint's document, e.g. /tokenizer/path=vae; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
    /// Replace an earlier export. A folder with other files is never replaced.
    #[arg(long)]
    pub force: bool,
}

/// Layouts that `export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportLayout {
    Diffusers,
    Compvis,
    Official,
    Lora,
    Safetensors,
}

impl ExportLayout {
    /// Returns the value of `--to`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::Compvis => "compvis",
            Self::Official => "official",
            Self::Lora => "lora",
            Self::Safetensors => "safetensors",
        }
    }
}

/// Weights of a checkpoint that `export` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportWeights {
    /// The exponential moving average.
    Ema,
    /// The weights in training.
    Online,
}

#[derive(Debug, Args)]
pub struct ConvertOptions {
    /// The pipeline document. Its backbone, tokenizer or conditioner describes the weights.
    #[arg(long)]
    pub pipeline: PathBuf,
    /// Convert the weights of the tokenizer.
    #[arg(long)]
    pub tokenizer: bool,
    /// Convert the weights of the conditioner.
    #[arg(long, conflicts_with = "tokenizer")]
    pub conditioner: bool,
    /// Format to write: native, official, or another published format such as diffusers or compvis
    /// [default: official for a native checkpoint, native for an official file].
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<String>,
    /// Overwrite an existing output file.
    #[arg(long)]
    pub force: bool,
    /// File to read, or the folder of a diffusers pipeline.
    pub input: PathBuf,
    /// File to write. Its ending selects the container: .safetensors, or .pt, .pth, .ckpt or .bin as torch.save writes
    /// them. A native checkpoint is always .safetensors.
    pub output: PathBuf,
}

//! What can be written after `unguided`.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use framework::precision::MatmulPrecision;
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Train any visual-generation backbone with any guidance objective, from one JSON document.
#[derive(Debug, Parser)]
#[command(name = "unguided", version, after_help = "Exit codes: 0 done, 1 failed, 2 the input is wrong.")]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Load the plugin libraries of this folder, or this library, which runs their code; may be repeated. More are named
    /// by UNGUIDED_PLUGINS (separated like PATH) and by a document's `plugins`.
    #[arg(long = "plugin-dir", value_name = "PATH", global = true)]
    pub plugins: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a pipeline, or go on with a run that was stopped.
    #[command(after_help = "Example: unguided train examples/pipelines/digits-dit-gft.json --set /train/steps=500")]
    Train(TrainOptions),
    /// Draw images from a run or a checkpoint.
    #[command(after_help = "Example: unguided sample runs/digits-dit-gft --beta 0.5 --classes 3,7 --count 10")]
    Sample(SampleOptions),
    /// Check a document and print it with every default, its parameters, memory and network evaluations.
    #[command(after_help = "Example: unguided check examples/pipelines/digits-dit-gft.json")]
    Check(CheckOptions),
    /// Print the JSON Schema of everything registered.
    #[command(after_help = "Example: unguided schema > pipeline.schema.json")]
    Schema,
    /// List every registered plugin with its papers.
    #[command(after_help = "Example: unguided list")]
    List,
    /// Run the backbone, or the tokenizer, once on tensors from a file: to check a port against its reference.
    #[command(
        after_help = "Example: unguided forward --pipeline dit.json --checkpoint DiT-XL-2-256x256.pt --input in.safetensors --output out.safetensors\n\nInput tensors: x [B,C,H,W], t [B] in the checkpoint's own units, y [B] int64 class (num_classes = null), beta [B] where the backbone takes it. Output: prediction [B,C,H,W]. Of tokens: ids [B,L], y, beta; of levels: features [B,L,C], y, beta; logits [B,L,V]. Of masked tokens: x, mask [B,L] (1 = hidden), t [B,L], noise [B,L,D] (the head's noisy tokens), y, beta; prediction [B,L,D].\n\nWith --tokenizer: img [B,C,H,W] in [-1,1] is encoded and decoded; latent [B,C,H,W] or indices [B,L], without img, is decoded. Output: latent or indices (and var_input [B,L',C], what the levels behind the first read), and decoded [B,C,H,W]."
    )]
    Forward(ForwardOptions),
    /// Convert an official checkpoint to a native one, or back; or a tokenizer's official file to safetensors.
    #[command(
        after_help = "Example: unguided convert --pipeline dit.json DiT-XL-2-256x256.pt dit.safetensors\n         unguided convert --pipeline var.json --tokenizer vae_ch160v4096z32.pth vae.safetensors"
    )]
    Convert(ConvertOptions),
    /// Prove what distribution the optimum of each objective samples, on random finite worlds.
    #[command(
        after_help = "Example: unguided verify gft mg --worlds 1000\n         unguided verify '{\"type\": \"gft\", \"dropped_sample\": \"plain\"}'"
    )]
    Verify(VerifyOptions),
    /// Encode a document's dataset with its tokenizer, once, for dataset `latents` to read.
    #[command(
        after_help = "Example: unguided encode pipeline.json --output latents\n\nStopped at any time, the same command goes on. At the end it prints the entry to put in place of the document's `data`. Images that cannot be read are left out and counted."
    )]
    Encode(EncodeOptions),
    /// Write, build and look into plugins of your own.
    Plugin {
        /// What to do.
        #[command(subcommand)]
        command: PluginCommand,
    },
    /// Print completions for a shell.
    #[command(after_help = "Example: unguided completions bash > /etc/bash_completion.d/unguided")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// The document that the command reads.
    pub fn document(&self) -> Option<&Path> {
        match self {
            Self::Train(options) => Some(&options.document.pipeline),
            Self::Check(options) => Some(&options.document.pipeline),
            Self::Encode(options) => Some(&options.document.pipeline),
            Self::Forward(options) => Some(&options.pipeline),
            Self::Convert(options) => Some(&options.pipeline),
            _ => None,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Begin a plugin: a crate of one file that compiles and does something sensible, its test, and a pipeline.
    #[command(after_help = "Example: unguided plugin new my_loss --kind objective")]
    New {
        /// Name of the plugin and of its folder, in lower_snake_case.
        name: PathBuf,
        /// What it is.
        #[arg(long, value_enum)]
        kind: PluginKind,
    },
    /// Compile a plugin against this installation, in seconds.
    #[command(
        after_help = "Example: unguided plugin build my_loss\n\nWrites my_loss/target/my_loss.so. Dependencies in its Cargo.toml are compiled too."
    )]
    Build {
        /// The folder of its crate.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Compile a plugin's tests against this installation and run them.
    #[command(after_help = "Example: unguided plugin test my_loss")]
    Test {
        /// The folder of its crate.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Print what a library says about itself, without opening it.
    #[command(after_help = "Example: unguided plugin inspect my_loss/target/my_loss.so")]
    Inspect {
        /// The library.
        file: PathBuf,
    },
    /// Open a library that was just compiled and print the schemas of its plugins.
    #[command(hide = true)]
    Describe {
        /// The library.
        file: PathBuf,
    },
}

/// Kinds of plugins that `plugin new` knows to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum PluginKind {
    /// What training minimises.
    Objective,
    /// The network.
    Backbone,
    /// Images to latents and back.
    Tokenizer,
    /// From noise to latents.
    Sampler,
    /// The guidance rule of sampling.
    Guidance,
    /// What is learned.
    Dataset,
    /// What is measured on samples.
    Metric,
}

/// A document and changes to it.
#[derive(Debug, Args)]
pub struct DocumentOptions {
    /// The pipeline document.
    pub pipeline: PathBuf,
    /// Override one value by JSON pointer; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
pub struct TrainOptions {
    #[command(flatten)]
    pub document: DocumentOptions,
    /// The run's folder [default: runs/NAME of the document].
    #[arg(long, value_name = "FOLDER")]
    pub run: Option<PathBuf>,
    /// Go on from this checkpoint instead of the newest.
    #[arg(long, value_name = "FILE")]
    pub resume_from: Option<PathBuf>,
    /// cpu, or a GPU the binary was built for (cuda:0, vulkan:0).
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct SampleOptions {
    /// A run's folder, or a checkpoint.
    pub from: PathBuf,
    /// Classes to draw, e.g. 0,1,2 [default: all].
    #[arg(long, value_delimiter = ',')]
    pub classes: Vec<usize>,
    /// A caption to draw; may be repeated [default: the first ones of the dataset].
    #[arg(long = "caption", value_name = "TEXT", conflicts_with = "classes")]
    pub captions: Vec<String>,
    /// Images of each class or caption.
    #[arg(long, default_value = "8")]
    pub count: NonZeroUsize,
    /// Seed; image i depends on (seed, i) alone.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Guidance scale: sets /guidance/scale.
    #[arg(long, conflicts_with = "beta")]
    pub scale: Option<f64>,
    /// Guidance number of a guidance-free network, e.g. GFT's beta = 1/scale.
    #[arg(long)]
    pub beta: Option<f64>,
    /// Sampler steps: sets /sampler/steps.
    #[arg(long)]
    pub steps: Option<usize>,
    /// Override one value of the checkpoint's document, e.g. /guidance='{"type":"cfg","scale":2}'; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
    /// Images a batch.
    #[arg(long, default_value = "100")]
    pub batch_size: NonZeroUsize,
    /// How the network multiplies matrices: in f32, or with factors rounded to 16 bits where the processor multiplies those
    /// faster.
    #[arg(long, value_parser = matmul_precision(), default_value = "highest")]
    pub matmul_precision: MatmulPrecision,
    /// The grid picture.
    #[arg(long, default_value = "samples.png")]
    pub output: PathBuf,
    /// Also write every image as a PNG of its own to this folder, its caption beside it as a text file.
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<PathBuf>,
    /// Also write all images [N,C,H,W] and classes [N] to this safetensors file.
    #[arg(long, value_name = "FILE")]
    pub tensors: Option<PathBuf>,
    /// Measure the document's metrics on the samples.
    #[arg(long)]
    pub metrics: bool,
    /// cpu, or a GPU the binary was built for (cuda:0, vulkan:0).
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct EncodeOptions {
    #[command(flatten)]
    pub document: DocumentOptions,
    /// The folder of the latents.
    #[arg(long, value_name = "FOLDER")]
    pub output: PathBuf,
    /// Items a file.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub shard: u32,
    /// Type of the latents: f16 keeps 11 bits up to 65,504, bf16 keeps 8, f32 keeps all.
    #[arg(long, value_enum, default_value_t = Float::F16)]
    pub dtype: Float,
    /// Encode mirrored images too [default: as the dataset mirrors].
    #[arg(long)]
    pub flip: bool,
    /// Images encoded together.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// cpu, or a GPU the binary was built for (cuda:0, vulkan:0).
    #[arg(long)]
    pub device: Option<String>,
}

/// By the names that documents give it.
fn matmul_precision() -> impl TypedValueParser<Value = MatmulPrecision> {
    PossibleValuesParser::new(["highest", "medium"]).try_map(|name| serde_json::from_value(name.into()))
}

/// A float type of files.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Args)]
pub struct CheckOptions {
    #[command(flatten)]
    pub document: DocumentOptions,
    /// Also list every parameter with its shape.
    #[arg(long)]
    pub parameters: bool,
}

#[derive(Debug, Args)]
pub struct ForwardOptions {
    /// The pipeline document; only its backbone, or its tokenizer, is used.
    #[arg(long)]
    pub pipeline: PathBuf,
    /// Run the tokenizer instead of the backbone.
    #[arg(long)]
    pub tokenizer: bool,
    /// Official (.pt, .pth, .ckpt, .safetensors) or native weights [of a tokenizer: sets /tokenizer/path].
    #[arg(long, required_unless_present = "tokenizer")]
    pub checkpoint: Option<PathBuf>,
    /// Input tensors.
    #[arg(long)]
    pub input: PathBuf,
    /// Where the output tensors are written.
    #[arg(long)]
    pub output: PathBuf,
    /// cpu, or a GPU the binary was built for (cuda:0, vulkan:0).
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct VerifyOptions {
    /// Objectives by name, or as JSON entries [default: all, with the variants their schema shows].
    #[arg(value_name = "NAME")]
    pub objectives: Vec<String>,
    /// Random worlds of each family.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub worlds: u32,
    /// Seed of the worlds.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct ConvertOptions {
    /// The pipeline document; its backbone, or its tokenizer, says what the weights are.
    #[arg(long)]
    pub pipeline: PathBuf,
    /// The weights are the tokenizer's.
    #[arg(long)]
    pub tokenizer: bool,
    /// The weights are the conditioner's.
    #[arg(long, conflicts_with = "tokenizer")]
    pub conditioner: bool,
    /// What to write: native, official, or another published format of the weights, such as diffusers or compvis
    /// [default: a checkpoint becomes official, an official file a checkpoint].
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<String>,
    /// The file, or the folder of a diffusers pipeline, to read.
    pub input: PathBuf,
    /// The file to write.
    pub output: PathBuf,
}

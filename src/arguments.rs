//! The command-line arguments of `unguided`. The doc comments here are the `--help` texts.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use framework::nn::precision::MatmulPrecision;
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Train any visual-generation backbone with any guidance objective, from one JSON document.
#[derive(Debug, Parser)]
#[command(
    name = "unguided",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C (SIGINT), 143 by SIGTERM, \
        129 by SIGHUP, 140 by SIGUSR2."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Load a plugin library, or every plugin library in a folder. Loading a library runs its code. May be repeated.
    /// UNGUIDED_PLUGINS (separated like PATH) names further libraries.
    #[arg(long = "plugin-dir", value_name = "PATH", global = true)]
    pub plugins: Vec<PathBuf>,
    /// Consent to the libraries that the document lists under `plugins`. Loading a library runs its code. Without this
    /// option, the command asks on a terminal and refuses elsewhere.
    #[arg(long, global = true)]
    pub trust_plugins: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a pipeline, or resume an interrupted run.
    #[command(after_help = "Example: unguided train examples/pipelines/digits-dit-gft.json --set /train/steps=500\
            \n\nSignals, for batch systems:\
            \n  SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGUSR2  save a checkpoint after the current step and stop\
            \n  SIGUSR1                                    save a checkpoint after the current step and go on\
            \nA second signal to stop ends the command at once. Signals that are ignored at the start, as under nohup, \
            stay ignored. The same command resumes the run.")]
    Train(TrainOptions),
    /// Sample images from a run or a checkpoint.
    #[command(after_help = "Example: unguided sample runs/digits-dit-gft --guidance 0.5 --classes 3,7 --count 10")]
    Sample(SampleOptions),
    /// Serve runs as a page to play with, and over HTTP.
    #[command(after_help = "Example: unguided serve runs/digits-dit-gft runs/digits-dit-cfg\
            \n\nPrints the address of the page. /openapi.json describes the HTTP interface. Ctrl-C ends the command.\
            \n\nAnyone who can connect may sample. So the default is to listen on this machine only.")]
    Serve(ServeOptions),
    /// Check a document. Print it with every default, its parameter count, memory and network evaluations.
    #[command(after_help = "Example: unguided check examples/pipelines/digits-dit-gft.json")]
    Check(CheckOptions),
    /// Print the JSON Schema of all registered plugins.
    #[command(after_help = "Example: unguided schema > pipeline.schema.json")]
    Schema {
        /// Print the reference page of the book instead.
        #[arg(long)]
        markdown: bool,
    },
    /// List every registered plugin with its papers.
    #[command(after_help = "Example: unguided list")]
    List,
    /// Run the backbone or the tokenizer once on tensors from a file, to compare a port with its reference.
    #[command(after_help = "Example: unguided forward --pipeline dit.json --checkpoint DiT-XL-2-256x256.pt \
            --input in.safetensors --output out.safetensors\
            \n\nTensors by process, input -> output:\
            \n  diffusion, flow  x [B,C,H,W], t [B] in the checkpoint's own units -> prediction [B,C,H,W]\
            \n  next token       ids [B,L] -> prediction [B,L,V] (logits)\
            \n  next level       features [B,L,C] -> prediction [B,L,V] (logits)\
            \n  masked tokens    x [B,C,H,W], mask [B,L] (1 = hidden), noise [B,L,D] (noisy tokens of the head), t \
            [B,L] -> prediction [B,L,D]\
            \n\nConditions: y [B] (int64 class; num_classes = null), tokens [B,L] (token ids of the text) or context \
            [B,L,D] (features of the text). beta [B] is the guidance number, for a backbone that reads one.\
            \n\nWith --tokenizer: encodes img [B,C,H,W] in [-1,1], then decodes. Without img, decodes latent \
            [B,C,H,W] or indices [B,L]. Output: latent, or indices (and var_input [B,L',C], the input features of \
            every level after the first), and decoded [B,C,H,W].")]
    Forward(ForwardOptions),
    /// Convert a checkpoint between its official and native formats, or a tokenizer's official file to safetensors.
    #[command(after_help = "Example: unguided convert --pipeline dit.json DiT-XL-2-256x256.pt dit.safetensors\
            \n         unguided convert --pipeline var.json --tokenizer vae_ch160v4096z32.pth vae.safetensors")]
    Convert(ConvertOptions),
    /// Verify on random finite worlds that the optimum of each objective samples the distribution it states.
    #[command(after_help = "Example: unguided verify gft mg --worlds 1000\
            \n         unguided verify '{\"type\": \"gft\", \"dropped_sample\": \"plain\"}'\
            \n         unguided verify gft --against cfg --scale 2")]
    Verify(VerifyOptions),
    /// Encode a document's dataset with its tokenizer, for dataset `latents` to read.
    #[command(after_help = "Example: unguided encode pipeline.json --output latents\
            \n\nIf the command is interrupted, run it again to resume. At the end it prints the entry that replaces \
            the document's `data`. Unreadable images are skipped and counted.")]
    Encode(EncodeOptions),
    /// Print what a bug report needs: version, build, processor, devices, memory, disk, limits and plugin libraries.
    #[command(after_help = "Example: unguided doctor --plugin-dir my_loss/target\
            \n\nPrints no user names, shortens home folders to ~, and runs no code of a library.")]
    Doctor,
    /// Create, build, test and inspect your own plugins.
    Plugin {
        /// The plugin command to run.
        #[command(subcommand)]
        command: PluginCommand,
    },
    /// Print the completion script of a shell.
    #[command(after_help = "Example: unguided completions bash > /etc/bash_completion.d/unguided")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Returns the path of the document that the command reads, if it reads one.
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
    /// Create a plugin crate: one source file with a working example and its test, and a pipeline that uses it.
    #[command(after_help = "Example: unguided plugin new my_loss --kind objective")]
    New {
        /// Folder to create. Its last component is the name of the plugin, in lower_snake_case.
        name: PathBuf,
        /// Kind of plugin.
        #[arg(long, value_enum)]
        kind: PluginKind,
    },
    /// Compile a plugin against this installation.
    #[command(after_help = "Example: unguided plugin build my_loss\
            \n\nWrites my_loss/target/my_loss.so. Also compiles the dependencies in its Cargo.toml.")]
    Build {
        /// Folder of the plugin's crate.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Compile a plugin's tests against this installation and run them.
    #[command(after_help = "Example: unguided plugin test my_loss")]
    Test {
        /// Folder of the plugin's crate.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Print the build id, the plugins and the schemas of a library without running its code.
    #[command(after_help = "Example: unguided plugin inspect my_loss/target/my_loss.so")]
    Inspect {
        /// The library file.
        file: PathBuf,
    },
    /// Open a newly compiled library and print the schemas of its plugins.
    #[command(hide = true)]
    Describe {
        /// The library file.
        file: PathBuf,
    },
}

/// Kinds of plugins that `plugin new` can create.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum PluginKind {
    /// The training loss.
    Objective,
    /// The network.
    Backbone,
    /// Conversion of images to latents and back.
    Tokenizer,
    /// Generation of latents from noise.
    Sampler,
    /// The guidance rule used in sampling.
    Guidance,
    /// The training data.
    Dataset,
    /// A measurement on samples.
    Metric,
}

/// A document and its overrides.
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
    /// Run folder [default: runs/NAME, after the document's file name].
    #[arg(long, value_name = "FOLDER")]
    pub run: Option<PathBuf>,
    /// Resume from this checkpoint instead of the newest.
    #[arg(long, value_name = "FILE")]
    pub resume_from: Option<PathBuf>,
    /// Resume although the data differ from the data that the run was trained on.
    #[arg(long)]
    pub accept_data_change: bool,
    /// Device: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct SampleOptions {
    /// A run folder or a checkpoint.
    pub from: PathBuf,
    /// Classes to sample, e.g. 0,1,2 [default: all].
    #[arg(long, value_delimiter = ',')]
    pub classes: Vec<usize>,
    /// A caption to sample; may be repeated [default: the first captions of the dataset].
    #[arg(long = "caption", value_name = "TEXT", conflicts_with = "classes")]
    pub captions: Vec<String>,
    /// Images per class or caption.
    #[arg(long, default_value = "8")]
    pub count: NonZeroUsize,
    /// Seed. Image i depends only on (seed, i).
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Guidance scale; sets /guidance/scale.
    #[arg(long, conflicts_with = "guidance")]
    pub scale: Option<f64>,
    /// Guidance number that a guidance-free network reads, in the letter of its objective, e.g. beta = 1 / scale for
    /// GFT.
    #[arg(long, value_name = "NUMBER")]
    pub guidance: Option<f64>,
    /// Sampler steps; sets /sampler/steps.
    #[arg(long)]
    pub steps: Option<usize>,
    /// Override one value of the checkpoint's document, e.g. /guidance='{"type":"cfg","scale":2}'; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
    /// Images per batch.
    #[arg(long, default_value = "100")]
    pub batch_size: NonZeroUsize,
    /// Precision of the network's matrix products. highest: f32. medium: factors rounded to 16 bits where the processor
    /// multiplies those faster.
    #[arg(long, value_parser = matmul_precision(), default_value = "highest")]
    pub matmul_precision: MatmulPrecision,
    /// File of the sample grid (PNG).
    #[arg(long, default_value = "samples.png")]
    pub output: PathBuf,
    /// Also write each image as its own PNG file to this empty or new folder, with its caption in a text file of the
    /// same number.
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<PathBuf>,
    /// Also write all images (x [N,C,H,W]) and classes (y [N]) to this safetensors file.
    #[arg(long, value_name = "FILE")]
    pub tensors: Option<PathBuf>,
    /// Measure the document's metrics on the samples.
    #[arg(long)]
    pub metrics: bool,
    /// Device: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct ServeOptions {
    /// Run folders and checkpoints. A run may still train: the page follows it.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Address to listen on. 0.0.0.0 lets other machines connect.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,
    /// Port to listen on; 0 = one that the system chooses.
    #[arg(long, default_value_t = 7878)]
    pub port: u16,
    /// Also answer to this host name, e.g. of a proxy; may be repeated. Addresses and localhost are always accepted.
    #[arg(long = "allow-host", value_name = "NAME")]
    pub names: Vec<String>,
    /// Device: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

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
    /// Device: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

/// Parses the precision from the names that documents use.
fn matmul_precision() -> impl TypedValueParser<Value = MatmulPrecision> {
    PossibleValuesParser::new(["highest", "medium"]).try_map(|name| serde_json::from_value(name.into()))
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
pub struct CheckOptions {
    #[command(flatten)]
    pub document: DocumentOptions,
    /// Also list every parameter with its shape.
    #[arg(long)]
    pub parameters: bool,
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
    /// Device: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct VerifyOptions {
    /// Objectives, by name or as JSON entries [default: all, with the variants shown in their schemas].
    #[arg(value_name = "NAME")]
    pub objectives: Vec<String>,
    /// Random worlds per family.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub worlds: u32,
    /// Seed of the worlds.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Compare the given objective with another one, by name or as a JSON entry, instead of with its statement: do
    /// both reach the same optimum on the same worlds?
    #[arg(long, value_name = "OTHER")]
    pub against: Option<String>,
    /// Guidance scales to compare at. Repeat it for several.
    #[arg(long, value_name = "SCALE", requires = "against", default_values_t = [1.5, 3.0])]
    pub scale: Vec<f64>,
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

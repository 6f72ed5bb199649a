//! The command-line arguments of `unguided`; their doc comments are the `--help` texts. Change an option here or in the
//! file of its group, and its use in the command's file in `commands/`.

mod document;
mod files;
mod runs;
mod sampling;

pub use document::DocumentOptions;
pub use files::{ConvertOptions, EncodeOptions, ExportLayout, ExportOptions, ExportWeights, Float, ForwardOptions};
pub use runs::{CompareOptions, CostOptions, PlaneOptions, SampleOptions, ServeOptions};
pub use sampling::{EvaluateOptions, SamplingOptions};

use crate::init::options::{AdaptOptions, InitOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// Print only results and errors: no progress, no notes and no warnings.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more: every unreadable item, and how long the command took.
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a document for your images or a published checkpoint.
    #[command(after_help = "Example: unguided init my_images\
            \n         unguided init DiT-XL-2-256x256.pt --data my_images --vae sd-vae-ft-ema\
            \n\nLooks at the images, asks at most four questions on a terminal, writes a document with comments, and \
            prints the expected time, memory and disk space. Elsewhere, and with --yes, the recommendations count.")]
    Init(InitOptions),
    /// Fine-tune a published network so that it is guided in a single pass.
    #[command(after_help = "Example: unguided adapt DiT-XL-2-256x256.pt --data my_images --vae sd-vae-ft-ema\
            \n\nWrites the document as `init` does, trains it, compares it with guided sampling of the original, and \
            writes the weights in the original's format. The same command resumes after an interruption.")]
    Adapt(AdaptOptions),
    /// Train a pipeline, or resume an interrupted run.
    #[command(after_help = "Example: unguided train examples/pipelines/digits-dit-gft.json --set /train/steps=500\
            \n\nSignals, for batch systems:\
            \n  SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGUSR2  save a checkpoint after the current step and stop\
            \n  SIGUSR1                                    save a checkpoint after the current step and go on\
            \nA second signal to stop ends the command at once. Signals that are ignored at the start, as under nohup, \
            stay ignored. The same command resumes the run.\
            \n\nSeveral processes, with a build that has the feature mpi:\
            \n  mpirun -n 4 unguided train pipeline.json   each rank computes some of the `accumulate` passes of a step")]
    Train(TrainOptions),
    /// Sample images from a run or a checkpoint.
    #[command(after_help = "Example: unguided sample runs/digits-dit-gft --guidance 0.5 --classes 3,7 --count 10")]
    Sample(SampleOptions),
    /// Measure the samples of a run, a folder of images, or encoded latents, against real images.
    #[command(after_help = "Examples:\
            \n  unguided evaluate runs/digits-dit-gft --samples 1000\
            \n  unguided evaluate runs/digits-dit-gft --sweep scale=1:4:0.5 --sweep /sampler/steps=10,20\
            \n  unguided evaluate images --against real_images --metric '{\"type\":\"frechet\"}'\
            \n\nIf the command is interrupted, run it again to resume. It ends with the same evaluation.json.")]
    Evaluate(Box<EvaluateOptions>),
    /// Compare runs and sweeps on one HTML page: learning curves, samples from the same noise, measurements, documents.
    #[command(after_help = "Example: unguided compare runs/digits-dit-gft runs/digits-dit-cfg --out compare.html")]
    Compare(CompareOptions),
    /// Draw the samples and trajectories of a network that was trained on points in the plane, over the exact density.
    #[command(after_help = "Example: unguided plane runs/points-dit-gft --scale 2")]
    Plane(PlaneOptions),
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
    #[command(after_help = "Example: unguided list --pairs")]
    List {
        /// List the pairs of backbone and objective instead: paper or extension, example document and optimum.
        #[arg(long, conflicts_with = "json")]
        pairs: bool,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Measure time and memory of a training step of several documents, relative to the document of objective cfg.
    #[command(after_help = "Example: unguided cost examples/pipelines/pairs/dit-*.json --steps 50\
            \n\nThe documents take turns, one step each, so other load slows all of them equally. Without a document of \
            cfg, ratios are relative to the first document. Trains from random weights; writes no run folder.")]
    Cost(CostOptions),
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
    /// Export a run's network for other programs: diffusers, ComfyUI, kohya, or the code of the official network.
    #[command(after_help = "Example: unguided export runs/sd15-gft --to diffusers my-model\
            \n         unguided export runs/sd15-lora --to lora my-lora\
            \n\nLayouts:\
            \n  diffusers    a folder that diffusers opens, with every configuration file\
            \n  compvis      the single file model.ckpt that ComfyUI and other programs read\
            \n  official     the file that the network's published code reads\
            \n  lora         the low-rank adapters of a run that trains them, for diffusers, kohya and ComfyUI\
            \n  safetensors  the network alone, under its published names\
            \n\nEvery folder has a model card, README.md. FOLDER is either complete or absent.")]
    Export(ExportOptions),
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
    /// List the devices that are present and that this build can use, the best first.
    #[command(after_help = "Example: unguided devices\
            \n\nThe first column is the name that --device accepts.")]
    Devices,
    /// Create, build, test and inspect your own plugins.
    Plugin {
        /// The plugin command to run.
        #[command(subcommand)]
        command: PluginCommand,
    },
    /// Write the man pages of the command to an existing folder.
    #[command(after_help = "Example: unguided man ~/.local/share/man/man1")]
    Man {
        /// The folder.
        folder: PathBuf,
    },
    /// Print the completion script of a shell.
    #[command(after_help = "Example: unguided completions bash > /etc/bash_completion.d/unguided")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Returns the name of the command.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Train(_) => "train",
            Self::Sample(_) => "sample",
            Self::Check(_) => "check",
            Self::Schema { .. } => "schema",
            Self::List { .. } => "list",
            Self::Init(_) => "init",
            Self::Adapt(_) => "adapt",
            Self::Evaluate(_) => "evaluate",
            Self::Compare(_) => "compare",
            Self::Plane(_) => "plane",
            Self::Serve(_) => "serve",
            Self::Cost(_) => "cost",
            Self::Export(_) => "export",
            Self::Man { .. } => "man",
            Self::Forward(_) => "forward",
            Self::Convert(_) => "convert",
            Self::Verify(_) => "verify",
            Self::Encode(_) => "encode",
            Self::Doctor => "doctor",
            Self::Devices => "devices",
            Self::Plugin { .. } => "plugin",
            Self::Completions { .. } => "completions",
        }
    }

    /// Returns the path of the document that the command reads, if it reads one.
    pub fn document(&self) -> Option<&Path> {
        match self {
            Self::Train(options) => Some(&options.document.pipeline),
            Self::Check(options) => Some(&options.document.pipeline),
            Self::Encode(options) => Some(&options.document.pipeline),
            Self::Cost(options) => options.documents.first().map(PathBuf::as_path),
            Self::Forward(options) => Some(&options.pipeline),
            Self::Convert(options) => Some(&options.pipeline),
            Self::Evaluate(options) => options.read_document(),
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
    /// Device, by the names that `devices` lists [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
    /// With several ranks: end the job if a step takes longer [default: 1800 for the first step, then the larger of 300
    /// and 20 median steps].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub step_timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub struct CheckOptions {
    #[command(flatten)]
    pub document: DocumentOptions,
    /// Also list every parameter with its shape.
    #[arg(long)]
    pub parameters: bool,
    /// Open the data: count items and classes, name what is skipped and why, and write a contact sheet of what the
    /// network receives.
    #[arg(long)]
    pub data: bool,
    /// File of the contact sheet (PNG) [default: NAME-data.png, after the document's file name].
    #[arg(long, value_name = "FILE", requires = "data")]
    pub sheet: Option<PathBuf>,
    /// Print one JSON object: the document, its costs, what was not checked, and the data. A document with problems
    /// prints its problems.
    #[arg(long, conflicts_with = "parameters")]
    pub json: bool,
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
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

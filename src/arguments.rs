//! The command-line arguments of `unguided`. The doc comments here are the `--help` texts.

use crate::init::options::{AdaptOptions, InitOptions};
use crate::sampling_arguments::{EvaluateOptions, SamplingOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};
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
            Self::List => "list",
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
    /// Device, by the names that `devices` lists [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
    /// With several ranks: end the job if a step takes longer [default: 1800 for the first step, then the larger of 300
    /// and 20 median steps].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub step_timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub struct SampleOptions {
    /// A run folder or a checkpoint.
    #[arg(value_name = "RUN", required_unless_present = "from")]
    pub run: Option<PathBuf>,
    /// Sample a picture again that `sample` wrote, with the request in its text chunks. RUN is only needed if the run
    /// was moved.
    #[arg(
        long,
        value_name = "PICTURE",
        conflicts_with_all = [
            "classes", "captions", "count", "seed", "scale", "guidance", "steps", "set", "batch_size",
            "matmul_precision", "images", "metrics",
        ]
    )]
    pub from: Option<PathBuf>,
    /// Classes to sample, by number or by name, e.g. 0,1,2 or cat,dog [default: all].
    #[arg(long, value_delimiter = ',')]
    pub classes: Vec<String>,
    /// A caption to sample; may be repeated [default: the first captions of the dataset].
    #[arg(long = "caption", value_name = "TEXT", conflicts_with = "classes")]
    pub captions: Vec<String>,
    /// Images per class or caption.
    #[arg(long, default_value = "8")]
    pub count: NonZeroUsize,
    #[command(flatten)]
    pub sampling: SamplingOptions,
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
    /// Also write all images (arr_0 uint8 [N,H,W,3]) and classes (arr_1 int64 [N]) to this .npz file, as the evaluator of
    /// arXiv:2105.05233 reads it.
    #[arg(long, value_name = "FILE")]
    pub npz: Option<PathBuf>,
    /// Measure the document's metrics on the samples.
    #[arg(long)]
    pub metrics: bool,
    /// Device, by the names that `devices` lists [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct CompareOptions {
    /// Folders of runs or of sweeps. A single run gets its report.
    #[arg(required = true, value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
    /// The page to write (HTML). It needs no other file and no network.
    #[arg(long, value_name = "FILE", default_value = "compare.html")]
    pub out: PathBuf,
    /// Also write the content as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also write the content as CSV, one value per line.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Samples per class or caption that each of two or more runs generates from the same noise; 0 = none.
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub samples: u32,
    /// Guidance scales of the samples, e.g. 1,2,4 [default: the scale of each run's document].
    #[arg(long, value_delimiter = ',')]
    pub scales: Vec<f64>,
    /// Seed of the samples.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Device of the samples: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one
    /// present].
    #[arg(long)]
    pub device: Option<String>,
}

#[derive(Debug, Args)]
pub struct PlaneOptions {
    /// A run folder or a checkpoint of dataset gaussian_mixture, two_moons or spirals.
    pub from: PathBuf,
    /// Samples per class.
    #[arg(long, default_value = "500")]
    pub count: NonZeroUsize,
    /// Trajectories per class.
    #[arg(long, default_value_t = 20)]
    pub trajectories: usize,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Guidance scale; sets /guidance/scale.
    #[arg(long)]
    pub scale: Option<f64>,
    /// Override one value of the checkpoint's document; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
    /// File of the picture (PNG).
    #[arg(long, default_value = "plane.png")]
    pub output: PathBuf,
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
pub struct CostOptions {
    /// The pipeline documents. Libraries that they list as `plugins` are loaded for the first document only.
    #[arg(required = true, value_name = "DOCUMENT")]
    pub documents: Vec<PathBuf>,
    /// Override one value of every document by JSON pointer; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
    /// Measured steps per document.
    #[arg(long, default_value = "20")]
    pub steps: NonZeroUsize,
    /// Device: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
    /// Train one document and print the peak memory of this process.
    #[arg(long, hide = true)]
    pub alone: bool,
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

//! Arguments of the commands that sample from a network. The doc comments here are the `--help` texts.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use framework::nn::precision::MatmulPrecision;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// How samples are generated.
#[derive(Debug, Args)]
pub struct SamplingOptions {
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
    #[arg(long, alias = "sampler-steps")]
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
}

/// Parses the precision from the names that documents use.
fn matmul_precision() -> impl TypedValueParser<Value = MatmulPrecision> {
    PossibleValuesParser::new(["highest", "medium"]).try_map(|name| serde_json::from_value(name.into()))
}

impl SamplingOptions {
    /// Returns the first option that only a network obeys, if one is given.
    pub fn only_for_networks(&self) -> Option<&'static str> {
        let given = [
            (self.seed != 0, "--seed"),
            (self.scale.is_some(), "--scale"),
            (self.guidance.is_some(), "--guidance"),
            (self.steps.is_some(), "--steps"),
            (!self.set.is_empty(), "--set"),
            (self.matmul_precision != MatmulPrecision::Highest, "--matmul-precision"),
        ];
        given.into_iter().find_map(|(given, option)| given.then_some(option))
    }
}

#[derive(Debug, Args)]
pub struct EvaluateOptions {
    /// A run folder, a checkpoint, a folder of images, or a file or folder of encoded latents.
    pub from: PathBuf,
    /// Real images: a document (its dataset), a run folder (its dataset), a folder of images, or saved statistics (a
    /// file or a folder) [default: the dataset of the run].
    #[arg(long, value_name = "PATH")]
    pub against: Option<PathBuf>,
    /// A metric, by name or as a JSON entry; may be repeated [default: the metrics of the document].
    #[arg(long = "metric", value_name = "NAME")]
    pub metrics: Vec<String>,
    /// Number of samples, or of images, evenly spread over the folder [default: as the document's training measures, or
    /// all images].
    #[arg(long, value_name = "N")]
    pub samples: Option<NonZeroUsize>,
    /// Document whose tokenizer decodes latents, and whose metrics measure [default: the one of --against].
    #[arg(long, value_name = "FILE")]
    pub document: Option<PathBuf>,
    /// Height and width to which folders of images are resized, in pixels [default: the size of the other images].
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<NonZeroUsize>,
    /// Evaluate at each value of a setting, from the same noise; may be repeated for a grid. The setting is scale, or a
    /// JSON pointer into the document. Values are a range FIRST:LAST:STEP or a list.
    #[arg(long, value_name = "SETTING=VALUES")]
    pub sweep: Vec<String>,
    /// Folder for state and results [default: evaluations/HASH in the run folder, or in the working directory].
    #[arg(long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
    /// Also write the statistics of the real images to this empty or new folder, for --against.
    #[arg(long, value_name = "FOLDER")]
    pub save_statistics: Option<PathBuf>,
    /// Keep the samples in the output folder.
    #[arg(long)]
    pub keep_samples: bool,
    /// Print the results as JSON: one object, or one object per point of a sweep.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub sampling: SamplingOptions,
    /// Device: cpu, cuda:N or vulkan:N (a GPU needs a build with that feature) [default: the best one present].
    #[arg(long)]
    pub device: Option<String>,
}

impl EvaluateOptions {
    /// Returns the path of the document that the command reads, if it reads one.
    pub fn read_document(&self) -> Option<&Path> {
        let against = || self.against.as_deref().filter(|path| path.extension() == Some(OsStr::new("json")));
        self.document.as_deref().or_else(against)
    }
}

//! Arguments of the commands that use trained networks or compare documents. The doc comments here are the `--help`
//! texts.

use crate::arguments::sampling::SamplingOptions;
use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;

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

//! `encode`: encodes a dataset of images to files of latents or tokens. Training then reads those instead of encoding
//! again.

use crate::arguments::{EncodeOptions, Float};
use crate::console::{self, Console};
use crate::{Outcome, device, memory, outputs};
use framework::burn::tensor::DType;
use framework::data::dataset::{DatasetInfo, ItemKind};
use framework::data::latent_file::{self, Shard};
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problem, Result};
use framework::process::LatentShape;
use run_folder::watcher::{Stage, Watcher};
use run_folder::{binding, document};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::io::IsTerminal;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Metadata of a latent file: everything that its bytes depend on, and the number of skipped items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct About {
    /// Data, tokenizer and options. Equal for all files of a folder.
    of: Value,
    /// Range of dataset items in the file: the first, and one past the last.
    items: [usize; 2],
    /// Number of items in this range that could not be read.
    skipped: usize,
}

/// Encodes a dataset, or resumes an interrupted run.
pub fn encode(options: &EncodeOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    let mut pipeline = document::read(&options.document.pipeline, &options.document.set)?;
    let dataset: Arc<dyn framework::data::dataset::Dataset> = Arc::new(pipeline.open()?);
    let info = dataset.info();
    let (image, shape) = shapes(&pipeline, &info)?;
    if pipeline.tokenizer.learner().is_some() {
        let problem = Problem::new("/tokenizer", "the tokenizer has not learned its codebook yet");
        let fix = "train once, and set /tokenizer/path to the run's tokenizer.safetensors";
        return Err(problem.accepts("a tokenizer with its file").fix(fix).into());
    }
    memory::to_encode(&pipeline, options.batch_size as usize, image.iter().product(), &device)?;
    let flip = options.flip || dataset.mirrors();
    let (output, size) = (&options.output, options.shard as usize);
    let document: Value = serde_json::from_str(&pipeline.document).map_err(|e| Error::Run(e.to_string()))?;
    let of = json!({
        "data": document["data"], "tokenizer": document["tokenizer"],
        "dtype": if shape.vocabulary.is_some() { json!("i32") } else { json!(options.dtype) }, "flip": flip,
        "shard": size, "items": dataset.len()
    });
    fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
    outputs::writable("--output", output)?;
    let mut left_out = begun(output, &of)?;
    let ranges = (0..dataset.len()).step_by(size).map(|first| first..(first + size).min(dataset.len()));
    let open: Vec<Range<usize>> = ranges.clone().filter(|range| !file(output, range, size).exists()).collect();
    let items: usize = open.iter().map(ExactSizeIterator::len).sum();
    if items < dataset.len() {
        let encoded = dataset.len() - items;
        console::say(&format!("resuming: {encoded} of {} items are already encoded", dataset.len()));
    }
    for warning in dataset.warnings() {
        console::say(&format!("warning: {warning}"));
    }
    pipeline.tokenizer.load(&device)?;
    allocator::keep_pages();

    let (plain, start, mut done) = (!std::io::stderr().is_terminal(), Instant::now(), 0);
    let mut console = Console::new();
    let batch_size = options.batch_size as usize;
    let batches = latent_file::batches(dataset.clone(), open.clone(), batch_size);
    for range in open {
        let mut shard = match &shape {
            LatentShape { vocabulary: None, .. } => {
                Shard::new([shape.channels, shape.grid[0], shape.grid[1]], options.dtype.dtype())
            }
            LatentShape { levels, .. } if levels.is_empty() => {
                Shard::new([1, shape.grid[0], shape.grid[1]], DType::I32)
            }
            _ => Shard::new([1, 1, shape.positions()], DType::I32),
        };
        for _ in 0..range.len().div_ceil(batch_size) {
            let batch = batches.recv().expect("the loader sends every batch of the given ranges");
            if let (0, Some(first)) = (left_out, batch.skipped.first()) {
                console.say(&format!("skipped an item that cannot be read: {}", first.error));
            }
            left_out += batch.skipped.len();
            shard.encode(&batch, image, &|images| pipeline.encode(images), flip, &device)?;
            done += batch.labels.len() + batch.skipped.len();
            let speed = done as f64 / start.elapsed().as_secs_f64();
            console.progress(Stage::Encoding, done, items, &format!("{speed:.1} items/s"));
        }
        let path = file(output, &range, size);
        let about = About { of: of.clone(), items: [range.start, range.end], skipped: range.len() - shard.len() };
        // Write no empty file. The next run then tries these items again.
        if shard.is_empty() {
            continue;
        }
        shard.write(&path, &serde_json::to_string(&about).map_err(|e| Error::Run(e.to_string()))?)?;
        if plain {
            let speed = done as f64 / start.elapsed().as_secs_f64();
            let left = (items - done) as f64 / speed;
            console.say(&format!("{done}/{items} items  {}  {speed:.1} items/s  {left:.0} s left", path.display()));
        }
    }
    console.finished(Stage::Encoding);
    let files = ranges.filter(|range| file(output, range, size).exists()).count();
    if files == 0 {
        return Err(Error::Run("no item of the dataset is readable".into()));
    }
    console::report(&format!("{} items in {files} files of {}", dataset.len() - left_out, output.display()));
    for note in dataset.notes() {
        console::report(&format!("note: {note}"));
    }
    if left_out > 0 {
        console::report(&format!("{left_out} items could not be read and were skipped"));
    }
    console::report(&format!("\"data\": {:#}", entry(output, &info, &shape)));
    Ok(())
}

/// Returns the shapes of an image and of its latent.
///
/// # Errors
/// If the dataset already holds latents, or the tokenizer cannot encode its images.
fn shapes(pipeline: &framework::pipeline::Pipeline, info: &DatasetInfo) -> Result<(ImageShape, LatentShape)> {
    let ItemKind::Images(image) = info.items else {
        return Err(Problem::new("/data", "the dataset already holds latents").accepts("a dataset of images").into());
    };
    Ok((image, pipeline.tokenizer.latent_shape(image).map_err(Error::Input)?))
}

/// Returns the path of the file for a range of items. File names sort by item.
fn file(folder: &Path, range: &Range<usize>, size: usize) -> PathBuf {
    folder.join(format!("{:06}.safetensors", range.start / size))
}

/// Returns the number of items that the existing files of a folder skipped.
///
/// # Errors
/// If a file was not written by `encode`, or its data, tokenizer or options differ from `of`.
fn begun(folder: &Path, of: &Value) -> Result<usize> {
    let mut skipped = 0;
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            continue;
        }
        let about = latent_file::about(&path)?.and_then(|text| serde_json::from_str::<About>(&text).ok());
        let what = match about {
            Some(about) if about.of == *of => {
                skipped += about.skipped;
                continue;
            }
            Some(about) => format!("has a different {}", binding::differences("", &about.of, of).join(" and ")),
            None => "was not written by `encode`".to_string(),
        };
        return Err(Error::from(
            Problem::new("--output", format!("{} {what}", path.display()))
                .accepts("an empty folder, or one encoded with the same data, tokenizer and options")
                .fix("choose another folder, or delete this one"),
        ));
    }
    Ok(skipped)
}

/// Returns the document entry that reads the files.
fn entry(folder: &Path, info: &DatasetInfo, shape: &LatentShape) -> Value {
    // A path that is not UTF-8 has no exact form in JSON.
    let mut entry = json!({ "type": "latents", "path": folder.to_string_lossy() });
    match info.captions {
        true => entry["captions"] = json!(true),
        false => entry["num_classes"] = json!(info.num_classes.unwrap_or(0)),
    }
    if shape.grid[0] == shape.grid[1] && shape.levels.is_empty() {
        entry["input_size"] = json!(shape.grid[0]);
    }
    match shape.vocabulary {
        Some(vocabulary) => entry["vocabulary"] = json!(vocabulary),
        None => entry["channels"] = json!(shape.channels),
    }
    if !shape.levels.is_empty() {
        entry["levels"] = json!(shape.levels);
        entry["level_channels"] = json!(shape.channels);
    }
    entry
}

impl Float {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

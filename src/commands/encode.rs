//! `encode`: a dataset of images to files of latents, once, so that training reads them instead of encoding anew.

use crate::arguments::{EncodeOptions, Float};
use crate::train::bar;
use crate::{Failure, Outcome, document, run};
use framework::burn::tensor::DType;
use framework::dataset::{DatasetInfo, ItemKind};
use framework::error::Error;
use framework::latents::{self, Shard};
use framework::process::LatentShape;
use framework::tokenizer::ImageShape;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::io::IsTerminal;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What a file says of itself: all that its bytes depend on, and how many items were left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct About {
    /// Data, tokenizer and options: the same for every file of a folder.
    of: Value,
    /// The items it holds: the first, and the one behind the last.
    items: [usize; 2],
    /// Items of these that could not be read.
    skipped: usize,
}

/// Encodes a dataset, or goes on where it was stopped.
pub fn encode(options: &EncodeOptions) -> Outcome {
    let device = document::device(options.device.as_deref())?;
    let mut pipeline = document::read(&options.document.pipeline, &options.document.set)?;
    let dataset: Arc<dyn framework::dataset::Dataset> = Arc::new(pipeline.open()?);
    let info = dataset.info();
    let (image, shape) = shapes(&pipeline, &info)?;
    let flip = options.flip || dataset.mirrors();
    let (folder, size) = (&options.output, options.shard as usize);
    let document: Value = serde_json::from_str(&pipeline.document).map_err(|e| Failure::Run(e.to_string()))?;
    let of = json!({
        "data": document["data"], "tokenizer": document["tokenizer"], "dtype": options.dtype, "flip": flip,
        "shard": size, "items": dataset.len()
    });
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut left_out = begun(folder, &of)?;
    let ranges = (0..dataset.len()).step_by(size).map(|first| first..(first + size).min(dataset.len()));
    let open: Vec<Range<usize>> = ranges.clone().filter(|range| !file(folder, range, size).exists()).collect();
    let items: usize = open.iter().map(ExactSizeIterator::len).sum();
    if items < dataset.len() {
        eprintln!("going on: {} of {} items are encoded", dataset.len() - items, dataset.len());
    }
    for warning in dataset.warnings() {
        eprintln!("warning: {warning}");
    }
    pipeline.tokenizer.load(&device)?;
    allocator::keep_pages();

    let (plain, start, mut done) = (!std::io::stderr().is_terminal(), Instant::now(), 0);
    let bar = bar("encoding", items as u64);
    let batch_size = options.batch_size as usize;
    let batches = latents::batches(dataset.clone(), open.clone(), batch_size);
    for range in open {
        let mut shard = Shard::new([shape.channels, shape.grid[0], shape.grid[1]], options.dtype.dtype());
        for _ in 0..range.len().div_ceil(batch_size) {
            let batch = batches.recv().expect("as many batches as were announced");
            if let (0, Some(first)) = (left_out, batch.skipped.first()) {
                eprintln!("skipped an item that cannot be read: {first}");
            }
            left_out += batch.skipped.len();
            shard.encode(&batch, image, &pipeline, flip, &device)?;
            done += batch.labels.len() + batch.skipped.len();
            bar.set_position(done as u64);
            bar.set_message(format!("{:.1} items/s", done as f64 / start.elapsed().as_secs_f64()));
        }
        let path = file(folder, &range, size);
        let about = About { of: of.clone(), items: [range.start, range.end], skipped: range.len() - shard.len() };
        // A file of nothing is no file; the next call looks at its items again.
        if shard.is_empty() {
            continue;
        }
        shard.write(&path, &serde_json::to_string(&about).map_err(|e| Failure::Run(e.to_string()))?)?;
        if plain {
            let speed = done as f64 / start.elapsed().as_secs_f64();
            let left = (items - done) as f64 / speed;
            eprintln!("{done}/{items} items  {}  {speed:.1} items/s  {left:.0} s left", path.display());
        }
    }
    bar.finish_and_clear();
    let files = ranges.filter(|range| file(folder, range, size).exists()).count();
    if files == 0 {
        return Err(Failure::Run("error: no item of the dataset can be read".into()));
    }
    println!("{} items in {files} files of {}", dataset.len() - left_out, folder.display());
    if left_out > 0 {
        println!("{left_out} items could not be read and are left out");
    }
    println!("\"data\": {:#}", entry(folder, &info, &shape));
    Ok(())
}

/// The image and its latent, where there are both.
fn shapes(pipeline: &framework::pipeline::Pipeline, info: &DatasetInfo) -> Result<(ImageShape, LatentShape), Failure> {
    let ItemKind::Images(image) = info.items else {
        let what = "error: the dataset holds latents already\n  at       /data\n  accepts  a dataset of images";
        return Err(Failure::Input(what.into()));
    };
    let shape = pipeline.tokenizer.latent_shape(image).map_err(Error::Document)?;
    if shape.vocabulary.is_some() {
        let what = "error: the tokenizer makes tokens, and dataset \"latents\" holds numbers";
        let accepts = "a tokenizer of numbers, such as sd_vae; tokens are encoded while training";
        return Err(Failure::Input(format!("{what}\n  at       /tokenizer\n  accepts  {accepts}")));
    }
    Ok((image, shape))
}

/// The file of a range of items; names sort by item.
fn file(folder: &Path, range: &Range<usize>, size: usize) -> PathBuf {
    folder.join(format!("{:06}.safetensors", range.start / size))
}

/// How many items the files of a folder left out; all of them must be of `of`.
fn begun(folder: &Path, of: &Value) -> Result<usize, Failure> {
    let mut skipped = 0;
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            continue;
        }
        let about = latents::about(&path)?.and_then(|text| serde_json::from_str::<About>(&text).ok());
        let what = match about {
            Some(about) if about.of == *of => {
                skipped += about.skipped;
                continue;
            }
            Some(about) => format!("was encoded with another {}", run::differences("", &about.of, of).join(" and ")),
            None => "was not written by `encode`".to_string(),
        };
        return Err(Failure::Input(format!(
            "error: {} {what}\n  at       --output\n  accepts  an empty folder, or one of the same data, tokenizer and options\n  fix      choose another folder, or delete this one",
            path.display()
        )));
    }
    Ok(skipped)
}

/// The entry of a document that reads the files.
fn entry(folder: &Path, info: &DatasetInfo, shape: &LatentShape) -> Value {
    let mut entry = json!({ "type": "latents", "path": folder });
    match info.captions {
        true => entry["captions"] = json!(true),
        false => entry["num_classes"] = json!(info.num_classes.unwrap_or(0)),
    }
    if shape.grid[0] == shape.grid[1] {
        entry["input_size"] = json!(shape.grid[0]);
    }
    entry["channels"] = json!(shape.channels);
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

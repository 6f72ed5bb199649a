//! The report of a finished run: `report.json` and `report.html`.

use crate::environment::peak_memory;
use crate::evaluation::measuring::{self, Accumulators, Failure, References};
use crate::folder::RunFolder;
use crate::page::Content;
use crate::page::record::{FACTS, Facts};
use framework::burn::tensor::Device;
use framework::checkpoint::tensor_file::write_atomically;
use framework::data::dataset::Dataset;
use framework::error::{Error, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::Measurement;
use framework::interrupt;
use framework::nn::parameters;
use framework::pipeline::Pipeline;
use framework::pipeline::images::Sampled;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::slice;

/// Number of images that a metric receives at once.
const BATCH: usize = 64;

/// Samples compared with a dataset.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Results of the document's metrics.
    pub measured: Vec<Measurement>,
    /// Metrics that could not be measured.
    pub failed: Vec<Failure>,
    /// Number of real images that the samples were compared with.
    pub real: usize,
    /// Number of items in the dataset.
    pub items: usize,
}

impl Comparison {
    /// Describes which part of the dataset was used, or returns `None` if it was the whole dataset.
    fn of_part(&self) -> Option<String> {
        (self.real < self.items).then(|| format!("compared with {} of the dataset's {} images", self.real, self.items))
    }
}

/// Measures the document's metrics on samples. A metric that fails or panics leaves the others alone.
///
/// # Errors
/// If the real images cannot be loaded, or a training that measures is asked to stop.
pub fn compare(pipeline: &Pipeline, samples: &Images, dataset: &dyn Dataset, device: &Device) -> Result<Comparison> {
    let names = measuring::names(pipeline);
    let metrics = measuring::named(pipeline, &names);
    let mut references = References::new(&metrics)?;
    let real = pipeline.real_images(dataset, device, &mut |images| references.update(images))?;
    let mut accumulators = Accumulators::new(&metrics, references.finish()?)?;
    for batch in samples.batches(BATCH) {
        if interrupt::must_abort() {
            return Err(Error::Interrupted);
        }
        accumulators.update(&batch)?;
    }
    let (measured, failed) = accumulators.finish()?;
    Ok(Comparison { measured, failed, real, items: dataset.len() })
}

/// Returns the lines that `train` and `sample` print at the end.
pub fn summary(drawn: &Sampled, compared: &Comparison) -> String {
    summary_of(drawn.images.len(), drawn.nfe, drawn.images_per_second(), compared)
}

/// Returns the lines of [`summary`] for a number of images, network evaluations per image, and images per second.
pub fn summary_of(images: usize, nfe: usize, images_per_second: f64, compared: &Comparison) -> String {
    let mut text = format!("{images} images, NFE {nfe}, {images_per_second:.1} images/s");
    if let Some(part) = compared.of_part() {
        let _ = write!(text, "\n{part}");
    }
    for Measurement { name, value, meaning } in &compared.measured {
        let _ = write!(text, "\n{name:<32} {value:>10.4}  {meaning}");
    }
    for Failure { name, what } in &compared.failed {
        let _ = write!(text, "\n{name} failed: {what}");
    }
    text
}

/// Writes `report.json`: the measurements, and the facts that no other file of the folder contains. `facts` holds what
/// the samples and the network do not tell.
///
/// # Errors
/// If the file cannot be written.
pub fn write(run: &RunFolder, pipeline: &Pipeline, facts: Facts, drawn: &Sampled, compared: &Comparison) -> Result<()> {
    let part = compared.of_part().map(|part| format!("Samples were {part}."));
    let failed = compared.failed.iter().map(|Failure { name, what }| format!("{name} failed: {what}"));
    let facts = Facts {
        // Before the network for the count is created.
        peak_memory: peak_memory(),
        parameters: Some(parameters::count(&pipeline.backbone.init(&Device::flex()))),
        notes: part.into_iter().chain(failed).collect(),
        meanings: compared.measured.iter().map(|m| (m.name.clone(), m.meaning.clone().into())).collect(),
        ..facts
    };
    let mut numbers = Map::new();
    numbers.insert("nfe".into(), drawn.nfe.into());
    numbers.insert("samples".into(), drawn.images.len().into());
    numbers.insert("images_per_second".into(), drawn.images_per_second().into());
    numbers.extend(compared.measured.iter().map(|m| (m.name.clone(), m.value.into())));
    numbers.insert(FACTS.into(), json!(facts));
    let path = run.path.join("report.json");
    write_atomically(&path, [format!("{:#}\n", Value::Object(numbers)).as_bytes()])
}

/// Writes `report.html` from the files of the run folder.
///
/// # Errors
/// If a file of the folder cannot be read, or the page cannot be written.
pub fn write_page(run: &RunFolder) -> Result<()> {
    Content::read(slice::from_ref(&run.path))?.write_html(&run.path.join("report.html"))
}

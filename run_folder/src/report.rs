//! The report of a finished run: plots, `report.md` and `report.json`.

use crate::evaluation::measuring::{self, Accumulators, Failure, References};
use crate::folder::RunFolder;
use crate::labels;
use crate::plot::{Curve, lines};
use framework::burn::tensor::Device;
use framework::checkpoint::tensor_file::write_atomically;
use framework::data::dataset::{Dataset, Label};
use framework::error::{Error, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::Measurement;
use framework::interrupt;
use framework::nn::parameters;
use framework::pipeline::Pipeline;
use framework::pipeline::images::Sampled;
use serde_json::Value;
use std::fmt::Write;
use std::fs;

/// Number of images that a metric receives at once.
const BATCH: usize = 64;

/// Key in `metrics.jsonl` for the number of items that could not be read since the previous line. Each item counts
/// once, in epoch 0. Absent if zero.
pub const SKIPPED: &str = "skipped";

/// Key in `metrics.jsonl` for the duration of sampling and measuring, in seconds. Its line has the step and the results
/// of the metrics.
pub const EVALUATION_SECONDS: &str = "evaluation_seconds";

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

/// Writes a plot of every logged quantity (`loss.png` and others), `report.md` and `report.json`.
///
/// # Errors
/// If `metrics.jsonl` cannot be read, or a file cannot be written.
pub fn write(
    run: &RunFolder,
    pipeline: &Pipeline,
    rows: &[Label],
    drawn: &Sampled,
    compared: &Comparison,
) -> Result<()> {
    let path = run.metrics();
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let lines_logged: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let curve = |name: &str| Curve {
        name: name.to_string(),
        points: lines_logged.iter().filter_map(|l| Some((l["step"].as_f64()?, l[name].as_f64()?))).collect(),
    };
    // Some lines have results of metrics, and a quantity may begin late.
    let mut names: Vec<String> = Vec::new();
    for name in lines_logged.iter().filter_map(Value::as_object).flat_map(|line| line.keys()) {
        if !["step", SKIPPED, EVALUATION_SECONDS].contains(&name.as_str()) && !names.contains(name) {
            names.push(name.clone());
        }
    }
    for name in &names {
        lines(
            &run.path.join(format!("{name}.png")),
            &name.replace('_', " "),
            "step",
            &name.replace('_', " "),
            &[curve(name)],
        )?;
    }
    let network = pipeline.backbone.init(&Device::flex());
    let parameters: usize =
        parameters::parameters(&network).iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
    let mut report = String::from("# Run report\n\n![samples](samples.png)\n\n");
    for (row, caption) in labels::names(rows).enumerate() {
        let _ = writeln!(report, "{}. {caption}", row + 1);
    }
    if labels::names(rows).next().is_some() {
        report.push_str("\nRows are numbered from the top.\n\n");
    }
    let _ = writeln!(
        report,
        "{} parameters, {} steps of {} samples.\n",
        thousands(parameters),
        pipeline.train.steps,
        pipeline.train.batch_size * pipeline.train.accumulate
    );
    let skipped: u64 = lines_logged.iter().filter_map(|line| line[SKIPPED].as_u64()).sum();
    if skipped > 0 {
        let _ = writeln!(report, "{skipped} items could not be read; each was replaced by the next readable item.\n");
    }
    if let Some(part) = compared.of_part() {
        let _ = writeln!(report, "Samples were {part}.\n");
    }
    let _ = writeln!(report, "| measured on {} samples | value | meaning |\n|---|---|---|", drawn.images.len());
    let _ = writeln!(report, "| nfe | {} | network evaluations per image |", drawn.nfe);
    let _ =
        writeln!(report, "| images_per_second | {:.1} | sampling speed on this machine |", drawn.images_per_second());
    for Measurement { name, value, meaning } in &compared.measured {
        let _ = writeln!(report, "| {name} | {value:.4} | {meaning} |");
    }
    for Failure { name, what } in &compared.failed {
        let what = what.replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(report, "| {name} | failed | {what} |");
    }
    report.push('\n');
    for name in &names {
        let _ = writeln!(report, "![{name}]({name}.png)");
    }
    let _ = writeln!(
        report,
        "\nThe document, with every default, is `document.json`; every logged step is in `metrics.jsonl`."
    );
    let path = run.path.join("report.md");
    write_atomically(&path, [report.as_bytes()])?;
    let mut numbers = serde_json::Map::new();
    numbers.insert("nfe".into(), drawn.nfe.into());
    numbers.insert("samples".into(), drawn.images.len().into());
    numbers.extend(compared.measured.iter().map(|m| (m.name.clone(), m.value.into())));
    let path = run.path.join("report.json");
    write_atomically(&path, [format!("{:#}\n", Value::Object(numbers)).as_bytes()])
}

/// Formats 675129632 as 675,129,632.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

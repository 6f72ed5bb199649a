//! What a finished run leaves for people: plots and `report.md`.

use crate::inspect::thousands;
use crate::labels;
use crate::run::Run;
use framework::burn::tensor::Device;
use framework::dataset::{Dataset, Label};
use framework::error::{Error, Result};
use framework::guard;
use framework::metric::{Images, Measurement};
use framework::pipeline::Pipeline;
use framework::plot::{Curve, lines};
use framework::plugin::Kind;
use framework::sampling::Drawn;
use framework::weights;
use serde_json::Value;
use std::fmt::Write;
use std::fs;

/// The number of `metrics.jsonl` that counts items that could not be read since the line before; absent where none.
pub const SKIPPED: &str = "skipped";

/// Samples beside a dataset.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// The document's metrics.
    pub measured: Vec<Measurement>,
    /// Images that samples were compared with.
    pub real: usize,
    /// Items of the dataset.
    pub items: usize,
}

impl Comparison {
    /// What was compared with, where that was not the whole dataset.
    fn of_part(&self) -> Option<String> {
        (self.real < self.items).then(|| format!("compared with {} of the dataset's {} images", self.real, self.items))
    }
}

/// The document's metrics on samples.
pub fn compare(pipeline: &Pipeline, samples: &Images, dataset: &dyn Dataset, device: &Device) -> Result<Comparison> {
    let real = pipeline.real_images(dataset, device)?;
    let mut measured = Vec::new();
    for metric in &pipeline.metrics {
        measured.extend(guard::caught(pipeline.name(Kind::Metric), || metric.measure(samples, &real))??);
    }
    Ok(Comparison { measured, real: real.len(), items: dataset.len() })
}

/// The lines that `train` and `sample` print at the end.
pub fn summary(drawn: &Drawn, compared: &Comparison) -> String {
    let mut text =
        format!("{} images, NFE {} an image, {:.1} images/s", drawn.images.len(), drawn.nfe, drawn.images_per_second());
    if let Some(part) = compared.of_part() {
        let _ = write!(text, "\n{part}");
    }
    for Measurement { name, value, meaning } in &compared.measured {
        let _ = write!(text, "\n{name:<32} {value:>10.4}  {meaning}");
    }
    text
}

/// Writes `loss.png`, a plot of every other logged number, `report.md` and `report.json`.
pub fn write(run: &Run, pipeline: &Pipeline, rows: &[Label], drawn: &Drawn, compared: &Comparison) -> Result<()> {
    let path = run.metrics();
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let lines_logged: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let curve = |name: &str| Curve {
        name: name.to_string(),
        points: lines_logged.iter().filter_map(|l| Some((l["step"].as_f64()?, l[name].as_f64()?))).collect(),
    };
    let names: Vec<String> = match lines_logged.first() {
        Some(Value::Object(first)) => {
            first.keys().filter(|name| !["step", SKIPPED].contains(&name.as_str())).cloned().collect()
        }
        _ => Vec::new(),
    };
    for name in &names {
        lines(
            &run.folder.join(format!("{name}.png")),
            &name.replace('_', " "),
            "step",
            &name.replace('_', " "),
            &[curve(name)],
        )?;
    }
    let network = pipeline.backbone.init(&Device::flex());
    let parameters: usize =
        weights::parameters(&network).iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
    let mut report = String::from("# Run report\n\n![samples](samples.png)\n\n");
    for (row, caption) in labels::names(rows).enumerate() {
        let _ = writeln!(report, "{}. {caption}", row + 1);
    }
    if labels::names(rows).next().is_some() {
        report.push_str("\nRow by row, from the top.\n\n");
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
        let _ = writeln!(report, "{skipped} items could not be read; the next that could stood in for them.\n");
    }
    if let Some(part) = compared.of_part() {
        let _ = writeln!(report, "Samples were {part}.\n");
    }
    let _ = writeln!(report, "| measured on {} samples | value | meaning |\n|---|---|---|", drawn.images.len());
    let _ = writeln!(report, "| nfe | {} | network evaluations an image |", drawn.nfe);
    let _ =
        writeln!(report, "| images_per_second | {:.1} | sampling speed on this machine |", drawn.images_per_second());
    for Measurement { name, value, meaning } in &compared.measured {
        let _ = writeln!(report, "| {name} | {value:.4} | {meaning} |");
    }
    report.push('\n');
    for name in &names {
        let _ = writeln!(report, "![{name}]({name}.png)");
    }
    let _ = writeln!(
        report,
        "\nThe document, with every default, is `document.json`; every logged step is in `metrics.jsonl`."
    );
    let path = run.folder.join("report.md");
    fs::write(&path, report).map_err(|e| Error::io(&path, e))?;
    let mut numbers = serde_json::Map::new();
    numbers.insert("nfe".into(), drawn.nfe.into());
    numbers.insert("samples".into(), drawn.images.len().into());
    numbers.extend(compared.measured.iter().map(|m| (m.name.clone(), m.value.into())));
    let path = run.folder.join("report.json");
    fs::write(&path, format!("{:#}\n", Value::Object(numbers))).map_err(|e| Error::io(&path, e))
}

//! What the command prints.

use crate::Outcome;
use crate::arguments::EvaluateOptions;
use crate::console;
use framework::error::{Error, Problem};
use run_folder::evaluation::evaluate::{Evaluation, Times, table};
use run_folder::evaluation::sweep::{Measured, Point, label};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// Prints the results of one evaluation, as a table or as JSON.
///
/// # Errors
/// If the output cannot be written, or a metric failed.
pub fn print(options: &EvaluateOptions, evaluation: &Evaluation, times: &Times, folder: &Path) -> Outcome {
    if options.json {
        let mut value = serde_json::to_value(evaluation).map_err(|e| Error::Run(e.to_string()))?;
        value["seconds_per_image"] = json!(times.seconds_per_image);
        value["images_per_second"] = json!(times.images_per_second);
        console::print(&format!("{value:#}"))?;
    } else {
        console::report(&table(evaluation, times));
        console::report(&folder.join("evaluation.json").display().to_string());
    }
    failures([evaluation])
}

/// Returns an error if a metric failed.
///
/// # Errors
/// If a metric failed.
pub fn failures<'a>(evaluations: impl IntoIterator<Item = &'a Evaluation>) -> Outcome {
    let mut names: Vec<&str> = Vec::new();
    for failed in evaluations.into_iter().flat_map(|evaluation| &evaluation.failed) {
        if !names.contains(&failed.name.as_str()) {
            names.push(&failed.name);
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let what = format!("a metric failed: {}; the results of the others are stored", names.join(", "));
    Err(Error::failed(Problem::new("", what).fix("the same command measures again; it samples nothing twice")))
}

/// Prints one point of a sweep: one line, or one line of JSON.
///
/// # Errors
/// If the output cannot be written.
pub fn print_point(options: &EvaluateOptions, point: &Point, measured: &Measured) -> Outcome {
    if options.json {
        return console::print(&serde_json::to_string(measured).map_err(|e| Error::Run(e.to_string()))?);
    }
    let mut line = label(point);
    for (name, value) in &measured.metrics {
        let value = value.as_f64().map_or("not finite".to_string(), |value| format!("{value:.4}"));
        let _ = write!(line, "  {name} {value}");
    }
    if let Some(evaluations) = measured.evaluations {
        let _ = write!(line, "  NFE {evaluations}");
    }
    if let (Some(seconds), Some(speed)) = (measured.seconds_per_image, measured.images_per_second) {
        let _ = write!(line, "  {seconds:.4} s/image  {speed:.1} images/s");
    }
    console::report(&line);
    Ok(())
}

/// Returns the part of a resolved document that samples depend on.
pub fn sampled_by(document: &str) -> Value {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let keys = ["tokenizer", "conditioner", "sampler", "guidance"];
    keys.into_iter().map(|key| (key.to_string(), document[key].clone())).collect::<serde_json::Map<_, _>>().into()
}

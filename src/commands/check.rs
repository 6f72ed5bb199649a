//! `check`: checks a document, prints it with every default and its costs, and with `--data` opens its data.

use crate::arguments::CheckOptions;
use crate::commands::data_sheet::{self, Found};
use crate::console::{self, bytes};
use crate::memory::Needs;
use crate::{Outcome, outputs};
use framework::burn::tensor::Device;
use framework::error::{Error, Problem, Result};
use framework::nn::parameters;
use framework::pipeline::Pipeline;
use run_folder::document;
use run_folder::page::numbers::thousands;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Checks a document. Allocates no weights, and opens the data only if asked.
pub fn check(options: &CheckOptions) -> Outcome {
    match (checked(options), options.json) {
        (Ok((pipeline, found)), true) => console::json(&as_json(&pipeline, found.as_ref(), options.data)),
        (Err(Error::Input(problems)), true) => {
            console::json(&json!({ "ok": false, "problems": problems.iter().map(problem).collect::<Vec<_>>() }))?;
            Err(Error::Input(problems))
        }
        (Err(error), _) => Err(error),
        (Ok((pipeline, found)), false) => print(&pipeline, found.as_ref(), options),
    }
}

fn checked(options: &CheckOptions) -> Result<(Pipeline, Option<Found>)> {
    let path = &options.document.pipeline;
    let pipeline = document::read(path, &options.document.set)?;
    if !options.data {
        return Ok((pipeline, None));
    }
    let sheet = options.sheet.clone().unwrap_or_else(|| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        PathBuf::from(format!("{stem}-data.png"))
    });
    outputs::file("--sheet", &sheet, Some("png"))?;
    let (pipeline, found) = data_sheet::open(pipeline, &sheet)?;
    Ok((pipeline, Some(found)))
}

/// Returns a problem as JSON.
fn problem(problem: &Problem) -> Value {
    let Problem { what, file, at, differs, accepts, nearest, fix } = problem;
    json!({
        "what": what, "file": file, "at": at, "differs": differs, "accepts": accepts, "nearest": nearest, "fix": fix
    })
}

/// Returns what was not checked because its files were not opened: pointers and reasons.
fn unchecked(pipeline: &Pipeline, data_opened: bool) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let document: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    if !data_opened {
        let what = match pipeline.data.info() {
            Some(_) => "whether the files exist and agree with the document",
            None => "the files: their classes, captions and sizes are known only when they are opened",
        };
        found.push(("/data".to_string(), format!("{what} (`check --data` opens them)")));
    }
    for (pointer, slot) in [
        ("/tokenizer/path", "/tokenizer"),
        ("/conditioner/path", "/conditioner"),
        ("/train/from/checkpoint", "/train/from"),
        ("/train/reference/checkpoint", "/train/reference"),
        ("/guidance/weak/checkpoint", "/guidance/weak"),
    ] {
        if let Some(path) = document.pointer(pointer).and_then(Value::as_str) {
            found.push((slot.to_string(), format!("the weights in {path}")));
        }
    }
    found
}

fn as_json(pipeline: &Pipeline, found: Option<&Found>, data_opened: bool) -> Value {
    let needs = Needs::of(pipeline);
    let document: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    let unchecked = unchecked(pipeline, data_opened).into_iter().map(|(at, what)| json!({ "at": at, "what": what }));
    json!({
        "ok": true,
        "problems": [],
        "document": document,
        "parameters": needs.parameters,
        "trained_parameters": needs.trained,
        "memory_bytes": { "train": needs.training(), "state": needs.state, "activations": needs.activations(),
                          "frozen": needs.frozen(), "sample": needs.sampling() },
        "flops_per_pass": pipeline.backbone.flops(),
        "extra_passes": pipeline.objective.extra_passes(),
        "most_evaluations": evaluations(pipeline).0 * evaluations(pipeline).1,
        "unchecked": unchecked.collect::<Vec<_>>(),
        "data": found.map(Found::as_json),
    })
}

/// Returns the evaluations of the sampler, and the largest number of branches of each.
fn evaluations(pipeline: &Pipeline) -> (usize, usize) {
    (pipeline.sampler.evaluations(&pipeline.latent_shape()), pipeline.guidance.needs().most_branches)
}

/// Prints the resolved document and its costs.
fn print(pipeline: &Pipeline, found: Option<&Found>, options: &CheckOptions) -> Outcome {
    console::print(&pipeline.document)?;
    if options.parameters {
        let network = pipeline.backbone.init(&Device::flex());
        for (path, shape, _) in &parameters::parameters(&network) {
            console::print(&format!("{path:<60} {shape:?}"))?;
        }
    }
    costs(pipeline);
    for line in found.iter().flat_map(|found| found.lines()) {
        console::say(&line);
    }
    let unchecked = unchecked(pipeline, options.data);
    for (i, (at, what)) in unchecked.iter().enumerate() {
        console::say(&format!("{:<12} {at}: {what}", if i == 0 { "not checked" } else { "" }));
    }
    Ok(())
}

/// Prints the costs of a pipeline.
pub fn costs(pipeline: &Pipeline) {
    let needs = Needs::of(pipeline);
    console::say(&format!("parameters   {}", thousands(needs.parameters)));
    if needs.trained < needs.parameters {
        console::say(&format!("             {} of them are trained", thousands(needs.trained)));
    }
    for (part, frozen) in [("tokenizer", needs.tokenizer), ("conditioner", needs.conditioner)] {
        if frozen > 0 {
            console::say(&format!("             {} in the frozen {part}", thousands(frozen)));
        }
    }
    console::say(&format!(
        "memory       about {} to train (weights and optimizer {}, activations of a batch of {} {}), {} to sample",
        bytes(needs.training()),
        bytes(needs.state),
        needs.batch,
        bytes(needs.activations()),
        bytes(needs.sampling()),
    ));
    console::say(&format!(
        "compute      {:.3} GFLOP per forward pass and sample; {} extra passes per training step",
        pipeline.backbone.flops() / 1e9,
        pipeline.objective.extra_passes(),
    ));
    let (evaluations, branches) = evaluations(pipeline);
    console::say(&format!(
        "NFE          at most {} per image: {evaluations} evaluations x {branches} branches",
        evaluations * branches,
    ));
    for warning in pipeline.objective.warnings() {
        console::say(&format!("warning: {warning}"));
    }
    let family = pipeline.backbone.process().family();
    if let Some(why) = pipeline.objective.extension(family) {
        console::say(&format!("extension    no paper defines this objective on a {} process: {why}", family.name()));
    }
}

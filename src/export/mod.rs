//! `export`: writes the network of a run for other programs, with a model card.
//! A layout can change here alone. What a network, a tokenizer or a conditioner contributes to it is in its plugin.

mod card;
mod folder;
mod layouts;
mod lora;

use crate::arguments::{ExportLayout, ExportOptions, ExportWeights};
use crate::{Outcome, console, outputs};
use card::Facts;
use folder::Folder;
use framework::burn::tensor::{Device, TensorData};
use framework::checkpoint::{self, Checkpoint};
use framework::error::{Error, Problem, Result};
use framework::network::backbone::BackboneConfig;
use framework::nn::parameters;
use framework::pipeline::Pipeline;
use layouts::Exported;
use run_folder::{document, weights};
use std::collections::BTreeMap;
use std::path::Path;

/// Exports the network of a run or a checkpoint.
pub fn export(options: &ExportOptions) -> Outcome {
    let folder = Folder::check(&options.folder, options.force)?;
    is_checkpoint(&options.from)?;
    let load = match options.weights {
        ExportWeights::Ema => Checkpoint::load_for_sampling,
        ExportWeights::Online => Checkpoint::load,
    };
    let (path, checkpoint) = weights::checkpoint_with(&options.from, load)?;
    let name = format!("{} (its document)", options.from.display());
    let pipeline = document::from_text(&checkpoint.document, &options.set, &name)?;
    let number = options.scale.map(|scale| folded_number(&pipeline, scale)).transpose()?;
    let (exported, pipeline) = match options.to {
        ExportLayout::Lora => {
            let adapters = lora::export(&pipeline, checkpoint.model, number);
            (adapters.map_err(|problem| missing(options, &pipeline, problem))?, pipeline)
        }
        _ => whole(options, pipeline, checkpoint.model, number)?,
    };
    outputs::room_or("FOLDER", &options.folder, exported.bytes(), "free some space, or choose another folder")?;
    let facts = Facts {
        name: options.folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        layout: options.to.name(),
        step: checkpoint.step,
        // A converted checkpoint, which has no steps, has no average either.
        averaged: options.weights == ExportWeights::Ema && pipeline.train.ema.is_some() && checkpoint.step > 0,
        scale: options.scale,
        dataset: checkpoint.dataset,
        report: card::report_of(&path),
    };
    let card = card::card(&facts, &pipeline, &exported);
    folder.write(options.to.name(), &mut |partial| {
        exported.write(partial)?;
        folder::text(partial, "README.md", &card)?;
        folder::text(partial, "document.json", &pipeline.document)
    })?;
    for note in &exported.notes {
        console::say(&format!("note: {note}"));
    }
    console::report(&options.folder.display().to_string());
    Ok(())
}

/// Exports the whole network, into which adapters and the guidance number are merged.
fn whole(
    options: &ExportOptions,
    mut pipeline: Pipeline,
    values: BTreeMap<String, TensorData>,
    number: Option<f64>,
) -> Result<(Exported, Pipeline)> {
    let mut values = parameters::export(&pipeline.restore(values, &Device::flex())?);
    let folded = number.map(|number| folded(&pipeline, &mut values, number)).transpose()?;
    let backbone = folded.as_deref().unwrap_or(&*pipeline.backbone);
    if options.to == ExportLayout::Diffusers {
        // Refuse before the other parts are loaded.
        backbone.diffusers(&BTreeMap::new()).map_err(|problem| missing(options, &pipeline, problem))?;
    }
    if matches!(options.to, ExportLayout::Diffusers | ExportLayout::Compvis) {
        pipeline.load(&Device::flex())?;
    }
    let backbone = folded.as_deref().unwrap_or(&*pipeline.backbone);
    let made = layouts::export(options.to, backbone, &pipeline, values);
    let exported = made?.map_err(|problem| missing(options, &pipeline, problem))?;
    Ok((exported, pipeline))
}

/// Checks that a file is a checkpoint of ours: a published file has no document.
fn is_checkpoint(path: &Path) -> Outcome {
    if !path.is_file() || checkpoint::metadata(path)?.is_some() {
        return Ok(());
    }
    let problem = Problem::new("FROM", format!("{} is not a checkpoint of a run, and has no document", path.display()));
    Err(problem
        .accepts("a run folder or one of its checkpoints")
        .fix("convert a published file with `unguided convert --pipeline DOCUMENT INPUT OUTPUT`")
        .into())
}

/// Returns the guidance number of a scale.
///
/// # Errors
/// If the run trains no guidance input, or not at this scale.
fn folded_number(pipeline: &Pipeline, scale: f64) -> Result<f64> {
    let objective = &pipeline.objective;
    let refuse = |what: String, accepts: String| Error::from(Problem::new("--scale", what).accepts(accepts));
    let number = objective.guidance_of_scale(scale).filter(|_| pipeline.backbone.accepts().guidance_input);
    let Some(number) = number.filter(|number| number.is_finite()) else {
        let what = "the network reads no guidance number, so no scale can be folded into it".to_string();
        return Err(refuse(what, "a run whose objective trains a guidance input, such as gft".to_string()));
    };
    match objective.trained_scales() {
        Some([least, most]) if !(least..=most).contains(&scale) => {
            let what = format!("the run does not train scale {scale}");
            let most = if most.is_finite() { format!("to {most}") } else { "or more".to_string() };
            Err(refuse(what, format!("{least} {most}")))
        }
        _ => Ok(number),
    }
}

/// Folds a guidance number into the weights, and returns the entry of the network without a guidance input.
fn folded(
    pipeline: &Pipeline,
    values: &mut BTreeMap<String, TensorData>,
    number: f64,
) -> Result<Box<dyn BackboneConfig>> {
    pipeline.backbone.fold_guidance(values, number).ok_or_else(|| {
        let what = "the guidance input of this network is more than a constant term, so no scale can be folded into it";
        Problem::new("--scale", what).fix("leave out --scale").into()
    })
}

/// Adds the layouts that exist to the problem of one that does not.
fn missing(options: &ExportOptions, pipeline: &Pipeline, problem: Problem) -> Error {
    let layouts = layouts::existing(pipeline);
    let at = format!("--to {}", options.to.name());
    let accepts = problem.accepts.as_deref().map_or(String::new(), |accepts| format!("{accepts}; or "));
    let mut problem = problem.accepts(format!("{accepts}--to {}", layouts.join(", ")));
    problem.at.insert(0, at);
    problem.into()
}

//! `adapt`: turns a published network into one that is guided in a single pass: writes the document, fine-tunes,
//! compares with guided sampling of the original, and exports in the original's format.

use crate::arguments::{ConvertOptions, DocumentOptions, TrainOptions};
use crate::commands::{init, network_file, train};
use crate::console::{self, Console};
use crate::init::options::{AdaptOptions, InitOptions};
use crate::{Outcome, device, outputs};
use framework::burn::tensor::Device;
use framework::error::{Problem, Result};
use framework::network::backbone::BoxBackbone;
use framework::nn::precision::MatmulPrecision;
use framework::pipeline::Pipeline;
use framework::pipeline::images::{Request, Sampled};
use run_folder::folder::RunFolder;
use run_folder::report::Comparison;
use run_folder::{document, labels, report, samples, weights};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Adapts a published network. The same command resumes after an interruption.
pub fn adapt(options: &AdaptOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    let export = options.export.clone().unwrap_or_else(|| PathBuf::from("adapted.safetensors"));
    outputs::file("--export", &export, None)?;
    let document = options.out.clone().unwrap_or_else(|| export.with_extension("json"));
    if document.exists() {
        console::say(&format!("using {}, which exists; --out chooses another document", document.display()));
    } else {
        init::write(&InitOptions {
            source: Some(options.checkpoint.clone()),
            list: false,
            data: Some(options.data.clone()),
            vae: options.vae.clone(),
            out: Some(document.clone()),
            objective: Some(options.objective.clone()),
            backbone: options.backbone.clone(),
            image_size: options.image_size,
            minutes: Some(options.minutes),
            set: options.set.clone(),
            yes: true,
            force: false,
        })?;
    }
    let run = RunFolder::default_path(&document);
    train::train(&TrainOptions {
        document: DocumentOptions { pipeline: document.clone(), set: Vec::new() },
        run: Some(run.clone()),
        resume_from: None,
        accept_data_change: false,
        device: options.device.clone(),
        step_timeout: None,
    })?;
    compare(&document, &run, &device)?;
    network_file::convert(&ConvertOptions {
        pipeline: document,
        tokenizer: false,
        conditioner: false,
        to: None,
        force: true,
        input: run,
        output: export,
    })
}

/// Prints the metrics of the adapted network next to guided sampling of the original.
fn compare(path: &Path, run: &Path, device: &Device) -> Outcome {
    let mut adapted = document::read(path, &[])?;
    let written: Value = serde_json::from_str(&adapted.document).unwrap_or_default();
    let scale = written.pointer("/guidance/scale").and_then(Value::as_f64).unwrap_or(2.0);
    let overrides = [
        "/objective={\"type\":\"cfg\"}".to_string(),
        "/backbone/guidance_input=null".to_string(),
        format!("/guidance={{\"type\":\"cfg\",\"scale\":{scale}}}"),
    ];
    let mut original = document::read(path, &overrides)?;
    let source = original.train.from.clone().ok_or_else(|| {
        Problem::new("/train/from", "the document starts from no checkpoint, so there is nothing to compare with")
            .in_file(&path.display().to_string())
    })?;
    let Ok((theirs, _)) = weights::weights(&*original.backbone, original.train.seed, &source, device) else {
        console::report("not compared with the original: it has other classes, or another size");
        return Ok(());
    };
    let (_, checkpoint) = weights::checkpoint(run)?;
    let ours = adapted.restore(checkpoint.model, device)?;
    adapted.load(device)?;
    original.load(device)?;
    let title = format!("at guidance scale {scale}");
    console::report(&format!("{title:<32} {:>12} {:>12}", "original", "adapted"));
    let rows = [measured(&original, &theirs, device)?, measured(&adapted, &ours, device)?];
    let row = |name: &str, values: [String; 2]| {
        console::report(&format!("{name:<32} {:>12} {:>12}", values[0], values[1]));
    };
    row("network evaluations per image", rows.each_ref().map(|(sampled, _)| sampled.nfe.to_string()));
    row("images per second", rows.each_ref().map(|(sampled, _)| format!("{:.1}", sampled.images_per_second())));
    for (i, measurement) in rows[0].1.measured.iter().enumerate() {
        row(&measurement.name, rows.each_ref().map(|(_, compared)| format!("{:.4}", compared.measured[i].value)));
    }
    Ok(())
}

/// Samples a network, and measures the document's metrics.
fn measured(pipeline: &Pipeline, network: &BoxBackbone, device: &Device) -> Result<(Sampled, Comparison)> {
    let dataset = pipeline.open_data()?;
    let info = framework::data::dataset::Dataset::info(&dataset);
    let count = pipeline.train.samples_to_measure(info.num_classes);
    let request = Request {
        labels: labels::measured(pipeline, &dataset, count)?,
        seed: pipeline.train.seed,
        batch_size: 100,
        sampler: &*pipeline.sampler,
        guidance: &*pipeline.guidance,
        matmul_precision: MatmulPrecision::Highest,
    };
    let sampled = samples::sample_request(pipeline, network, &request, device, &mut Console::new())?;
    let compared = report::compare(pipeline, &sampled.images, &dataset, device)?;
    Ok((sampled, compared))
}

//! Evaluation of images that exist: a folder of images, or encoded latents.

use crate::arguments::EvaluateOptions;
use crate::commands::evaluate::real::{Real, no_effect};
use crate::commands::evaluate::{real, results};
use crate::console::Console;
use crate::{Outcome, outputs};
use framework::burn::tensor::Device;
use framework::data::dataset::Dataset;
use framework::data::loader::spread;
use framework::error::{Error, Problem, Result};
use framework::pipeline::Pipeline;
use run_folder::document;
use run_folder::evaluation::evaluate::{self, Description, Times};
use run_folder::evaluation::inputs::{self, Against, Metrics};
use run_folder::evaluation::needs::{Given, unmet};
use run_folder::evaluation::source::{ImageSource, Items};
use run_folder::evaluation::store::{Folder, default_path};
use run_folder::watcher::Stage;
use serde_json::json;
use std::path::Path;

/// Evaluates a folder of images or, if `is_latent`, encoded latents.
pub fn evaluate(options: &EvaluateOptions, path: &Path, is_latent: bool, device: &Device) -> Outcome {
    if let Some(option) = options.sampling.only_for_networks() {
        return Err(no_effect(option, "no network samples these images"));
    }
    if !options.sweep.is_empty() {
        return Err(no_effect("--sweep", "no network samples these images"));
    }
    if options.keep_samples {
        return Err(no_effect("--keep-samples", "the images are already on disk"));
    }
    let Some(against_path) = &options.against else {
        return Err(Problem::new("--against", "--against is missing: images need real images to be compared with")
            .accepts("a document, a run folder, a folder of images, or saved statistics")
            .into());
    };
    let mut against = Against::of(against_path)?;
    let mut own: Option<Pipeline> = options.document.as_ref().map(|path| document::read(path, &[])).transpose()?;
    let mut metrics = match (own.as_mut(), &mut against) {
        _ if !options.metrics.is_empty() => {
            let entries = options.metrics.iter().map(|text| inputs::metric_entry(text)).collect::<Result<Vec<_>>>()?;
            Metrics::parse(&entries)?
        }
        (Some(pipeline), _) => Metrics::take(pipeline),
        (None, Against::Document(pipeline)) => Metrics::take(pipeline),
        _ => Metrics::parse(&[])?,
    };
    if metrics.is_empty() {
        return Err(Problem::new("--metric", "there is nothing to measure: no metric is given")
            .accepts("--metric NAME, or a document with metrics; `unguided list` prints the names")
            .into());
    }
    // The document describes the images: their shape, and how latents become images.
    let described = own.as_ref().or(match &against {
        Against::Document(pipeline) => Some(&**pipeline),
        _ => None,
    });
    let dataset = if is_latent {
        if options.image_size.is_some() {
            return Err(no_effect("--image-size", "latents decode to images of one size"));
        }
        inputs::dataset(json!({ "type": "latents", "path": path }), "")?
    } else {
        let known = described.map(Pipeline::image_shape);
        let channels = known.map_or(3, |[channels, ..]| channels);
        let asked = options.image_size.map(|size| [channels, size.get(), size.get()]);
        inputs::image_folder(path, asked.or(known), "")?
    };
    // Latents need a loaded tokenizer, which the reference may need, too: build a pipeline of their own.
    let mut decoder: Option<Pipeline> = match (&options.document, described) {
        (_, None) => None,
        _ if !is_latent => None,
        (Some(file), _) => Some(document::read(file, &[])?),
        (None, Some(pipeline)) => {
            Some(document::from_text(&pipeline.document, &[], &against_path.display().to_string())?)
        }
    };
    if let Some(pipeline) = &mut decoder {
        pipeline.load(device)?;
    }
    let count = options.samples.map_or(dataset.len(), |count| count.get());
    if count > dataset.len() {
        let what = format!("--samples {count}, but {} has {} images", path.display(), dataset.len());
        return Err(Problem::new("--samples", what).accepts(format!("at most {}", dataset.len())).into());
    }
    let indices = spread(dataset.len(), count);
    let mut items = Items::new(&dataset, indices, decoder.as_ref(), device, Stage::Measuring)?;
    let (info, shape) = (dataset.info(), items.shape());
    let real = Real::open(against, shape, device)?;
    let labels = (info.num_classes.is_some(), info.captions);
    let given = Given { image: shape, samples: (count, "--samples"), labels, real: real.count() };
    let problems = unmet(&metrics.named(), &given, "metric");
    if !problems.is_empty() {
        return Err(Error::Input(problems));
    }
    metrics.load(device)?;
    let named = metrics.named();
    real.check(&named)?;
    let mut from = inputs::identity(&dataset);
    if let Some(pipeline) = &decoder {
        from["tokenizer"] = real::tokenizer(pipeline);
    }
    let request = json!({
        "version": 1, "from": from, "against": real.identity()?, "metrics": metrics.entries, "samples": count,
    });
    let output = options.output.clone().unwrap_or_else(|| default_path(None, &request));
    options.save_statistics.iter().try_for_each(|folder| outputs::empty_folder("--save-statistics", folder))?;
    let folder = Folder::open(&output, &request)?;
    outputs::writable("--output", &folder.path)?;
    let done = evaluate::finished(&folder.path)?.filter(|_| options.save_statistics.is_none());
    let (evaluation, times) = match done {
        Some(done) => done,
        None => {
            let mut console = Console::new();
            let statistics = real.statistics(&named, &folder.path, device, &mut console)?;
            real::save(&statistics, options.save_statistics.as_ref())?;
            let description =
                Description { from: path.display().to_string(), against: against_path.display().to_string(), request };
            let evaluation = evaluate::measure(&description, &named, &statistics, &mut items, &mut console)?;
            evaluate::store(&folder.path, &evaluation, &Times::default(), false)?;
            (evaluation, Times::default())
        }
    };
    results::print(options, &evaluation, &times, &folder.path)
}

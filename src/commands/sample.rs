//! `sample`: samples images from a checkpoint, which includes its document.

use crate::arguments::SampleOptions;
use crate::console::{self, Console};
use crate::{Outcome, device, outputs};
use framework::burn::tensor::TensorData;
use framework::checkpoint::tensor_file;
use framework::data::checked::Checked;
use framework::data::dataset::Label;
use framework::error::{Error, Problem, Result};
use framework::pipeline::Pipeline;
use framework::pipeline::images::Request;
use run_folder::report::Comparison;
use run_folder::sampling::{self, OPTIONS, Settings};
use run_folder::{labels, picture, report, samples, weights};
use std::fs;

/// Returns the labels that the options request, `count` samples per row. If the captions come from the dataset, opens
/// it and stores it in `dataset`.
fn requested(pipeline: &Pipeline, options: &SampleOptions, dataset: &mut Option<Checked>) -> Result<Vec<Label>> {
    let rows = sampling::rows(pipeline, &options.classes, &options.captions, OPTIONS)?;
    let rows = if let Some(rows) = rows {
        rows
    } else {
        let opened = pipeline.open_data().map_err(|error| {
            Error::failed(Problem::new("", format!("{error}")).fix("name the captions to sample: --caption TEXT"))
        })?;
        let opened = &*dataset.insert(opened);
        let rows = labels::rows(pipeline, opened)?;
        if options.metrics {
            return labels::measured(pipeline, opened, rows.len() * options.count.get());
        }
        rows
    };
    Ok(labels::grid(&rows, options.count.get()))
}

/// Samples images from a run or a checkpoint.
pub fn sample(options: &SampleOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    outputs::file("--output", &options.output, Some("png"))?;
    options.tensors.iter().try_for_each(|path| outputs::file("--tensors", path, None))?;
    let (_, checkpoint) = weights::checkpoint(&options.from)?;
    let name = format!("{} (its document)", options.from.display());
    let settings =
        Settings { scale: options.scale, guidance: options.guidance, steps: options.steps, set: options.set.clone() };
    let overrides = settings.overrides(&checkpoint.document, &name, OPTIONS)?;
    let (pipeline, network) = sampling::load(&options.from, checkpoint, &overrides, &name, &device)?;
    allocator::keep_pages();
    let mut dataset: Option<Checked> = None;
    let labels = requested(&pipeline, options, &mut dataset)?;
    let shape = pipeline.image_shape();
    if let Some(path) = &options.tensors {
        outputs::room("--tensors", path, 4 * (labels.len() * shape.iter().product::<usize>()) as u64)?;
    }
    // Create the folder after all other checks, so that a refused command leaves no folder.
    options.images.iter().try_for_each(|folder| outputs::empty_folder("--images", folder))?;
    let request = Request {
        labels,
        seed: options.seed,
        batch_size: options.batch_size.get(),
        sampler: &*pipeline.sampler,
        guidance: &*pipeline.guidance,
        matmul_precision: options.matmul_precision,
    };
    let drawn = samples::sample_request(&pipeline, &network, &request, &device, &mut Console::new())?;
    picture::save(&picture::grid(&drawn.images, options.count.get()), &options.output)?;
    if let Some(folder) = &options.images {
        for i in 0..drawn.images.len() {
            let class = drawn.images.classes.get(i).map_or(String::new(), |class| format!("-class-{class}"));
            picture::save(&picture::image(drawn.images.row(i), shape), &folder.join(format!("{i:06}{class}.png")))?;
            if let Some(caption) = drawn.images.captions.get(i) {
                let path = folder.join(format!("{i:06}.txt"));
                fs::write(&path, caption).map_err(|e| Error::io(&path, e))?;
            }
        }
    }
    if let Some(path) = &options.tensors {
        let [c, h, w] = shape;
        let mut tensors =
            vec![("x".to_string(), TensorData::new(drawn.images.values.clone(), [drawn.images.len(), c, h, w]))];
        if !drawn.images.classes.is_empty() {
            let classes: Vec<i64> = drawn.images.classes.iter().map(|class| *class as i64).collect();
            tensors.push(("y".to_string(), TensorData::new(classes, [drawn.images.len()])));
        }
        tensor_file::save_tensors(&tensors, path)?;
    }
    let mut compared = Comparison::default();
    if options.metrics {
        let dataset = match dataset {
            Some(dataset) => dataset,
            None => pipeline.open_data()?,
        };
        compared = report::compare(&pipeline, &drawn.images, &dataset, &device)?;
    }
    for (row, captions) in drawn.images.captions.chunks(options.count.get()).enumerate() {
        if captions.iter().all(|caption| *caption == captions[0]) {
            console::report(&format!("row {:<4} {}", row + 1, captions[0]));
        }
    }
    console::report(&report::summary(&drawn, &compared));
    console::report(&options.output.display().to_string());
    Ok(())
}

//! `sample`: samples images from a checkpoint, which includes its document.

use crate::arguments::SampleOptions;
use crate::console::{self, Console};
use crate::generator::{self, Generator};
use crate::{Outcome, device, outputs};
use framework::burn::tensor::TensorData;
use framework::checkpoint::tensor_file;
use framework::data::checked::Checked;
use framework::data::dataset::Label;
use framework::error::{Error, Problem, Result};
use framework::evaluation::images::Images;
use framework::pipeline::Pipeline;
use run_folder::evaluation::measuring::Failure;
use run_folder::npz::Npz;
use run_folder::report::Comparison;
use run_folder::{labels, picture, report, samples};
use std::fs;
use std::path::Path;

/// Returns the labels that the options request, `count` samples per row. If the captions come from the dataset, opens
/// it and stores it in `dataset`.
fn requested(pipeline: &Pipeline, options: &SampleOptions, dataset: &mut Option<Checked>) -> Result<Vec<Label>> {
    let accepts = pipeline.backbone.accepts();
    let refuse = |what: &str, at: &str, accepts: &str| Error::from(Problem::new(at, what).accepts(accepts));
    let text = accepts.condition.is_text();
    if !options.captions.is_empty() && !text {
        let accepts = accepts
            .num_classes()
            .map_or("no condition option".to_string(), |n| format!("--classes with classes 0 to {}", n - 1));
        return Err(refuse("the network reads no captions", "--caption", &accepts));
    }
    if !options.classes.is_empty() && text {
        return Err(refuse("the network reads captions and has no classes", "--classes", "--caption TEXT"));
    }
    if let Some(class) = options.classes.iter().find(|class| accepts.num_classes().is_none_or(|n| **class >= n)) {
        let accepts = accepts
            .num_classes()
            .map_or("no classes: the network is unconditional".to_string(), |n| format!("classes 0 to {}", n - 1));
        return Err(refuse(&format!("the network has no class {class}"), "--classes", &accepts));
    }
    let rows = if !options.captions.is_empty() {
        options.captions.iter().cloned().map(Label::Caption).collect()
    } else if !options.classes.is_empty() {
        options.classes.iter().copied().map(Label::Class).collect()
    } else if text {
        let opened = pipeline.open_data().map_err(|error| {
            Error::failed(Problem::new("", format!("{error}")).fix("name the captions to sample: --caption TEXT"))
        })?;
        let opened = &*dataset.insert(opened);
        let rows = labels::rows(pipeline, opened)?;
        if options.metrics {
            return labels::measured(pipeline, opened, rows.len() * options.count.get());
        }
        rows
    } else {
        labels::classes(pipeline).unwrap_or(vec![Label::None])
    };
    Ok(labels::grid(&rows, options.count.get()))
}

/// Samples images from a run or a checkpoint.
pub fn sample(options: &SampleOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    outputs::file("--output", &options.output, Some("png"))?;
    options.tensors.iter().try_for_each(|path| outputs::file("--tensors", path, None))?;
    options.npz.iter().try_for_each(|path| outputs::file("--npz", path, Some("npz")))?;
    let mut generator = Generator::load(&options.from)?;
    let mut pipeline = generator.pipeline(&options.sampling, &[])?;
    generator.load_parts(&mut pipeline, &device)?;
    if options.metrics {
        pipeline.load_metrics(&device)?;
    }
    let network = generator.network(&pipeline, &device)?;
    let mut dataset: Option<Checked> = None;
    let labels = requested(&pipeline, options, &mut dataset)?;
    let shape = pipeline.image_shape();
    if let Some(path) = &options.tensors {
        outputs::room("--tensors", path, 4 * (labels.len() * shape.iter().product::<usize>()) as u64)?;
    }
    // Create the folder after all other checks, so that a refused command leaves no folder.
    options.images.iter().try_for_each(|folder| outputs::empty_folder("--images", folder))?;
    let mut npz = None;
    if let Some(path) = &options.npz {
        outputs::room("--npz", path, 3 * (labels.len() * shape[1] * shape[2]) as u64)?;
        npz = Some(Npz::create(path, labels.len(), shape)?);
    }
    let request = generator::request(&pipeline, &options.sampling, labels);
    // Without metrics and tensors, only the images of the picture stay in memory.
    let shown = picture::most_shown(shape, options.count.get());
    let kept = if options.metrics || options.tensors.is_some() { usize::MAX } else { shown };
    let mut images = Images::none(shape);
    let mut receive = |first: usize, batch: Images| -> Result<()> {
        npz.iter_mut().try_for_each(|npz| npz.append(&batch))?;
        options.images.iter().try_for_each(|folder| write_images(folder, first, &batch))?;
        let labels = &request.labels[first..first + batch.len()];
        let left = batch.len().min(kept - images.len());
        images.extend(batch.values[..left * batch.width()].iter().copied(), &labels[..left]);
        Ok(())
    };
    let mut console = Console::new();
    let (nfe, seconds) = samples::sample_batches(&pipeline, &network, &request, &device, &mut console, &mut receive)?;
    npz.into_iter().try_for_each(Npz::finish)?;
    let (count, grid) = (request.labels.len(), images.batches(shown).next());
    picture::save(&picture::grid(grid.as_ref().unwrap_or(&images), options.count.get()), &options.output)?;
    if let Some(path) = &options.tensors {
        let [c, h, w] = shape;
        let mut tensors = vec![("x".to_string(), TensorData::new(images.values.clone(), [images.len(), c, h, w]))];
        if !images.classes.is_empty() {
            let classes: Vec<i64> = images.classes.iter().map(|class| *class as i64).collect();
            tensors.push(("y".to_string(), TensorData::new(classes, [images.len()])));
        }
        tensor_file::save_tensors(&tensors, path)?;
    }
    let mut compared = Comparison::default();
    if options.metrics {
        let dataset = match dataset {
            Some(dataset) => dataset,
            None => pipeline.open_data()?,
        };
        compared = report::compare(&pipeline, &images, &dataset, &device)?;
    }
    for (row, labels) in request.labels.chunks(options.count.get()).enumerate() {
        if let Label::Caption(caption) = &labels[0]
            && labels.iter().all(|label| *label == labels[0])
        {
            console::report(&format!("row {:<4} {caption}", row + 1));
        }
    }
    console::report(&report::summary_of(count, nfe, count as f64 / seconds, &compared));
    if count > shown {
        console::report(&format!("the picture shows the first {shown} of {count} images"));
    }
    console::report(&options.output.display().to_string());
    match &compared.failed[..] {
        [] => Ok(()),
        [Failure { name, .. }, ..] => Err(Error::Run(format!("{name} failed; the samples are written"))),
    }
}

/// Writes each image of a batch as PNG, and its caption as text. `first` is the index of the first image.
fn write_images(folder: &Path, first: usize, images: &Images) -> Result<()> {
    for row in 0..images.len() {
        let i = first + row;
        let class = images.classes.get(row).map_or(String::new(), |class| format!("-class-{class}"));
        let picture = picture::image(images.row(row), images.shape);
        picture::save(&picture, &folder.join(format!("{i:06}{class}.png")))?;
        if let Some(caption) = images.captions.get(row) {
            let path = folder.join(format!("{i:06}.txt"));
            fs::write(&path, caption).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

//! `sample`: samples images from a checkpoint, which includes its document, or samples a picture again.

use crate::arguments::SampleOptions;
use crate::console::{self, Console};
use crate::generator::{self, Generator};
use crate::{Outcome, device, outputs};
use framework::burn::tensor::TensorData;
use framework::checkpoint::tensor_file;
use framework::data::checked::Checked;
use framework::data::dataset::Label;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problem, Result};
use framework::evaluation::images::Images;
use framework::pipeline::Pipeline;
use framework::pipeline::images::Request;
use registry::nearest;
use run_folder::evaluation::measuring::Failure;
use run_folder::npz::Npz;
use run_folder::report::Comparison;
use run_folder::sample_record::{SampleRecord, Shown, described, recorded};
use run_folder::sampling::{self, OPTIONS};
use run_folder::{labels, picture, report, samples};
use std::fs;
use std::path::Path;

/// Returns the indices of the requested classes. A class is requested by its name or by its
/// number; if the names are numbers, such as folders 1 to 10, the name is meant.
fn classes(options: &SampleOptions, count: Option<usize>, names: Option<&[String]>) -> Result<Vec<usize>> {
    let accepts = match (count, names) {
        (None, _) => "no classes: the network is unconditional".to_string(),
        (Some(n), Some(names)) if names.len() <= 30 => format!("classes 0 to {}, or {}", n - 1, names.join(", ")),
        (Some(n), _) => format!("classes 0 to {}", n - 1),
    };
    let class = |asked: &String| {
        let by_name = || names.and_then(|names| names.iter().position(|name| name == asked));
        let class = by_name().or_else(|| asked.parse().ok()).filter(|class| count.is_some_and(|n| *class < n));
        class.ok_or_else(|| {
            let near = nearest(asked, names.into_iter().flatten().map(String::as_str));
            let problem = Problem::new("--classes", format!("the network has no class {asked}"));
            Error::from(problem.accepts(accepts.as_str()).nearest(near))
        })
    };
    options.classes.iter().map(class).collect()
}

/// Returns the labels that the options request, `count` samples per row. If the captions come from the dataset, opens
/// it and stores it in `dataset`.
fn requested(
    pipeline: &Pipeline,
    options: &SampleOptions,
    names: Option<&[String]>,
    dataset: &mut Option<Checked>,
) -> Result<Vec<Label>> {
    let accepts = pipeline.backbone.accepts();
    // Classes of a network that reads captions are refused below, whatever their names are.
    let classes = match accepts.condition.is_text() {
        true => vec![0; options.classes.len()],
        false => classes(options, accepts.num_classes(), names)?,
    };
    let rows = if let Some(rows) = sampling::rows(pipeline, &classes, &options.captions, OPTIONS)? {
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

/// Samples images from a run or a checkpoint, or samples a picture again.
pub fn sample(options: &SampleOptions) -> Outcome {
    outputs::file("--output", &options.output, Some("png"))?;
    options.tensors.iter().try_for_each(|path| outputs::file("--tensors", path, None))?;
    options.npz.iter().try_for_each(|path| outputs::file("--npz", path, Some("npz")))?;
    match &options.from {
        Some(picture) => again(options, picture),
        None => anew(options),
    }
}

/// Samples images from a run or a checkpoint.
fn anew(options: &SampleOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    let from = options.run.as_deref().expect("the arguments require a run or a picture");
    let mut generator = Generator::load(from)?;
    let overrides = generator.overrides(&options.sampling)?;
    let mut pipeline = generator.pipeline(&overrides)?;
    generator.load_parts(&mut pipeline, &device)?;
    if options.metrics {
        pipeline.load_metrics(&device)?;
    }
    let network = generator.network(&pipeline, &device)?;
    let names = generator.class_names.as_deref();
    let mut dataset: Option<Checked> = None;
    let labels = requested(&pipeline, options, names, &mut dataset)?;
    let shape = pipeline.image_shape();
    room(options, labels.len(), shape)?;
    // Create the folder after all other checks, so that a refused command leaves no folder.
    options.images.iter().try_for_each(|folder| outputs::empty_folder("--images", folder))?;
    let mut npz = options.npz.iter().map(|path| Npz::create(path, labels.len(), shape)).next().transpose()?;
    let columns = options.count.get();
    let record = SampleRecord {
        version: env!("CARGO_PKG_VERSION").to_string(),
        checkpoint: std::path::absolute(&generator.file).unwrap_or(generator.file.clone()).display().to_string(),
        sha256: generator.sha256.clone(),
        set: overrides,
        labels: recorded(&labels),
        first: 0,
        seed: options.sampling.seed,
        batch_size: options.sampling.batch_size.get(),
        matmul_precision: options.sampling.matmul_precision,
        device: options.device.clone().unwrap_or_default(),
        shown: Shown::Grid(columns),
    };
    let request = generator::request(&pipeline, &options.sampling, labels);
    // Without metrics and tensors, only the images of the picture stay in memory.
    let shown = picture::most_shown(shape, columns);
    let kept = if options.metrics || options.tensors.is_some() { usize::MAX } else { shown };
    let mut images = Images::none(shape);
    let mut receive = |first: usize, batch: Images| -> Result<()> {
        npz.iter_mut().try_for_each(|npz| npz.append(&batch))?;
        let labels = &request.labels[first..first + batch.len()];
        if let Some(folder) = &options.images {
            // An image is sampled again together with its batch.
            let record = SampleRecord { labels: recorded(labels), first, ..record.clone() };
            let texts = |index| SampleRecord { shown: Shown::Image(index), ..record.clone() };
            write_images(folder, first, &batch, &|index| texts(index).texts(&pipeline, generator.step))?;
        }
        let left = batch.len().min(kept - images.len());
        images.extend(batch.values[..left * batch.width()].iter().copied(), &labels[..left]);
        Ok(())
    };
    let mut console = Console::new();
    let (nfe, seconds) = samples::sample_batches(&pipeline, &network, &request, &device, &mut console, &mut receive)?;
    npz.into_iter().try_for_each(Npz::finish)?;
    let (count, grid) = (request.labels.len(), images.batches(shown).next());
    // A picture of a part could not be sampled again without the rest.
    let texts = match count > shown {
        true => described(&pipeline, record.seed, generator.step),
        false => record.texts(&pipeline, generator.step),
    };
    let grid = picture::grid(grid.as_ref().unwrap_or(&images), columns, names);
    picture::save_with(&grid, &options.output, &texts)?;
    options.tensors.iter().try_for_each(|path| save_tensors(&images, path))?;
    let mut compared = Comparison::default();
    if options.metrics {
        let dataset = match dataset {
            Some(dataset) => dataset,
            None => pipeline.open_data()?,
        };
        compared = report::compare(&pipeline, &images, &dataset, &device)?;
    }
    for (row, labels) in request.labels.chunks(columns).enumerate() {
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

/// Samples the picture at `path` again, and compares every pixel with it.
fn again(options: &SampleOptions, path: &Path) -> Outcome {
    let (original, texts) = picture::read_with(path).map_err(|error| match error {
        Error::Io { .. } | Error::File { .. } => Problem::new("--from", error.to_string()).into(),
        other => other,
    })?;
    let (record, labels) = SampleRecord::of(path, &texts)?;
    let recorded = Some(record.device.as_str()).filter(|device| !device.is_empty());
    let device = device::named(options.device.as_deref().or(recorded))?;
    let mut generator = Generator::load(&record.find(options.run.as_deref())?)?;
    let mut pipeline = generator.pipeline(&record.set)?;
    generator.load_parts(&mut pipeline, &device)?;
    let network = generator.network(&pipeline, &device)?;
    room(options, labels.len(), pipeline.image_shape())?;
    let request = Request {
        labels,
        seed: record.seed,
        batch_size: record.batch_size,
        sampler: &*pipeline.sampler,
        guidance: &*pipeline.guidance,
        matmul_precision: record.matmul_precision,
    };
    let watcher = &mut Console::new();
    let drawn = samples::sample_request_from(&pipeline, &network, &request, record.first, &device, watcher)?;
    let shown = match record.shown {
        Shown::Grid(columns) => picture::grid(&drawn.images, columns, generator.class_names.as_deref()),
        Shown::Image(index) => picture::image(drawn.images.row(index), drawn.images.shape),
    };
    if shown != original {
        let what = format!("the samples differ from {}", path.display());
        let (version, here) = (&record.version, env!("CARGO_PKG_VERSION"));
        return Err(Error::failed(Problem::new("", what).fix(format!(
            "use the device and the version that wrote it (Unguided {version}; this is {here}), an unedited picture, \
             and the same tokenizer and conditioner files"
        ))));
    }
    picture::save_with(&shown, &options.output, &record.texts(&pipeline, generator.step))?;
    options.tensors.iter().try_for_each(|path| save_tensors(&drawn.images, path))?;
    if let Some(path) = &options.npz {
        let mut npz = Npz::create(path, drawn.images.len(), drawn.images.shape)?;
        npz.append(&drawn.images)?;
        npz.finish()?;
    }
    console::report(&report::summary(&drawn, &Comparison::default()));
    console::report(&format!("{}: equal to {} in every pixel", options.output.display(), path.display()));
    Ok(())
}

/// Checks that the disk has room for the files of `count` images.
fn room(options: &SampleOptions, count: usize, shape: ImageShape) -> Outcome {
    let values = count * shape.iter().product::<usize>();
    options.tensors.iter().try_for_each(|path| outputs::room("--tensors", path, 4 * values as u64))?;
    let pixels = count * shape[1] * shape[2];
    options.npz.iter().try_for_each(|path| outputs::room("--npz", path, 3 * pixels as u64))
}

/// Writes each image of a batch as PNG with its texts, and its caption as text. `first` is the index of the first image.
fn write_images(
    folder: &Path,
    first: usize,
    images: &Images,
    texts: &dyn Fn(usize) -> Vec<(&'static str, String)>,
) -> Result<()> {
    for row in 0..images.len() {
        let i = first + row;
        let class = images.classes.get(row).map_or(String::new(), |class| format!("-class-{class}"));
        let picture = picture::image(images.row(row), images.shape);
        picture::save_with(&picture, &folder.join(format!("{i:06}{class}.png")), &texts(row))?;
        if let Some(caption) = images.captions.get(row) {
            let path = folder.join(format!("{i:06}.txt"));
            fs::write(&path, caption).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

/// Writes images (x) and their classes (y) to a safetensors file.
fn save_tensors(images: &Images, path: &Path) -> Outcome {
    let [c, h, w] = images.shape;
    let mut tensors = vec![("x".to_string(), TensorData::new(images.values.clone(), [images.len(), c, h, w]))];
    if !images.classes.is_empty() {
        let classes: Vec<i64> = images.classes.iter().map(|class| *class as i64).collect();
        tensors.push(("y".to_string(), TensorData::new(classes, [images.len()])));
    }
    tensor_file::save_tensors(&tensors, path)
}

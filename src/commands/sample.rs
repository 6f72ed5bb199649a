//! `sample`: samples images from a checkpoint, which includes its document.

use crate::arguments::SampleOptions;
use crate::console::{self, Console};
use crate::{Outcome, device, memory, outputs};
use framework::burn::tensor::{Device, TensorData};
use framework::checkpoint::{self, Checkpoint, tensor_file};
use framework::data::checked::Checked;
use framework::data::dataset::Label;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problem, Result};
use framework::evaluation::images::Images;
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use framework::pipeline::images::Request;
use registry::nearest;
use run_folder::report::Comparison;
use run_folder::sample_record::{SampleRecord, Shown, recorded};
use run_folder::{document, frozen, labels, picture, report, samples, start, weights};
use std::fs;
use std::path::Path;

/// Returns the indices of the requested classes. A class is requested by its number or by its name.
fn classes(options: &SampleOptions, count: Option<usize>, names: Option<&[String]>) -> Result<Vec<usize>> {
    let accepts = match (count, names) {
        (None, _) => "no classes: the network is unconditional".to_string(),
        (Some(n), Some(names)) if names.len() <= 30 => format!("classes 0 to {}, or {}", n - 1, names.join(", ")),
        (Some(n), _) => format!("classes 0 to {}", n - 1),
    };
    let class = |asked: &String| {
        let by_name = || names.and_then(|names| names.iter().position(|name| name == asked));
        let class = asked.parse().ok().or_else(by_name).filter(|class| count.is_some_and(|n| *class < n));
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
    let classes = classes(options, accepts.num_classes(), names)?;
    let rows = if !options.captions.is_empty() {
        options.captions.iter().cloned().map(Label::Caption).collect()
    } else if !classes.is_empty() {
        classes.into_iter().map(Label::Class).collect()
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

/// A network that is ready to sample.
struct Ready {
    pipeline: Pipeline,
    network: BoxBackbone,
    /// Names of the classes, if they have names.
    class_names: Option<Vec<String>>,
    /// Completed training steps.
    step: usize,
}

/// Builds the network of a checkpoint, which was found at `from`, with overrides of its document.
fn ready(from: &Path, checkpoint: Checkpoint, overrides: &[String], device: &Device) -> Result<Ready> {
    let name = format!("{} (its document)", from.display());
    let mut pipeline = document::from_text(&checkpoint.document, overrides, &name)?;
    memory::to_sample(&pipeline, device)?;
    pipeline.load(device)?;
    frozen::load_weak(&mut pipeline, device)?;
    start::restore_tokenizer(&mut pipeline, from, device)?;
    let network = pipeline.restore(checkpoint.model, device)?;
    allocator::keep_pages();
    let class_names = checkpoint.dataset.and_then(|facts| facts.class_names);
    Ok(Ready { pipeline, network, class_names, step: checkpoint.step })
}

/// Samples images from a run or a checkpoint, or samples a picture again.
pub fn sample(options: &SampleOptions) -> Outcome {
    outputs::file("--output", &options.output, Some("png"))?;
    options.tensors.iter().try_for_each(|path| outputs::file("--tensors", path, None))?;
    match &options.from {
        Some(picture) => again(options, picture),
        None => anew(options),
    }
}

/// Samples images from a run or a checkpoint.
fn anew(options: &SampleOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    let from = options.run.as_deref().expect("the arguments require a run or a picture");
    let (file, checkpoint) = weights::checkpoint(from)?;
    let sha256 = checkpoint::metadata(&file)?.and_then(|mut metadata| metadata.remove("sha256")).unwrap_or_default();
    let mut overrides = options.set.clone();
    overrides.extend(options.scale.map(|scale| format!("/guidance/scale={scale}")));
    overrides.extend(options.steps.map(|steps| format!("/sampler/steps={steps}")));
    if let Some(number) = options.guidance {
        let name = format!("{} (its document)", from.display());
        let objective = document::from_text(&checkpoint.document, &[], &name)?.objective;
        let scale =
            objective.scale_of_guidance(number).filter(|scale| scale.is_finite() && *scale > 0.0).ok_or_else(|| {
                Error::from(
                    Problem::new(
                        "--guidance",
                        format!("--guidance {number} has no meaning for a network trained with this objective"),
                    )
                    .accepts("an objective with a guidance input (such as gft), and a number whose scale is above 0")
                    .fix("use --scale"),
                )
            })?;
        overrides.push(format!("/guidance/scale={scale}"));
    }
    let Ready { pipeline, network, class_names, step } = ready(from, checkpoint, &overrides, &device)?;
    let mut dataset: Option<Checked> = None;
    let labels = requested(&pipeline, options, class_names.as_deref(), &mut dataset)?;
    let shape = pipeline.image_shape();
    room(options, labels.len(), shape)?;
    // Create the folder after all other checks, so that a refused command leaves no folder.
    options.images.iter().try_for_each(|folder| outputs::empty_folder("--images", folder))?;
    let (columns, batch_size) = (options.count.get(), options.batch_size.get());
    let record = SampleRecord {
        version: env!("CARGO_PKG_VERSION").to_string(),
        checkpoint: std::path::absolute(&file).unwrap_or(file).display().to_string(),
        sha256,
        set: overrides,
        labels: recorded(&labels),
        first: 0,
        seed: options.seed,
        batch_size,
        matmul_precision: options.matmul_precision,
        device: options.device.clone().unwrap_or_default(),
        shown: Shown::Grid(columns),
    };
    let request = Request {
        labels,
        seed: options.seed,
        batch_size,
        sampler: &*pipeline.sampler,
        guidance: &*pipeline.guidance,
        matmul_precision: options.matmul_precision,
    };
    let drawn = samples::sample_request(&pipeline, &network, &request, &device, &mut Console::new())?;
    let grid = picture::grid(&drawn.images, columns, class_names.as_deref());
    picture::save_with(&grid, &options.output, &record.texts(&pipeline, step))?;
    if let Some(folder) = &options.images {
        for (batch, labels) in request.labels.chunks(batch_size).enumerate() {
            // An image is sampled again together with its batch.
            let batch_record = SampleRecord { labels: recorded(labels), first: batch * batch_size, ..record.clone() };
            for index in 0..labels.len() {
                let i = batch_record.first + index;
                let class = drawn.images.classes.get(i).map_or(String::new(), |class| format!("-class-{class}"));
                let record = SampleRecord { shown: Shown::Image(index), ..batch_record.clone() };
                let path = folder.join(format!("{i:06}{class}.png"));
                let image = picture::image(drawn.images.row(i), shape);
                picture::save_with(&image, &path, &record.texts(&pipeline, step))?;
                if let Some(caption) = drawn.images.captions.get(i) {
                    let path = folder.join(format!("{i:06}.txt"));
                    fs::write(&path, caption).map_err(|e| Error::io(&path, e))?;
                }
            }
        }
    }
    options.tensors.iter().try_for_each(|path| save_tensors(&drawn.images, path))?;
    let mut compared = Comparison::default();
    if options.metrics {
        let dataset = match dataset {
            Some(dataset) => dataset,
            None => pipeline.open_data()?,
        };
        compared = report::compare(&pipeline, &drawn.images, &dataset, &device)?;
    }
    for (row, captions) in drawn.images.captions.chunks(columns).enumerate() {
        if captions.iter().all(|caption| *caption == captions[0]) {
            console::report(&format!("row {:<4} {}", row + 1, captions[0]));
        }
    }
    console::report(&report::summary(&drawn, &compared));
    console::report(&options.output.display().to_string());
    Ok(())
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
    let file = record.find(options.run.as_deref())?;
    let checkpoint = Checkpoint::load_for_sampling(&file)?;
    let Ready { pipeline, network, class_names, step } = ready(&file, checkpoint, &record.set, &device)?;
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
        Shown::Grid(columns) => picture::grid(&drawn.images, columns, class_names.as_deref()),
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
    picture::save_with(&shown, &options.output, &record.texts(&pipeline, step))?;
    options.tensors.iter().try_for_each(|path| save_tensors(&drawn.images, path))?;
    console::report(&report::summary(&drawn, &Comparison::default()));
    console::report(&format!("{}: equal to {} in every pixel", options.output.display(), path.display()));
    Ok(())
}

/// Checks that the disk has room for the tensors of `count` images.
fn room(options: &SampleOptions, count: usize, shape: ImageShape) -> Outcome {
    let bytes = 4 * (count * shape.iter().product::<usize>()) as u64;
    options.tensors.iter().try_for_each(|path| outputs::room("--tensors", path, bytes))
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

//! Evaluation of the samples of a network, at one setting or at each point of a sweep.

use crate::arguments::EvaluateOptions;
use crate::commands::evaluate::real::{Real, no_effect};
use crate::commands::evaluate::{real, results};
use crate::console::{self, Console};
use crate::generator::{self, Generator};
use crate::{Outcome, outputs};
use framework::burn::tensor::Device;
use framework::checkpoint;
use framework::data::dataset::Label;
use framework::error::{Error, Problem, Result};
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use run_folder::evaluation::evaluate::{self, Description, Evaluation, RealStatistics, Times};
use run_folder::evaluation::inputs::{self, Against, Metrics};
use run_folder::evaluation::measuring::Named;
use run_folder::evaluation::needs::{Given, unmet};
use run_folder::evaluation::source::{Samples, labelled, samples_folder};
use run_folder::evaluation::store::{Folder, default_path, sha256};
use run_folder::evaluation::sweep::{self, Axis, Measured, Point};
use run_folder::labels;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Evaluates the network of a run folder or of a checkpoint.
pub fn evaluate(options: &EvaluateOptions, path: &Path, device: &Device) -> Outcome {
    let why = "the network's own document describes its images";
    for (given, option) in [(options.document.is_some(), "--document"), (options.image_size.is_some(), "--image-size")]
    {
        if given {
            return Err(no_effect(option, why));
        }
    }
    let axes = options.sweep.iter().map(|text| Axis::parse(text)).collect::<Result<Vec<_>>>()?;
    let points = sweep::grid(&axes)?;
    let mut generator = Generator::load(path)?;
    let mut pipelines = checked(options, &generator, &points)?;
    let mut metrics = Metrics::take(&mut pipelines[0]);
    if metrics.is_empty() {
        return Err(Problem::new("--metric", "there is nothing to measure: the document has no metrics")
            .accepts("--metric NAME; `unguided list` prints the names")
            .into());
    }
    generator.load_parts(&mut pipelines[0], device)?;
    let (first, shape) = (&pipelines[0], pipelines[0].image_shape());
    let count = match options.samples {
        Some(count) => count.get(),
        None => first.train.samples_to_measure(first.backbone.accepts().num_classes()),
    };
    let labels = labels::measured_with(first, count, &|| labels::measured(first, &first.open_data()?, count))?;
    let real = match &options.against {
        Some(path) => Real::open(Against::of(path)?, shape, device)?,
        None => Real::open(
            Against::Document(Box::new(generator.pipeline(&generator.overrides(&options.sampling)?)?)),
            shape,
            device,
        )?,
    };
    let given = Given { image: shape, samples: (count, "--samples"), labels: labelled(&labels), real: real.count() };
    let problems = unmet(&metrics.named(), &given, "/metrics");
    if !problems.is_empty() {
        return Err(Error::Input(problems));
    }
    metrics.load(device)?;
    let named = metrics.named();
    real.check(&named)?;

    let checkpoint = checkpoint::metadata(&generator.file)?.and_then(|metadata| metadata.get("sha256").cloned());
    let identity = real.identity()?;
    let request = |pipeline: &Pipeline| {
        json!({
            "version": 1,
            "checkpoint": checkpoint,
            "against": identity,
            "metrics": metrics.entries,
            "samples": count,
            "conditions": sha256(format!("{labels:?}").as_bytes()),
            "seed": options.sampling.seed,
            "batch_size": options.sampling.batch_size,
            "matmul_precision": options.sampling.matmul_precision,
            "document": results::sampled_by(&pipeline.document),
        })
    };
    let mut whole = request(first);
    if !axes.is_empty() {
        whole["sweep"] = json!(points.iter().map(sweep::label).collect::<Vec<_>>());
    }
    let run = path.is_dir().then_some(path);
    let output = options.output.clone().unwrap_or_else(|| default_path(run, &whole));
    options.save_statistics.iter().try_for_each(|folder| outputs::empty_folder("--save-statistics", folder))?;
    let requests: Vec<Value> = pipelines.iter().map(request).collect();
    let folder = Folder::open(&output, &whole)?;
    outputs::writable("--output", &folder.path)?;
    let network = generator.network(&pipelines[0], device)?;
    let against = options.against.as_ref().map_or("its dataset".to_string(), |path| path.display().to_string());
    let mut run = Run {
        options,
        generator,
        network,
        named,
        labels,
        real,
        statistics: None,
        folder: folder.path.clone(),
        device: device.clone(),
        console: Console::new(),
    };
    let mut done: Vec<Measured> = Vec::new();
    let mut evaluations = Vec::new();
    for (i, ((mut pipeline, point), request)) in pipelines.into_iter().zip(&points).zip(requests).enumerate() {
        let name = if axes.is_empty() { String::new() } else { format!("points/{i:04}") };
        let description = Description { from: path.display().to_string(), against: against.clone(), request };
        let (evaluation, times) = run.point(&mut pipeline, i == 0, &name, description)?;
        if axes.is_empty() {
            return results::print(options, &evaluation, &times, &folder.path);
        }
        let measured = Measured::new(point, &name, &evaluation, &times);
        results::print_point(options, point, &measured)?;
        done.push(measured);
        evaluations.push(evaluation);
        sweep::write(&folder.path, &whole, &done)?;
    }
    if evaluations.iter().all(|evaluation| evaluation.failed.is_empty()) {
        run_folder::evaluation::store::remove(&folder.path.join(evaluate::REFERENCE))?;
    }
    if !options.json {
        console::report(&folder.path.join("sweep.json").display().to_string());
    }
    results::failures(&evaluations)
}

/// Returns the checked pipeline of each point, before the first is measured.
fn checked(options: &EvaluateOptions, generator: &Generator, points: &[Point]) -> Result<Vec<Pipeline>> {
    let mut measured = generator.overrides(&options.sampling)?;
    if !options.metrics.is_empty() {
        let entries = options.metrics.iter().map(|text| inputs::metric_entry(text)).collect::<Result<Vec<_>>>()?;
        measured.push(format!("/metrics={}", Value::from(entries)));
    }
    measured.extend(options.samples.map(|count| format!("/train/metric_samples={count}")));
    let pipeline = |point: &Point| {
        let overrides = [&measured[..], &sweep::overrides(point)].concat();
        generator.pipeline(&overrides).map_err(|error| match error {
            Error::Input(problems) => Error::Input(problems.into_iter().map(|found| asked(found, point)).collect()),
            other => other,
        })
    };
    points.iter().map(pipeline).collect()
}

/// Rewrites a problem of a document in terms of the command's options.
fn asked(mut problem: Problem, point: &Point) -> Problem {
    if !point.is_empty() {
        problem.what = format!("at {}: {}", sweep::label(point), problem.what);
    }
    problem.fix = problem.fix.map(|fix| fix.replace("set /train/metric_samples to", "use --samples"));
    problem
}

/// The parts that all points of a sweep share.
struct Run<'a> {
    options: &'a EvaluateOptions,
    generator: Generator,
    network: BoxBackbone,
    named: Vec<Named<'a>>,
    labels: Vec<Label>,
    real: Real,
    /// Computed at the first point that is not complete.
    statistics: Option<RealStatistics>,
    folder: PathBuf,
    device: Device,
    console: Console,
}

impl Run<'_> {
    /// Evaluates one setting, or returns its stored results. `name` is its folder within the folder of the sweep.
    fn point(
        &mut self,
        pipeline: &mut Pipeline,
        is_loaded: bool,
        name: &str,
        description: Description,
    ) -> Result<(Evaluation, Times)> {
        let folder = self.folder.join(name);
        // Saving the statistics needs them, also if the results are known.
        let must_save = self.options.save_statistics.is_some() && self.statistics.is_none();
        let known = evaluate::finished(&folder)?;
        if let Some(known) = known.clone().filter(|_| !must_save) {
            return Ok(known);
        }
        let statistics = match &self.statistics {
            Some(statistics) => statistics,
            None => {
                let found = self.real.statistics(&self.named, &self.folder, &self.device, &mut self.console)?;
                real::save(&found, self.options.save_statistics.as_ref())?;
                &*self.statistics.insert(found)
            }
        };
        if let Some(known) = known {
            return Ok(known);
        }
        if !is_loaded {
            self.generator.load_parts(pipeline, &self.device)?;
        }
        let request = generator::request(pipeline, &self.options.sampling, self.labels.clone());
        let mut samples = Samples::new(pipeline, &self.network, request, samples_folder(&folder)?, &self.device);
        let mut evaluation = evaluate::measure(&description, &self.named, statistics, &mut samples, &mut self.console)?;
        evaluation.nfe = Some(samples.nfe);
        let times = Times::new(samples.seconds, self.labels.len());
        evaluate::store(&folder, &evaluation, &times, self.options.keep_samples)?;
        Ok((evaluation, times))
    }
}

//! `train`: a run from its document to pictures and a report.

use crate::arguments::TrainOptions;
use crate::report::{Comparison, SKIPPED};
use crate::run::{self, Run};
use crate::{Failure, Outcome, document, labels, report, start};
use framework::backbone::BoxBackbone;
use framework::burn::tensor::Device;
use framework::checkpoint::{Checkpoint, write_atomically};
use framework::dataset::{Dataset, Label};
use framework::error::{Error, Result};
use framework::picture;
use framework::pipeline::Pipeline;
use framework::precision::MatmulPrecision;
use framework::sampling::{Drawn, Request, draw};
use framework::trainer::{End, Events, StepReport, Trainer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Trains a document, or goes on with its run.
pub fn train(options: &TrainOptions) -> Outcome {
    let device = document::device(options.device.as_deref())?;
    let mut pipeline = document::read(&options.document.pipeline, &options.document.set)?;
    let folder = options.run.clone().unwrap_or_else(|| Run::default_folder(&options.document.pipeline));
    let run = Run::open(&folder, &pipeline.document)?;
    let _lock = run.lock()?;
    let offer = |path: &Path| {
        format!(
            "unguided train {} --run {} --resume-from {}",
            options.document.pipeline.display(),
            folder.display(),
            path.display()
        )
    };
    let from = match &options.resume_from {
        Some(path) => Some((path.clone(), Checkpoint::load(path)?)),
        None => run::newest(&run.checkpoints(), Checkpoint::load, &offer)?,
    };
    if let Some((path, checkpoint)) = &from {
        if checkpoint.document != pipeline.document {
            return Err(Failure::Input(format!(
                "error: {} belongs to another document\n  fix      choose a checkpoint of this run",
                path.display()
            )));
        }
        eprintln!("going on from {} (step {})", path.display(), checkpoint.step);
    }
    if let (Some(path), Some((_, checkpoint))) = (&options.resume_from, &from)
        && let Some(aside) = run.make_newest(path, checkpoint.step)?
    {
        eprintln!("later checkpoints are set aside in {}", aside.display());
    }
    pipeline.load(&device)?;
    let dataset: Arc<dyn Dataset> = Arc::new(pipeline.open_data()?);
    for warning in dataset.warnings() {
        eprintln!("warning: {warning}");
    }
    start::learn_tokenizer(&mut pipeline, &run, &*dataset, &device)?;
    let pipeline = Arc::new(pipeline);
    let start = start::start(&pipeline, &run, &device, from.map(|(_, checkpoint)| checkpoint))?;
    allocator::keep_pages();
    let mut trainer = Trainer::new(pipeline.clone(), &run.checkpoints(), &device, start)?;
    let stop = stop_on_ctrl_c();
    let mut events = Console::new(&run, pipeline.clone(), dataset.clone(), &device, trainer.step())?;
    let end = trainer.run(dataset.clone(), &stop, &mut events)?;
    events.bar.finish_and_clear();
    if let End::Interrupted(step) = end {
        let but = if options.resume_from.is_some() { " without --resume-from" } else { "" };
        eprintln!("stopped at step {step}; the same command{but} goes on from there");
        return Ok(());
    }
    finish(&run, &pipeline, &*dataset, &trainer.sampling_network(), &device)
}

/// Samples, metrics, plots and the report of a finished run.
fn finish(run: &Run, pipeline: &Pipeline, dataset: &dyn Dataset, network: &BoxBackbone, device: &Device) -> Outcome {
    let rows = labels::rows(pipeline, dataset)?;
    let columns = pipeline.train.sample_columns;
    let grid = sampled(pipeline, network, labels::grid(&rows, columns), device)?;
    picture::save(&picture::grid(&grid.images, columns), &run.folder.join("samples.png"))?;
    let mut compared = Comparison::default();
    let mut drawn = grid.clone();
    if !pipeline.metrics.is_empty() {
        let count = pipeline.train.samples_to_measure(dataset.info().num_classes);
        let classes_left = labels::classes(pipeline).is_some_and(|classes| classes.len() > rows.len());
        if count > rows.len() * columns || classes_left {
            drawn = sampled(pipeline, network, labels::measured(pipeline, dataset, count)?, device)?;
        }
        compared = report::compare(pipeline, &drawn.images, dataset, device)?;
    }
    report::write(run, pipeline, &rows, &drawn, &compared)?;
    println!("{}", report::summary(&drawn, &compared));
    println!("pictures in {}: samples.png, loss.png; report.md says what was measured", run.folder.display());
    Ok(())
}

fn sampled(pipeline: &Pipeline, network: &BoxBackbone, labels: Vec<Label>, device: &Device) -> Result<Drawn> {
    let request = Request {
        labels,
        seed: pipeline.train.seed,
        batch_size: 100,
        sampler: &*pipeline.sampler,
        guidance: &*pipeline.guidance,
        matmul_precision: MatmulPrecision::Highest,
    };
    drawn(pipeline, network, &request, device)
}

/// Samples, with a progress bar.
pub fn drawn(pipeline: &Pipeline, network: &BoxBackbone, request: &Request<'_>, device: &Device) -> Result<Drawn> {
    let bar = bar("sampling", 0);
    let drawn = draw(pipeline, network, request, device, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    Ok(drawn)
}

/// A progress bar on a terminal, nothing otherwise.
pub fn bar(name: &str, length: u64) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    let style =
        ProgressStyle::with_template("{prefix} {bar:32} {pos}/{len}  {msg}  {eta} left").expect("a valid template");
    bar.set_style(style);
    bar.set_prefix(name.to_string());
    bar
}

/// Set by the first Ctrl-C (or termination); the second ends the process at once.
fn stop_on_ctrl_c() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    // A second handler in one process is refused; then the first one still works.
    let _ = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step, with a checkpoint; once more stops at once");
    });
    stop
}

/// Progress on the terminal, metrics as JSON lines, sample grids.
struct Console {
    run: Run,
    dataset: Arc<dyn Dataset>,
    pipeline: Arc<Pipeline>,
    device: Device,
    metrics: File,
    bar: ProgressBar,
    plain: bool,
    since: Instant,
    samples: usize,
    loss: f64,
    steps: usize,
    skipped: usize,
}

impl Console {
    fn new(
        run: &Run,
        pipeline: Arc<Pipeline>,
        dataset: Arc<dyn Dataset>,
        device: &Device,
        step: usize,
    ) -> Result<Self> {
        let path = run.metrics();
        // Lines of steps that the checkpoint does not know will be written again.
        let known = |line: &&str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            line["step"].as_u64().is_some_and(|s| s <= step as u64)
        };
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
            let kept: String = text.lines().filter(known).map(|line| format!("{line}\n")).collect();
            write_atomically(&path, [kept.as_bytes()])?;
        }
        let metrics = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let bar = bar("training", pipeline.train.steps as u64);
        bar.set_position(step as u64);
        bar.reset_eta();
        let plain = !std::io::stderr().is_terminal();
        let (run, device) = (run.clone(), device.clone());
        Ok(Self {
            run,
            dataset,
            pipeline,
            device,
            metrics,
            bar,
            plain,
            since: Instant::now(),
            samples: 0,
            loss: 0.0,
            steps: 0,
            skipped: 0,
        })
    }

    /// A line of its own, above the bar where there is one.
    fn say(&self, text: &str) {
        if self.plain { eprintln!("{text}") } else { self.bar.println(text) }
    }
}

impl Events for Console {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        let train = &self.pipeline.train;
        self.samples += report.samples;
        self.loss += report.loss;
        self.steps += 1;
        if let (0, Some(first)) = (self.skipped, report.skipped.first()) {
            self.say(&format!("step {}  skipped an item that cannot be read: {first}", report.step));
        }
        self.skipped += report.skipped.len();
        self.bar.set_position(report.step as u64);
        if !report.step.is_multiple_of(train.log_every) && report.step != train.steps {
            return Ok(());
        }
        let speed = self.samples as f64 / self.since.elapsed().as_secs_f64();
        let loss = self.loss / self.steps as f64;
        let mut line = Map::new();
        line.insert("step".into(), json!(report.step));
        line.insert("loss".into(), json!(loss));
        line.insert("grad_norm".into(), json!(report.grad_norm));
        line.insert("learning_rate".into(), json!(report.learning_rate));
        line.insert("images_per_second".into(), json!(speed));
        if self.skipped > 0 {
            line.insert(SKIPPED.into(), json!(self.skipped));
        }
        line.extend(report.logged.iter().map(|(name, value)| (name.clone(), json!(value))));
        let path = self.run.metrics();
        writeln!(self.metrics, "{}", serde_json::Value::Object(line)).map_err(|e| Error::io(&path, e))?;
        let left = (train.steps - report.step) as f64 * (train.batch_size * train.accumulate) as f64 / speed;
        let text = format!("loss {loss:.4}  {speed:.0} images/s");
        self.bar.set_message(text.clone());
        if self.plain {
            eprintln!("step {}/{}  {text}  {left:.0} s left", report.step, train.steps);
        }
        (self.since, self.samples, self.loss, self.steps, self.skipped) = (Instant::now(), 0, 0.0, 0, 0);
        Ok(())
    }

    fn sample(&mut self, network: &BoxBackbone, step: usize, measure: bool) -> Result<BTreeMap<String, f64>> {
        let rows = labels::rows(&self.pipeline, &*self.dataset)?;
        let columns = self.pipeline.train.sample_columns;
        let drawn = sampled(&self.pipeline, network, labels::grid(&rows, columns), &self.device)?;
        let path = self.run.folder.join("samples").join(format!("step-{step:09}.png"));
        picture::save(&picture::grid(&drawn.images, columns), &path)?;
        let mut measured = BTreeMap::new();
        if measure {
            let count = self.pipeline.train.samples_to_measure(self.dataset.info().num_classes);
            let labels = labels::measured(&self.pipeline, &*self.dataset, count)?;
            let drawn = sampled(&self.pipeline, network, labels, &self.device)?;
            let all = report::compare(&self.pipeline, &drawn.images, &*self.dataset, &self.device)?.measured;
            measured.extend(all.into_iter().map(|measurement| (measurement.name, measurement.value)));
        }
        Ok(measured)
    }

    fn saved(&mut self, path: &Path, step: usize) {
        self.say(&format!("step {step}  saved {}", path.display()));
    }
}

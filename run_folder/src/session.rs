//! A complete training: from a pipeline to a trained network, pictures and a report.

use crate::binding::Binding;
use crate::environment::Environment;
use crate::evaluator::MetricEvaluator;
use crate::folder::RunFolder;
use crate::page::record::Facts;
use crate::recorder::Recorder;
use crate::report::Comparison;
use crate::sample_record::described;
use crate::samples::sample;
use crate::watcher::{Stage, Watcher};
use crate::{frozen, labels, opened, picture, report, start};
use framework::burn::tensor::Device;
use framework::checkpoint::Checkpoint;
use framework::checkpoint::facts::DatasetFacts;
use framework::data::dataset::{Dataset, facts};
use framework::error::{Error, Problem, Result};
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use framework::pipeline::captions::Encodable;
use framework::ranks::job::Job;
use framework::ranks::messages;
use framework::training::events::{End, Evaluator, Events, StepReport};
use framework::training::trainer::Trainer;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a training starts.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Checkpoint to resume from; `None` = the newest.
    pub resume_from: Option<PathBuf>,
    /// Whether the run may resume although its data changed.
    pub accept_data_change: bool,
    /// Command that resumes the run. Error messages quote it.
    pub command: String,
    /// Build, machine and device, for the report.
    pub environment: Environment,
}

/// How a training ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All steps are done. The text summarizes the samples and the measurements.
    Done(String),
    /// The training was stopped at this step, after saving a checkpoint.
    Interrupted(usize),
}

/// Trains `pipeline` in the run folder `folder`, or resumes its run, until all steps are done or `stop` is set.
///
/// # Errors
/// If the folder belongs to another document, the input is wrong, or the training fails. The last checkpoint is kept.
pub fn train(
    pipeline: Pipeline,
    folder: &Path,
    device: &Device,
    options: &Options,
    stop: &AtomicBool,
    watcher: &mut dyn Watcher,
) -> Result<Outcome> {
    train_in_job(pipeline, folder, device, options, stop, watcher, &Job::alone())
}

/// Trains as [`train`] does, as one rank of a job. Rank 0 writes all files and holds the lock; the other ranks read the
/// same folder. The outcome of the other ranks has no summary.
///
/// # Errors
/// As [`train`], and if the ranks do not see the same folder. The caller must then end the other ranks.
pub fn train_in_job(
    mut pipeline: Pipeline,
    folder: &Path,
    device: &Device,
    options: &Options,
    stop: &AtomicBool,
    watcher: &mut dyn Watcher,
    job: &Job,
) -> Result<Outcome> {
    let run = RunFolder::open(folder)?;
    let _lock = if job.is_first() { Some(run.lock()?) } else { None };
    let from = in_turn(job, || {
        if !job.is_first() {
            return Ok(run.newest(Checkpoint::load, &|_: &Path| String::new())?.map(|(_, checkpoint)| checkpoint));
        }
        let changes = run.claim(&pipeline.document, Binding::of(&pipeline))?;
        if !changes.free.is_empty() {
            watcher.say(&format!("changed since the run began: {}", changes.free.join(", ")));
        }
        resumed(&run, &pipeline, options, watcher)
    })?;
    let steps = job.ranks.gather(&[from.as_ref().map_or(-1.0, |checkpoint| checkpoint.step as f64)]);
    if steps.iter().any(|step| *step != steps[0]) {
        let problem = Problem::new(folder.display().to_string(), "the ranks do not see the same checkpoints");
        return Err(problem.accepts("a run folder on a file system that all machines share").into());
    }
    for warning in pipeline.objective.warnings() {
        watcher.say(&format!("warning: {warning}"));
    }
    pipeline.load(device)?;
    pipeline.load_metrics(device)?;
    let dataset = pipeline.open_data()?;
    opened::check(&pipeline, &dataset)?;
    for warning in dataset.warnings() {
        watcher.say(&format!("warning: {warning}"));
    }
    in_turn(job, || start::learn_tokenizer(&mut pipeline, &run, &dataset, device, watcher))?;
    frozen::load_weak(&mut pipeline, device)?;
    let pipeline = Arc::new(pipeline);
    let dataset = Encodable::new(dataset, pipeline.clone());
    for warning in dataset.survey() {
        watcher.say(&format!("warning: {warning}"));
    }
    if let Some(before) = from.as_ref().and_then(|checkpoint| checkpoint.dataset.as_ref()) {
        unchanged(before, &dataset, options, watcher)?;
    }
    let dataset: Arc<dyn Dataset> = Arc::new(dataset);
    let start = in_turn(job, || start::start(&pipeline, &run, device, from, watcher))?;
    allocator::keep_pages();
    let mut trainer = Trainer::in_job(pipeline.clone(), &run.checkpoints(), device, start, job.clone())?;
    let end = if job.is_first() {
        let reborrowed: &mut dyn Watcher = watcher;
        let shared = RefCell::new(reborrowed);
        let mut recorder = Recorder::new(&run, pipeline.clone(), dataset.clone(), device, trainer.step(), &shared)?;
        let mut evaluator = MetricEvaluator {
            pipeline: pipeline.clone(),
            dataset: dataset.clone(),
            device: device.clone(),
            watcher: &shared,
        };
        trainer.run(dataset.clone(), stop, &mut recorder, &mut evaluator)
    } else {
        trainer.run(dataset.clone(), stop, &mut Follower, &mut Follower)
    };
    watcher.finished(Stage::Training);
    for note in dataset.notes() {
        watcher.say(&format!("note: {note}"));
    }
    if let End::Interrupted(step) = end? {
        return Ok(Outcome::Interrupted(step));
    }
    // The request came during the last step, and its checkpoint is saved. Running the same command again samples and
    // measures.
    if messages::any(&*job.ranks, [stop.load(Ordering::SeqCst)])[0] {
        return Ok(Outcome::Interrupted(trainer.step()));
    }
    let network = trainer.sampling_network();
    let environment = options.environment.clone();
    match job.is_first() {
        true => finish(&run, &pipeline, &*dataset, &network, device, environment, watcher).map(Outcome::Done),
        false => Ok(Outcome::Done(String::new())),
    }
}

/// Runs `work` on rank 0, and then on the other ranks, which find its files.
fn in_turn<T>(job: &Job, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if !job.is_first() {
        job.ranks.barrier();
        return work();
    }
    let done = work()?;
    job.ranks.barrier();
    Ok(done)
}

/// Observer of a rank that writes no files.
struct Follower;

impl Events for Follower {
    fn step(&mut self, _: &StepReport) -> Result<()> {
        Ok(())
    }
    fn sample(&mut self, _: &BoxBackbone, _: usize) -> Result<()> {
        Ok(())
    }
    fn saved(&mut self, _: &Path, _: usize) {}
}

impl Evaluator for Follower {
    fn evaluate(&mut self, _: &BoxBackbone, _: usize) -> Result<BTreeMap<String, f64>> {
        Ok(BTreeMap::new())
    }
}

/// Returns the checkpoint that the run resumes from, or `None` if the run has none. With `resume_from`, that checkpoint
/// becomes the newest of the run.
fn resumed(
    run: &RunFolder,
    pipeline: &Pipeline,
    options: &Options,
    watcher: &mut dyn Watcher,
) -> Result<Option<Checkpoint>> {
    let offer = |path: &Path| format!("{} --resume-from {}", options.command, path.display());
    let found = match &options.resume_from {
        Some(path) => Some((path.clone(), Checkpoint::load(path)?)),
        None => run.newest(Checkpoint::load, &offer)?,
    };
    let Some((path, checkpoint)) = found else { return Ok(None) };
    let changes = Binding::of(pipeline).changes(&checkpoint.document, &pipeline.document);
    if !changes.binding.is_empty() {
        let what = format!("{} is a checkpoint of another document", path.display());
        let problem = Problem::new(changes.binding.join(" and "), what);
        return Err(problem.fix("choose a checkpoint of this run, or restore these values").into());
    }
    let steps = pipeline.train.steps;
    if checkpoint.step > steps {
        let what = format!("{} has {} steps; the document has {steps}", path.display(), checkpoint.step);
        return Err(Problem::new("/train/steps", what).accepts(format!("at least {}", checkpoint.step)).into());
    }
    if checkpoint.step > 0 && checkpoint.optimizer.is_empty() {
        let what = format!("{} has {} steps, but no optimizer state", path.display(), checkpoint.step);
        let fix = format!("start a new run from its weights: /train/from = {{\"checkpoint\": \"{}\"}}", path.display());
        return Err(Problem::new("", what).fix(fix).into());
    }
    watcher.say(&format!("resuming from {} (step {})", path.display(), checkpoint.step));
    if let Some((before, now)) = changes.steps {
        watcher.say(&format!(
            "steps: {before} before, {now} now; after step {} the learning rate and every schedule are those of {now} steps",
            checkpoint.step
        ));
    }
    if pipeline.train.ema.is_some() && checkpoint.ema.is_none() {
        watcher.say("the checkpoint has no average of the weights; the average starts from its weights");
    }
    if options.resume_from.is_some()
        && let Some(aside) = run.make_newest(&path, checkpoint.step)?
    {
        watcher.say(&format!("moved later checkpoints to {}", aside.display()));
    }
    Ok(Some(checkpoint))
}

/// Refuses a dataset that differs from the dataset of the run, unless the user accepts the change.
fn unchanged(before: &DatasetFacts, dataset: &dyn Dataset, options: &Options, watcher: &mut dyn Watcher) -> Result<()> {
    let differs = before.differences(&facts(dataset));
    if differs.is_empty() {
        return Ok(());
    }
    if options.accept_data_change {
        differs.iter().for_each(|line| watcher.say(&format!("warning: resuming with changed data: {line}")));
        return Ok(());
    }
    let problem = Problem::new("/data", "the data are not those that the run was trained on")
        .accepts("the data of the run, wherever they are stored")
        .fix(format!("restore the data, or accept the change: {} --accept-data-change", options.command));
    Err(Problem { differs, ..problem }.into())
}

/// Writes the samples, metrics and report of a finished run. Returns the summary.
fn finish(
    run: &RunFolder,
    pipeline: &Pipeline,
    dataset: &dyn Dataset,
    network: &BoxBackbone,
    device: &Device,
    environment: Environment,
    watcher: &mut dyn Watcher,
) -> Result<String> {
    let rows = labels::rows(pipeline, dataset)?;
    let columns = pipeline.train.sample_columns;
    let grid = sample(pipeline, network, labels::grid(&rows, columns), device, watcher)?;
    let shown = picture::grid(&grid.images, columns, dataset.class_names().as_deref());
    let texts = described(pipeline, pipeline.train.seed, pipeline.train.steps);
    picture::save_with(&shown, &run.path.join("samples.png"), &texts)?;
    let mut compared = Comparison::default();
    let mut sampled = grid.clone();
    if !pipeline.metrics.is_empty() {
        let count = pipeline.train.samples_to_measure(dataset.info().num_classes);
        let classes_left = labels::classes(pipeline).is_some_and(|classes| classes.len() > rows.len());
        if count > rows.len() * columns || classes_left {
            sampled = sample(pipeline, network, labels::measured(pipeline, dataset, count)?, device, watcher)?;
        }
        compared = report::compare(pipeline, &sampled.images, dataset, device)?;
    }
    let names = dataset.class_names().unwrap_or_default();
    let mut texts: Vec<String> = rows.iter().map(|row| labels::text(row, &names)).collect();
    texts.retain(|text| !text.is_empty());
    let facts = Facts { environment, items: Some(dataset.len()), rows: texts, ..Facts::default() };
    report::write(run, pipeline, facts, &sampled, &compared)?;
    if let Err(error) = report::write_page(run) {
        let again = format!("unguided compare {0} --out {0}/report.html", run.path.display());
        watcher
            .say(&format!("error: the run is complete, but its page is not written: {error}\nwrite it with: {again}"));
    }
    let summary = report::summary(&sampled, &compared);
    if compared.failed.is_empty() {
        return Ok(summary);
    }
    watcher.say(&summary);
    let names: Vec<&str> = compared.failed.iter().map(|failure| failure.name.as_str()).collect();
    let what = format!("the run is complete, but a metric failed: {}", names.join(", "));
    let fix = "its report says why; the same command samples and measures again, without training";
    Err(Error::failed(Problem::new("", what).fix(fix)))
}

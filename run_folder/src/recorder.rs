//! The files that a run writes during training: `metrics.jsonl` and sample grids.

use crate::folder::{EVALUATION_SECONDS, RunFolder, SKIPPED};
use crate::sample_record::described;
use crate::samples::sample;
use crate::watcher::{Stage, Watcher};
use crate::{labels, picture};
use framework::burn::tensor::Device;
use framework::checkpoint::tensor_file::write_atomically;
use framework::data::dataset::Dataset;
use framework::error::{Error, Result};
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use framework::training::events::{Events, StepReport};
use serde_json::{Map, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Writes metrics and sample grids, and reports to the watcher.
pub struct Recorder<'a, 'b> {
    run: RunFolder,
    dataset: Arc<dyn Dataset>,
    pipeline: Arc<Pipeline>,
    device: Device,
    watcher: &'a RefCell<&'b mut (dyn Watcher + 'b)>,
    metrics: File,
    /// Time of the last logged step. The fields below accumulate since then.
    since: Instant,
    samples: usize,
    loss: f64,
    steps: usize,
    skipped: usize,
    /// Errors of unreadable items that were already printed.
    named: BTreeSet<String>,
    /// Number of notes of the dataset that were printed.
    noted: usize,
    /// Last step whose measurements are in the file.
    measured: Option<u64>,
}

/// Maximum number of unreadable items that are named. Further items are only counted.
const MOST_NAMED: usize = 20;

impl<'a, 'b> Recorder<'a, 'b> {
    /// Opens `metrics.jsonl` of a run that resumes after `step` steps. Removes the lines of later steps.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn new(
        run: &RunFolder,
        pipeline: Arc<Pipeline>,
        dataset: Arc<dyn Dataset>,
        device: &Device,
        step: usize,
        watcher: &'a RefCell<&'b mut (dyn Watcher + 'b)>,
    ) -> Result<Self> {
        let path = run.metrics();
        // The steps after the checkpoint run again and log again.
        let mut measured = None;
        let mut is_known = |line: &&str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            let known = line["step"].as_u64().filter(|s| *s <= step as u64);
            if line.get(EVALUATION_SECONDS).is_some() {
                measured = measured.max(known);
            }
            known.is_some()
        };
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
            let kept: String = text.lines().filter(&mut is_known).map(|line| format!("{line}\n")).collect();
            write_atomically(&path, [kept.as_bytes()])?;
        }
        let metrics = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        watcher.borrow_mut().progress(Stage::Training, step, pipeline.train.steps, "");
        let (run, device, since) = (run.clone(), device.clone(), Instant::now());
        Ok(Self {
            run,
            dataset,
            pipeline,
            device,
            watcher,
            metrics,
            since,
            samples: 0,
            loss: 0.0,
            steps: 0,
            skipped: 0,
            named: BTreeSet::new(),
            noted: 0,
            measured,
        })
    }

    /// Prints each item that could not be read, once.
    fn name_skipped(&mut self, report: &StepReport) {
        for item in &report.skipped {
            if self.named.len() > MOST_NAMED || !self.named.insert(item.error.clone()) {
                continue;
            }
            let what = match self.named.len() > MOST_NAMED {
                true => "more items cannot be read; they are counted in metrics.jsonl".to_string(),
                false => format!("skipped an item that cannot be read: {}", item.error),
            };
            self.watcher.borrow_mut().say(&format!("step {}  {what}", report.step));
        }
    }

    /// Prints the dataset's notes on the items that it changed, if there is a new note.
    fn say_notes(&mut self) {
        let notes = self.dataset.notes();
        if notes.len() > self.noted {
            notes.iter().for_each(|note| self.watcher.borrow_mut().say(&format!("note: {note}")));
            self.noted = notes.len();
        }
    }
}

impl Events for Recorder<'_, '_> {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        let pipeline = self.pipeline.clone();
        let train = &pipeline.train;
        self.samples += report.samples;
        self.loss += report.loss;
        self.steps += 1;
        self.name_skipped(report);
        // Epoch 0 reads every item once, so each item counts once, also in a run that resumes.
        self.skipped += report.skipped.iter().filter(|item| item.epoch == 0).count();
        if !report.step.is_multiple_of(train.log_every) && report.step != train.steps {
            self.watcher.borrow_mut().progress(Stage::Training, report.step, train.steps, "");
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
        let summary = format!("loss {loss:.4}  {speed:.0} images/s");
        self.watcher.borrow_mut().progress(Stage::Training, report.step, train.steps, &summary);
        self.watcher.borrow_mut().logged(report.step, train.steps, &summary, left);
        self.say_notes();
        (self.since, self.samples, self.loss, self.steps, self.skipped) = (Instant::now(), 0, 0.0, 0, 0);
        Ok(())
    }

    fn sample(&mut self, network: &BoxBackbone, step: usize) -> Result<()> {
        let rows = labels::rows(&self.pipeline, &*self.dataset)?;
        let columns = self.pipeline.train.sample_columns;
        let grid = labels::grid(&rows, columns);
        let sampled = sample(&self.pipeline, network, grid, &self.device, &mut **self.watcher.borrow_mut())?;
        let path = self.run.samples().join(format!("step-{step:09}.png"));
        let grid = picture::grid(&sampled.images, columns, self.dataset.class_names().as_deref());
        picture::save_with(&grid, &path, &described(&self.pipeline, self.pipeline.train.seed, step))
    }

    fn measured(&mut self, results: &BTreeMap<String, f64>, step: usize, seconds: f64) -> Result<()> {
        // The time does not count for the speed of the training.
        self.since += Duration::from_secs_f64(seconds);
        // A run that was killed before its next checkpoint measures the step again.
        if self.measured == Some(step as u64) {
            return Ok(());
        }
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        line.insert(EVALUATION_SECONDS.into(), json!(seconds));
        line.extend(results.iter().map(|(name, value)| (name.clone(), json!(value))));
        let path = self.run.metrics();
        writeln!(self.metrics, "{}", serde_json::Value::Object(line)).map_err(|e| Error::io(&path, e))?;
        let said: Vec<String> = results.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        self.watcher.borrow_mut().say(&format!("step {step}  {}", said.join("  ")));
        Ok(())
    }

    fn saved(&mut self, path: &Path, step: usize) {
        self.watcher.borrow_mut().say(&format!("step {step}  saved {}", path.display()));
    }
}

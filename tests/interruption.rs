//! A run that is interrupted between two checkpoints ends with the same files as an uninterrupted run.

use framework::burn::tensor::Device;
use framework::checkpoint::{self, Checkpoint};
use framework::error::{Error, Result};
use framework::network::backbone::BoxBackbone;
use framework::training::events::{End, Evaluator, Events, StepReport};
use framework::training::trainer::{Start, Trainer, tracking};
use registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use unguided as _;

/// Event listener that stops the run at a step, or ends the sampling of a step early, as a request to stop does.
struct StopAt<'a> {
    step: usize,
    sampling: usize,
    stop: &'a AtomicBool,
}

impl Events for StopAt<'_> {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.stop.store(report.step == self.step, Ordering::SeqCst);
        Ok(())
    }
    fn sample(&mut self, _: &BoxBackbone, step: usize) -> Result<()> {
        if step == self.sampling { Err(Error::Interrupted) } else { Ok(()) }
    }
    fn saved(&mut self, _: &Path, _: usize) {}
}

/// The objectives here follow no measurement.
struct Unmeasured;

impl Evaluator for Unmeasured {
    fn evaluate(&mut self, _: &BoxBackbone, _: usize) -> Result<BTreeMap<String, f64>> {
        Ok(BTreeMap::new())
    }
}

/// Trains in `folder`, from its newest checkpoint or from the start. Stops at `step`; 0 = at the end.
fn train(folder: &Path, step: usize) -> End {
    train_sampling(folder, step, 0)
}

/// Trains like [`train`], and ends the sampling after step `sampling` early; 0 = of no step.
fn train_sampling(folder: &Path, step: usize, sampling: usize) -> End {
    let text = fs::read_to_string("examples/pipelines/digits-dit-gft-tiny.json").unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    for (name, value) in [("steps", json!(15)), ("save_every", json!(5)), ("keep_last", json!(2))] {
        document["train"][name] = value;
    }
    document["train"]["keep_best"] = json!(true);
    document["train"]["sample_every"] = json!(2);
    let registry = Registry::linked();
    let pipeline = Arc::new(registry.build(registry.parse(&document.to_string()).expect("a pipeline document")));
    let (device, newest) = (Device::flex(), checkpoint::list(folder).unwrap().pop());
    let start = Start {
        online: pipeline.init_backbone(&tracking(&pipeline.train, &device)),
        reference: None,
        resume: newest.map(|path| Checkpoint::load(&path).unwrap()),
    };
    let dataset = Arc::new(pipeline.open_data().unwrap());
    let mut trainer = Trainer::new(pipeline, folder, &device, start).unwrap();
    let stop = AtomicBool::new(false);
    trainer.run(dataset, &stop, &mut StopAt { step, sampling, stop: &stop }, &mut Unmeasured).unwrap()
}

/// Returns the name, step, losses and content of each checkpoint, sorted by name.
fn checkpoints(folder: &Path) -> Vec<(String, usize, (f64, usize), Checkpoint)> {
    let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    let read = |path: &std::path::PathBuf| {
        let found = Checkpoint::load(path).unwrap();
        (path.file_name().unwrap().to_str().unwrap().to_string(), found.step, found.losses, found)
    };
    all.iter().map(read).collect()
}

#[test]
fn an_interrupted_run_ends_with_the_files_of_an_uninterrupted_one() {
    let [whole, interrupted] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    assert_eq!(train(whole.path(), 0), End::Done);
    assert_eq!(train(interrupted.path(), 12), End::Interrupted(12));
    // The checkpoint of the interruption is kept in addition to the regular ones, and is never the best.
    let names: Vec<String> = checkpoints(interrupted.path()).into_iter().map(|(name, ..)| name).collect();
    let step = checkpoint::file_name;
    assert_eq!(names, ["best.safetensors".to_string(), step(5), step(10), step(12)]);
    let best = checkpoints(interrupted.path()).remove(0);
    assert!([5, 10].contains(&best.1) && best.2.1 == 5, "best is step {} with {} losses", best.1, best.2.1);
    assert_eq!(train(interrupted.path(), 0), End::Done);
    let [whole, interrupted] = [whole, interrupted].map(|folder| checkpoints(folder.path()));
    assert_eq!(whole.len(), 3);
    assert_eq!(whole.len(), interrupted.len());
    for ((a, b), last) in whole.iter().zip(&interrupted).zip([false, false, true]) {
        assert_eq!((&a.0, a.1, a.2), (&b.0, b.1, b.2));
        assert!(a.3.model == b.3.model && a.3.ema == b.3.ema, "{} has different bits", a.0);
        assert!(!last || (a.1 == 15 && a.2.1 == 5), "the last checkpoint must hold the losses of five steps");
    }
}

#[test]
fn sampling_that_was_ended_early_is_made_up_for_and_changes_no_file() {
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(train(whole.path(), 0), End::Done);
    let whole = checkpoints(whole.path());
    // Step 10 has a regular checkpoint, step 12 a temporary one.
    for step in [10, 12] {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(train_sampling(folder.path(), 0, step), End::Interrupted(step));
        let newest = Checkpoint::load(&folder.path().join(checkpoint::file_name(step))).unwrap();
        assert_eq!(newest.memory.len(), 1, "the checkpoint says that its samples are due");
        // A second interruption at the same place changes nothing.
        assert_eq!(train_sampling(folder.path(), 0, step), End::Interrupted(step));
        assert_eq!(train(folder.path(), 0), End::Done);
        for (a, b) in whole.iter().zip(checkpoints(folder.path())) {
            assert_eq!((&a.0, a.1, a.2), (&b.0, b.1, b.2));
            assert!(a.3.model == b.3.model && a.3.ema == b.3.ema && a.3.memory == b.3.memory, "{}", a.0);
        }
        assert_eq!(checkpoints(folder.path()).len(), whole.len());
    }
}

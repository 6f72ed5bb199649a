//! Trainers that take turns, one step each: other load on the machine meets all alike, so that the ratios of their steps can
//! be told to a percent where the steps themselves vary by a third.

use framework::backbone::BoxBackbone;
use framework::burn::module::Module;
use framework::burn::tensor::Device;
use framework::error::Result;
use framework::trainer::{Events, Start, StepReport, Trainer, tracking};
use registry::Registry;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Hands the turn on after every step, and keeps what the steps took.
struct Turns {
    seconds: Vec<f64>,
    mine: Receiver<()>,
    next: Sender<()>,
}

impl Events for Turns {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.seconds.push(report.seconds);
        // Behind the last step nobody answers.
        self.next.send(()).map(|()| self.mine.recv()).ok();
        Ok(())
    }
    fn sample(&mut self, _: &BoxBackbone, _: usize, _: bool) -> Result<BTreeMap<String, f64>> {
        Ok(BTreeMap::new())
    }
    fn saved(&mut self, _: &Path, _: usize) {}
}

/// The seconds of every step of `steps` with each of these documents, from freshly drawn weights, which also serve as the
/// reference of objectives that need one.
pub fn seconds(documents: Vec<Value>, steps: usize) -> Vec<Vec<f64>> {
    // As the command trains.
    allocator::keep_pages();
    let (senders, receivers): (Vec<_>, Vec<_>) = documents.iter().map(|_| channel()).unzip();
    // The first begins.
    senders[0].send(()).expect("its receiver is here");
    let next = senders.into_iter().cycle().skip(1);
    let turns = receivers.into_iter().zip(next).map(|(mine, next)| Turns { seconds: Vec::new(), mine, next });
    std::thread::scope(|scope| {
        let runs = documents.into_iter().zip(turns);
        let runs: Vec<_> = runs.map(|(document, turns)| scope.spawn(move || train(document, steps, turns))).collect();
        runs.into_iter().map(|run| run.join().expect("it has trained")).collect()
    })
}

fn train(mut document: Value, steps: usize, mut turns: Turns) -> Vec<f64> {
    turns.mine.recv().expect("the one before hands on the turn");
    for (name, steps) in [("steps", steps), ("warmup_steps", 1), ("save_every", steps)] {
        document["train"][name] = steps.into();
    }
    let registry = Registry::linked();
    let document = registry.parse(&document.to_string()).expect("a pipeline document");
    let pipeline = Arc::new(registry.build(document));
    let device = Device::flex();
    let online = pipeline.init_backbone(&tracking(&pipeline.train, &device));
    let reference = pipeline.objective.needs().reference.then(|| online.valid());
    let dataset = Arc::new(pipeline.open_data().expect("the data are there"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = Start { online, reference, resume: None };
    let mut trainer = Trainer::new(pipeline, folder.path(), &device, start).expect("a fresh run");
    trainer.run(dataset, &AtomicBool::new(false), &mut turns).expect("the run ends well");
    turns.seconds
}

/// The median over all steps but the first five of one's seconds over the other's in the same round, and between which two
/// numbers it lies with 95 % (from their ranks).
pub fn ratio(seconds: &[f64], over: &[f64]) -> [f64; 3] {
    let mut ratios: Vec<f64> = seconds.iter().zip(over).skip(5).map(|(one, other)| one / other).collect();
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.len() as f64 / 2.0;
    let half = 1.96 * (ratios.len() as f64).sqrt() / 2.0;
    let rank = |place: f64| ratios[(place.max(0.0) as usize).min(ratios.len() - 1)];
    [rank(middle), rank(middle - half), rank(middle + half)]
}

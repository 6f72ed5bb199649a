//! Runs several trainers that take turns, one step each. Other load on the machine then slows all of them equally. The
//! ratios of step times are accurate to 1 %, even where the step times themselves vary by a third.

use framework::burn::module::Module;
use framework::burn::tensor::Device;
use framework::error::Result;
use framework::network::backbone::BoxBackbone;
use framework::training::events::{Evaluator, Events, StepReport};
use framework::training::networks::Reference;
use framework::training::trainer::{Start, Trainer, tracking};
use registry::Registry;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Event listener that records the time of every step, and then passes the turn to the next trainer.
struct Turns {
    seconds: Vec<f64>,
    mine: Receiver<()>,
    next: Sender<()>,
}

impl Events for Turns {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.seconds.push(report.seconds);
        // Around the last step, the other trainers may have finished and closed their channels.
        self.next.send(()).map(|()| self.mine.recv()).ok();
        Ok(())
    }
    fn sample(&mut self, _: &BoxBackbone, _: usize) -> Result<()> {
        Ok(())
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

/// Trains each document for `steps` steps and returns the seconds of every step. Training starts from fresh weights,
/// which also serve as the reference of objectives that need one.
pub fn seconds(documents: Vec<Value>, steps: usize) -> Vec<Vec<f64>> {
    // `unguided train` does the same.
    allocator::keep_pages();
    let (senders, receivers): (Vec<_>, Vec<_>) = documents.iter().map(|_| channel()).unzip();
    // Give the first turn to the first trainer.
    senders[0].send(()).expect("the receiver exists");
    let next = senders.into_iter().cycle().skip(1);
    let turns = receivers.into_iter().zip(next).map(|(mine, next)| Turns { seconds: Vec::new(), mine, next });
    std::thread::scope(|scope| {
        let runs = documents.into_iter().zip(turns);
        let runs: Vec<_> = runs.map(|(document, turns)| scope.spawn(move || train(document, steps, turns))).collect();
        runs.into_iter().map(|run| run.join().expect("the trainer did not panic")).collect()
    })
}

fn train(mut document: Value, steps: usize, mut turns: Turns) -> Vec<f64> {
    turns.mine.recv().expect("the previous trainer passes the turn");
    for (name, steps) in [("steps", steps), ("warmup_steps", 1), ("save_every", steps)] {
        document["train"][name] = steps.into();
    }
    let registry = Registry::linked();
    let document = registry.parse(&document.to_string()).expect("a pipeline document");
    let pipeline = Arc::new(registry.build(document));
    let device = Device::flex();
    let online = pipeline.init_backbone(&tracking(&pipeline.train, &device));
    let reference = pipeline.objective.needs().reference.then(|| Reference::plain(online.valid()));
    let dataset = Arc::new(pipeline.open_data().expect("the dataset is available"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = Start { online, reference, resume: None };
    let mut trainer = Trainer::new(pipeline, folder.path(), &device, start).expect("a fresh run");
    trainer.run(dataset, &AtomicBool::new(false), &mut turns, &mut Unmeasured).expect("the run ends well");
    turns.seconds
}

/// Returns the median of the ratios `seconds / over`, and its 95 % interval from the ranks of the ratios. Each ratio
/// compares steps of the same round. The first five rounds do not count.
pub fn ratio(seconds: &[f64], over: &[f64]) -> [f64; 3] {
    let mut ratios: Vec<f64> = seconds.iter().zip(over).skip(5).map(|(one, other)| one / other).collect();
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.len() as f64 / 2.0;
    let half = 1.96 * (ratios.len() as f64).sqrt() / 2.0;
    let rank = |place: f64| ratios[(place.max(0.0) as usize).min(ratios.len() - 1)];
    [rank(middle), rank(middle - half), rank(middle + half)]
}

//! What a plugin costs as a shared library: seconds to build, milliseconds to load, kilobytes, and its training step beside
//! that of the same source linked into the program.
//!
//!   cargo bench --workspace --bench plugin
//!
//! Two trainers in one process take turns, one step each, so that other load on the machine meets both alike. What is
//! reported is the median, over all pairs of steps, of the one's seconds over the other's, and between which two numbers it
//! lies with 95 % (from the pairs' ranks).

use framework::backbone::BoxBackbone;
use framework::burn::tensor::Device;
use framework::error::Result;
use framework::trainer::{Events, Start, StepReport, Trainer, tracking};
use registry::Registry;
use registry::library::Library;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;
use unguided as _;

// Its tests have no harness here.
#[allow(unused_imports)]
#[path = "../examples/third_party_objective/src/lib.rs"]
mod third_party_objective;

/// Steps of each.
const STEPS: usize = 600;

/// A trainer that hands the turn on after every step, and what its steps took.
struct Turns {
    seconds: Vec<f64>,
    mine: Receiver<()>,
    other: Sender<()>,
}

impl Events for Turns {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.seconds.push(report.seconds);
        // Behind the last step nobody answers.
        self.other.send(()).and_then(|()| Ok(self.mine.recv())).ok();
        Ok(())
    }
    fn sample(&mut self, _: &BoxBackbone, _: usize, _: bool) -> Result<BTreeMap<String, f64>> {
        Ok(BTreeMap::new())
    }
    fn saved(&mut self, _: &Path, _: usize) {}
}

/// The seconds of every step of a run of the digits example with this objective.
fn train(folder: &Path, objective: &str, mut turns: Turns) -> Vec<f64> {
    let text = fs::read_to_string("examples/pipelines/digits-dit-gft.json").expect("the example is there");
    let mut document: serde_json::Value = serde_json::from_str(&text).expect("the example is JSON");
    document["objective"]["type"] = objective.into();
    for (name, steps) in [("steps", STEPS), ("warmup_steps", 1), ("save_every", STEPS)] {
        document["train"][name] = steps.into();
    }
    let folder = folder.join(objective);
    fs::create_dir_all(&folder).expect("the folder is writable");
    let registry = Registry::linked();
    let document = registry.parse(&document.to_string()).expect("the example is a document");
    let pipeline = Arc::new(registry.build(document));
    let device = Device::flex();
    let online = pipeline.init_backbone(&tracking(&pipeline.train, &device));
    let dataset = Arc::new(pipeline.open_data().expect("the digits are embedded"));
    let start = Start { online, reference: None, resume: None };
    let mut trainer = Trainer::new(pipeline, &folder, &device, start).expect("a fresh run");
    trainer.run(dataset, &AtomicBool::new(false), &mut turns).expect("the run ends well");
    turns.seconds
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (example, plugin) = (Path::new("examples/third_party_objective"), folder.path().join("loaded"));
    fs::create_dir_all(plugin.join("src")).expect("the folder is writable");
    fs::copy(example.join("Cargo.toml"), plugin.join("Cargo.toml")).expect("the folder is writable");
    let source = fs::read_to_string(example.join("src/lib.rs")).expect("the example is there");
    fs::write(plugin.join("src/lib.rs"), source.replace("\"gft_zero\"", "\"gft_zero_loaded\"")).expect("writable");
    let start = Instant::now();
    let built = Command::new(env!("CARGO_BIN_EXE_unguided")).args(["plugin", "build"]).arg(&plugin).status();
    assert!(built.expect("the command starts").success());
    println!("build        {:.1} s", start.elapsed().as_secs_f64());
    let library = plugin.join("target/third_party_objective.so");
    println!("library      {:.0} kB", fs::metadata(&library).expect("it was built").len() as f64 / 1000.0);
    let start = Instant::now();
    let read = Library::read(&library).expect("a library");
    read.check().expect("it fits");
    read.open().expect("it opens");
    println!("load         {:.1} ms", start.elapsed().as_secs_f64() * 1000.0);

    let ((to_linked, linked_turn), (to_loaded, loaded_turn)) = (channel(), channel());
    let linked = Turns { seconds: Vec::new(), mine: linked_turn, other: to_loaded };
    let loaded = Turns { seconds: Vec::new(), mine: loaded_turn, other: to_linked };
    let (linked, loaded) = std::thread::scope(|scope| {
        let linked = scope.spawn(|| train(folder.path(), "gft_zero", linked));
        let loaded = scope.spawn(|| {
            loaded.mine.recv().expect("the linked one begins");
            train(folder.path(), "gft_zero_loaded", loaded)
        });
        (linked.join().expect("trained"), loaded.join().expect("trained"))
    });
    // The first steps warm up.
    let pairs = linked.iter().zip(&loaded).skip(5);
    let mut ratios: Vec<f64> = pairs.map(|(linked, loaded)| loaded / linked).collect();
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.len() as f64 / 2.0;
    let half = 1.96 * ratios.len() as f64 / 2.0 / (ratios.len() as f64).sqrt();
    let [low, median, high] = [middle - half, middle, middle + half].map(|rank| ratios[rank as usize]);
    let median_ms = |seconds: &[f64]| {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        1000.0 * sorted[sorted.len() / 2]
    };
    println!("step         linked {:.1} ms, loaded {:.1} ms", median_ms(&linked), median_ms(&loaded));
    println!("             loaded / linked {median:.3} ({low:.3} to {high:.3}), {} pairs", ratios.len());
}

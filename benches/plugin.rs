//! What a plugin costs as a shared library: seconds to build, milliseconds to load, kilobytes, and its training step beside
//! that of the same source linked into the program.
//!
//!   cargo bench --workspace --bench plugin
//!
//! Runs of both alternate in one process. Of all steps after the first of each run: the median, and the speed that one step
//! in ten exceeds, which other load on the machine disturbs least.

use registry::Registry;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use unguided::execute;

// Its tests have no harness here.
#[allow(unused_imports)]
#[path = "../examples/third_party_objective/src/lib.rs"]
mod third_party_objective;

/// Runs of each.
const RUNS: usize = 12;

/// The speed of every step of one run but the first, in images a second.
fn train(folder: &Path, objective: &str, run: usize) -> Vec<f64> {
    let example = fs::read_to_string("examples/pipelines/digits-dit-gft.json").expect("the example is there");
    let document = folder.join(format!("{objective}.json"));
    let text = example.replace("\"type\": \"gft\"", &format!("\"type\": \"{objective}\""));
    fs::write(&document, text).expect("the folder is writable");
    let run = folder.join(format!("{objective}-{run}"));
    let set = ["/train/steps=40", "/train/warmup_steps=1", "/train/log_every=1", "/train/save_every=40", "/metrics=[]"];
    let set = set.iter().flat_map(|set| ["--set", set]);
    let arguments = ["unguided", "train", document.to_str().unwrap(), "--run", run.to_str().unwrap()];
    execute(arguments.into_iter().chain(set)).expect("the run ends well");
    let lines = fs::read_to_string(run.join("metrics.jsonl")).expect("the run logs its steps");
    let speed = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["images_per_second"].as_f64();
    lines.lines().skip(1).filter_map(speed).collect()
}

/// The number that this share of all is below.
fn quantile(numbers: &mut [f64], share: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[(numbers.len() as f64 * share) as usize]
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
    let build = start.elapsed().as_secs_f64();
    let library = plugin.join("target/third_party_objective.so");
    let size = fs::metadata(&library).expect("it was built").len() as f64 / 1000.0;
    drop(Registry::linked());
    let start = Instant::now();
    drop(Registry::linked());
    let linked = start.elapsed().as_secs_f64() * 1000.0;
    let start = Instant::now();
    Registry::load(&[library]).map(drop).expect("it fits");
    // The registry's own schemas are made either way.
    let load = start.elapsed().as_secs_f64() * 1000.0 - linked;
    let (mut linked, mut loaded) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        linked.extend(train(folder.path(), "gft_zero", run));
        loaded.extend(train(folder.path(), "gft_zero_loaded", run));
    }
    println!("build        {build:.1} s");
    println!("library      {size:.0} kB");
    println!("load         {load:.1} ms");
    for (name, share) in [("median", 0.5), ("best tenth", 0.9)] {
        let (linked, loaded) = (quantile(&mut linked, share), quantile(&mut loaded, share));
        let ratio = linked / loaded;
        println!("{name:<12} linked {linked:.1}, loaded {loaded:.1} images/s, step time loaded / linked {ratio:.3}");
    }
}

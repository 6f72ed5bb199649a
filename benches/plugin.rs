//! Measures the cost of a plugin as a shared library: build time, file size, load time, and the time of a training step
//! compared with the same source linked into the program.
//!
//!   cargo bench --workspace --bench plugin
//!
//! The two versions take turns in one process, one step each (`benches/turns`).

mod turns;

use registry::library::Library;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use unguided as _;

// This benchmark has no test harness, so the module's tests and their imports are unused.
#[allow(unused_imports)]
#[path = "../examples/third_party_objective/src/lib.rs"]
mod third_party_objective;

/// Number of steps of each version.
const STEPS: usize = 600;

/// Returns the digits example with the given objective.
fn document(objective: &str) -> serde_json::Value {
    let text = fs::read_to_string("examples/pipelines/digits-dit-gft.json").expect("the example is there");
    let mut document: serde_json::Value = serde_json::from_str(&text).expect("the example is JSON");
    document["objective"]["type"] = objective.into();
    document
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
    println!("library      {:.0} kB", fs::metadata(&library).expect("the library was built").len() as f64 / 1000.0);
    let start = Instant::now();
    let read = Library::read(&library).expect("the file is a plugin library");
    read.check().expect("the library is compatible");
    read.open().expect("the library opens");
    println!("load         {:.1} ms", start.elapsed().as_secs_f64() * 1000.0);

    let seconds = turns::seconds(["gft_zero", "gft_zero_loaded"].map(document).to_vec(), STEPS);
    let median_ms = |seconds: &[f64]| {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        1000.0 * sorted[sorted.len() / 2]
    };
    println!("step         linked {:.1} ms, loaded {:.1} ms", median_ms(&seconds[0]), median_ms(&seconds[1]));
    let [median, low, high] = turns::ratio(&seconds[1], &seconds[0]);
    println!("             loaded / linked {median:.3} ({low:.3} to {high:.3}), {STEPS} pairs");
}

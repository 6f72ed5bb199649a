//! Measures training throughput, sampling throughput and peak memory of the digits DiT and of DiT-S/2 with every
//! objective, and the ratios to cfg.
//!
//!   cargo bench --workspace --bench dit [-- digits dit-s-2-16 dit-s-2-256] [gft mg distill cca]
//!
//! Every pipeline runs through the `unguided` command in its own process, which measures what a user waits for. The
//! table shows medians over the steps after the first and over three runs.
//!
//! The ratio of step times to cfg is measured separately: all objectives take turns in one process (`benches/turns`),
//! also with `"stopped_matmul_precision": "medium"`. Each ratio comes with its 95 % interval.

mod turns;

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use unguided as _;

/// A pipeline to measure.
struct Case {
    name: &'static str,
    data: String,
    backbone: &'static str,
    steps: usize,
    /// Number of rounds in which each objective takes one step.
    rounds: usize,
    batch: usize,
    columns: usize,
}

/// Number of runs per pipeline.
const RUNS: usize = 3;
/// Objectives, in the order in which they are measured. The last two start from the weights of the first.
const OBJECTIVES: [&str; 5] = ["cfg", "gft", "mg", "distill", "cca"];

impl Case {
    fn document(&self, objective: &str) -> String {
        let Self { name, data, backbone, steps, batch, columns, .. } = self;
        let (settings, reads_scale, from_cfg) = match objective {
            "mg" => (r#", "scale": {"type": "fixed", "scale": 1.5}, "t_high": 1.0"#, false, false),
            "gft" => ("", true, false),
            "distill" => ("", true, true),
            "cca" => (r#", "variant": {"type": "contrast", "beta": 1.0}"#, false, true),
            _ => ("", false, false),
        };
        let input = if reads_scale { r#", "guidance_input": "mlp""# } else { "" };
        let from = if from_cfg { format!(r#""from": {{"checkpoint": "{name}-cfg"}}, "#) } else { String::new() };
        let guidance = match objective {
            "cfg" => r#"{"type": "cfg", "scale": 2.0}"#,
            _ if reads_scale => r#"{"type": "none", "scale": 2.0}"#,
            _ => r#"{"type": "none"}"#,
        };
        format!(
            r#"{{"version": 1, "data": {data}, "tokenizer": {{"type": "pixels"}},
"backbone": {{"type": "dit", {backbone}, "num_classes": 10{input}}},
"objective": {{"type": "{objective}"{settings}}},
"train": {{{from}"steps": {steps}, "batch_size": {batch}, "learning_rate": 1e-3, "ema": {{"decay": 0.999}}, "log_every": 1, "sample_columns": {columns}}},
"sampler": {{"type": "ddim", "steps": 10}}, "guidance": {guidance}}}"#
        )
    }
}

/// Writes latents of 32x32x4, the shape that an autoencoder produces from 256x256 images. Their content does not affect
/// the timing.
fn latents(path: &Path) {
    let x: Vec<u8> = (0..64 * 4 * 32 * 32).flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes()).collect();
    let y: Vec<u8> = (0..64_i64).flat_map(|i| (i % 10).to_le_bytes()).collect();
    let view = |dtype, shape: &[usize], bytes| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes);
    let views = [
        ("x", view(safetensors::Dtype::F32, &[64, 4, 32, 32], &x).expect("the sizes agree")),
        ("y", view(safetensors::Dtype::I64, &[64], &y).expect("the sizes agree")),
    ];
    fs::write(path, safetensors::serialize(views, None).expect("two tensors")).expect("the folder is writable");
}

/// Returns the median training speed in images/s, the sampling speed in images/s, and the peak memory in MiB.
fn measure(folder: &Path, name: &str, document: &str) -> [f64; 3] {
    let pipeline = folder.join(format!("{name}.json"));
    fs::write(&pipeline, document).expect("the folder is writable");
    let run = folder.join(name);
    if run.exists() {
        fs::remove_dir_all(&run).expect("the run folder can be removed");
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_unguided"))
        .current_dir(folder)
        .args(["train", pipeline.to_str().unwrap(), "--run", run.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(fs::File::create(folder.join("errors")).expect("the folder is writable"))
        .spawn()
        .expect("the command starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0_f64;
    while child.try_wait().expect("the child can be polled").is_none() {
        // VmHWM is the highest resident size so far, so the last reading before the process ends is its peak.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let high =
            text.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next()?.parse().ok());
        peak = peak.max(high.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("the child has ended");
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    let sampling = text.split("image, ").nth(1).and_then(|t| t.split(' ').next()?.parse().ok()).unwrap_or(f64::NAN);
    let errors = || fs::read_to_string(folder.join("errors")).unwrap_or_default();
    assert!(output.status.success(), "{name}: {}", errors());
    let lines = fs::read_to_string(run.join("metrics.jsonl")).expect("the run logs its steps");
    let mut speeds: Vec<f64> = lines
        .lines()
        .skip(1)
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["images_per_second"].as_f64())
        .collect();
    speeds.sort_by(f64::total_cmp);
    [speeds[speeds.len() / 2], sampling, peak]
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("latents.safetensors");
    latents(&file);
    let embedded = r#"{"type": "digits"}"#.to_string();
    let cases = [
        Case {
            name: "digits",
            data: embedded.clone(),
            backbone: r#""hidden_size": 64, "depth": 3, "num_heads": 4, "patch_size": 2, "input_size": 8, "in_channels": 1"#,
            steps: 30,
            rounds: 60,
            batch: 128,
            columns: 4,
        },
        // DiT-S/2 on 16 tokens, and on the published 256 tokens.
        Case {
            name: "dit-s-2-16",
            data: embedded,
            backbone: r#""size": "S/2", "input_size": 8, "in_channels": 1"#,
            steps: 8,
            rounds: 25,
            batch: 32,
            columns: 4,
        },
        Case {
            name: "dit-s-2-256",
            data: format!(r#"{{"type": "latents", "path": {file:?}}}"#),
            backbone: r#""size": "S/2", "input_size": 32, "in_channels": 4"#,
            steps: 5,
            rounds: 15,
            batch: 8,
            columns: 1,
        },
    ];
    println!(
        "{:<19} {:>14} {:>16} {:>9} {:>12}  {:<20}  medium",
        "pipeline", "train images/s", "sample images/s", "peak MiB", "memory / cfg", "step / cfg"
    );
    let named: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    // Selects the names given on the command line, or all names if none is given.
    let chosen = |all: &[&'static str]| -> Vec<&'static str> {
        let chosen: Vec<_> = all.iter().copied().filter(|name| named.iter().any(|named| named == name)).collect();
        if chosen.is_empty() { all.to_vec() } else { chosen }
    };
    let names = chosen(&cases.each_ref().map(|case| case.name));
    let [cfg, others @ ..] = OBJECTIVES;
    let objectives: Vec<_> = std::iter::once(cfg).chain(chosen(&others)).collect();
    for case in cases.iter().filter(|case| names.contains(&case.name)) {
        let document = |objective: &&str| -> Value { serde_json::from_str(&case.document(objective)).expect("JSON") };
        let medium = |objective| {
            let mut document = document(objective);
            document["train"]["stopped_matmul_precision"] = "medium".into();
            document
        };
        let documents = objectives.iter().map(document).chain(objectives.iter().map(medium)).collect();
        let seconds = turns::seconds(documents, case.rounds);
        let mut peak_cfg = None;
        for (i, objective) in objectives.iter().enumerate() {
            let name = format!("{}-{objective}", case.name);
            // Peak memory depends on how the threads share the work. It varies by up to 10 % between runs.
            let runs = [(); RUNS].map(|()| measure(folder.path(), &name, &case.document(objective)));
            let [train, sample, peak] = std::array::from_fn(|column| {
                let mut values = runs.map(|run| run[column]);
                values.sort_by(f64::total_cmp);
                values[RUNS / 2]
            });
            let memory = peak / *peak_cfg.get_or_insert(peak);
            let [exact, medium] = [i, objectives.len() + i].map(|i| {
                let [ratio, low, high] = turns::ratio(&seconds[i], &seconds[0]);
                format!("{ratio:.2} ({low:.2} to {high:.2})")
            });
            println!("{name:<19} {train:>14.1} {sample:>16.2} {peak:>9.0} {memory:>12.2}  {exact:<20}  {medium}");
        }
    }
}

//! Train step and sampling throughput of the digits DiT and of DiT-S/2, with peak memory and the ratio gft / cfg.
//!
//!   cargo bench --bench dit
//!
//! Whole pipelines through the command's own trainer: what a user waits for. Medians over steps after the first.

use std::fs;
use std::path::Path;
use std::process::Command;

fn document(objective: &str, size: &str, steps: usize, batch: usize, guidance: &str) -> String {
    let input = if objective == "gft" { r#", "guidance_input": "mlp""# } else { "" };
    format!(
        r#"{{"version": 1, "data": {{"type": "digits"}}, "tokenizer": {{"type": "pixels"}},
"backbone": {{"type": "dit", {size}, "input_size": 8, "in_channels": 1, "num_classes": 10{input}}},
"objective": {{"type": "{objective}"}},
"train": {{"steps": {steps}, "batch_size": {batch}, "learning_rate": 1e-3, "log_every": 1, "sample_columns": 4}},
"sampler": {{"type": "ddim", "steps": 10}}, "guidance": {guidance}}}"#
    )
}

/// Median images a second while training, images a second while sampling, peak memory in MiB.
fn measure(folder: &Path, name: &str, document: &str) -> (f64, f64, f64) {
    let pipeline = folder.join(format!("{name}.json"));
    fs::write(&pipeline, document).expect("the folder is writable");
    let run = folder.join(name);
    let mut child = Command::new(env!("CARGO_BIN_EXE_unguided"))
        .args(["train", pipeline.to_str().unwrap(), "--run", run.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the command starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0_f64;
    while child.try_wait().expect("the child is ours").is_none() {
        // The kernel keeps the highest resident size; the last reading before the end is the peak.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let high =
            text.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next()?.parse().ok());
        peak = peak.max(high.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("the child has ended");
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    let sampling = text.split("an image, ").nth(1).and_then(|t| t.split(' ').next()?.parse().ok()).unwrap_or(f64::NAN);
    let lines = fs::read_to_string(run.join("metrics.jsonl")).expect("the run logs its steps");
    let mut speeds: Vec<f64> = lines
        .lines()
        .skip(1)
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["images_per_second"].as_f64())
        .collect();
    speeds.sort_by(f64::total_cmp);
    (speeds[speeds.len() / 2], sampling, peak)
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let digits = r#""hidden_size": 64, "depth": 3, "num_heads": 4, "patch_size": 2"#;
    // The width and depth of DiT-S/2 on 16 tokens: its per-token cost on images that are embedded in the binary.
    let small = r#""size": "S/2""#;
    println!("{:<18} {:>14} {:>16} {:>12}", "pipeline", "train images/s", "sample images/s", "peak MiB");
    for (name, size, steps, batch) in [("digits", digits, 30, 128), ("dit-s-2", small, 8, 32)] {
        let cfg = document("cfg", size, steps, batch, r#"{"type": "cfg", "scale": 2.0}"#);
        let gft = document("gft", size, steps, batch, r#"{"type": "none", "scale": 2.0}"#);
        let cfg = measure(folder.path(), &format!("{name}-cfg"), &cfg);
        let gft = measure(folder.path(), &format!("{name}-gft"), &gft);
        for (objective, (train, sample, peak)) in [("cfg", cfg), ("gft", gft)] {
            println!("{:<18} {train:>14.1} {sample:>16.1} {peak:>12.0}", format!("{name}-{objective}"));
        }
        println!(
            "{name}: a gft step takes {:.2} times a cfg step, its memory {:.2} times",
            cfg.0 / gft.0,
            gft.2 / cfg.2
        );
    }
}

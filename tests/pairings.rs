//! Any backbone trains with any objective. Every pair trains, saves, and samples with its family's sampler.

mod backbones;

use backbones::{backbones, caption};
use serde_json::json;
use std::fs;
use std::process::{Command, Output};
use unguided as _;

fn unguided(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).output().expect("the command starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn any_backbone_trains_with_any_objective() {
    let folder = tempfile::tempdir().unwrap();
    for (name, backbone, tokenizer, sampler) in backbones() {
        // `cfg` comes first: `distill` and `cca` start from its checkpoint.
        for (objective, reads_scale, from) in [
            ("cfg", false, false),
            ("gft", true, false),
            ("mg", false, false),
            ("distill", true, true),
            ("cca", false, true),
        ] {
            let mut backbone = backbone.clone();
            if reads_scale {
                backbone["guidance_input"] = json!(if name == "sd15" { "linear" } else { "mlp" });
            }
            let guided =
                if objective == "cfg" { json!({ "type": "cfg", "scale": 2.0 }) } else { json!({ "type": "none" }) };
            let mut train = json!({
                "steps": 2, "batch_size": 4, "learning_rate": 1e-3, "ema": { "decay": 0.9 }, "sample_columns": 1
            });
            if from {
                train["from"] = json!({ "checkpoint": folder.path().join(format!("{name}-cfg")) });
            }
            let mut document = json!({
                "version": 1, "data": { "type": "digits" }, "tokenizer": tokenizer, "backbone": backbone,
                "objective": { "type": objective }, "train": train, "sampler": sampler, "guidance": guided
            });
            if name == "sd15" {
                caption(&mut document);
            }
            let pipeline = folder.path().join(format!("{name}-{objective}.json"));
            fs::write(&pipeline, document.to_string()).unwrap();
            let run = folder.path().join(format!("{name}-{objective}"));
            let [pipeline, run_name] = [&pipeline, &run].map(|path| path.to_str().unwrap());
            let trained = unguided(&["train", pipeline, "--run", run_name]);
            assert!(trained.status.success(), "{name} with {objective}: {}", text(&trained));
            assert!(run.join("samples.png").exists(), "{name} with {objective}");
            let grid = folder.path().join("grid.png");
            let sampled = unguided(&["sample", run_name, "--count", "1", "--output", grid.to_str().unwrap()]);
            assert!(sampled.status.success(), "{name} with {objective}: {}", text(&sampled));
            if objective == "mg" {
                // The trained network computes in bf16, its teacher in f32.
                let half = format!("{run_name}-bf16");
                let trained = unguided(&["train", pipeline, "--run", &half, "--set", "/train/precision=bf16"]);
                assert!(trained.status.success(), "{name} with {objective} in bf16: {}", text(&trained));
            }
        }
    }
}

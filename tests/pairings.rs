//! Any backbone trains with any objective. Every pair trains, saves, and samples with its family's sampler.

use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Output};
use unguided as _;

fn unguided(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).output().expect("the command starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns a small backbone of each kind with its tokenizer and sampler.
fn backbones() -> [(&'static str, Value, Value, Value); 6] {
    [
        (
            "dit",
            json!({
                "type": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "input_size": 8,
                "in_channels": 1, "num_classes": 10
            }),
            json!({ "type": "pixels" }),
            json!({ "type": "ddim", "steps": 2 }),
        ),
        (
            "sit",
            json!({
                "type": "sit", "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "input_size": 8,
                "in_channels": 1, "num_classes": 10
            }),
            json!({ "type": "pixels" }),
            json!({ "type": "euler", "steps": 2 }),
        ),
        (
            "sd15",
            json!({
                "type": "sd15", "sample_size": 6, "in_channels": 48, "block_out_channels": [16], "layers_per_block": 1,
                "attention": [0], "num_heads": 2, "cross_attention_dim": 8, "norm_num_groups": 4,
                "text_encoder": { "vocab_size": 23, "length": 10, "layers": 1, "num_heads": 2 }
            }),
            json!({ "type": "pixels", "patch": 4 }),
            json!({ "type": "k_diffusion", "steps": 2 }),
        ),
        (
            "llamagen",
            json!({
                "type": "llamagen", "dim": 16, "n_layer": 1, "n_head": 2, "vocab_size": 17, "block_size": 64,
                "num_classes": 10, "multiple_of": 8
            }),
            json!({ "type": "levels", "values": 17 }),
            json!({ "type": "autoregressive" }),
        ),
        (
            "var",
            json!({
                "type": "var", "depth": 1, "embed_dim": 16, "num_heads": 2, "patch_nums": [1, 2, 4, 8], "V": 33,
                "Cvae": 1, "num_classes": 10
            }),
            json!({ "type": "pyramid", "values": 17 }),
            json!({ "type": "next_level" }),
        ),
        (
            "mar",
            json!({
                "type": "mar", "img_size": 8, "vae_stride": 1, "patch_size": 2, "vae_embed_dim": 1, "class_num": 10,
                "encoder_embed_dim": 16, "encoder_depth": 1, "encoder_num_heads": 2, "diffloss_d": 1, "diffloss_w": 16,
                "buffer_size": 2, "learn_sigma": false, "process": { "betas": "linear", "variance_loss": false }
            }),
            json!({ "type": "pixels" }),
            json!({ "type": "masked", "iterations": 3, "head": { "type": "ddim", "steps": 2 } }),
        ),
    ]
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
                // Take the captions and the list of their words from the example.
                let example = fs::read_to_string("examples/pipelines/shapes-sd15-cfg-tiny.json").unwrap();
                let example: Value = serde_json::from_str(&example).unwrap();
                (document["data"], document["conditioner"]) = (example["data"].clone(), example["conditioner"].clone());
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

//! The folder of one test, the documents in it, and the Python that reads what was exported.

use conditioners::ClipText;
use framework::burn::store::bridge;
use framework::burn::tensor::{Device, TensorData};
use framework::checkpoint::names::OfficialNames;
use framework::checkpoint::official;
use framework::checkpoint::open;
use framework::checkpoint::tensor_file::save_tensors;
use framework::nn::parameters::{Init, initialize};
use framework::random::Random;
use goldens::numbers;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the files of one test.
pub struct Room(tempfile::TempDir);

impl Room {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the command. Returns its exit code and its output.
    pub fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    }

    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> String {
        let (code, text) = self.run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {text}");
        text
    }

    /// Asserts that the command refuses its input, and returns the message.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let (code, text) = self.run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        text
    }

    pub fn export(&self, from: &str, to: &str, folder: &str, more: &[&str]) -> String {
        self.done(&[&["export", &self.at(from), "--to", to, &self.at(folder)], more].concat())
    }

    pub fn write(&self, name: &str, document: &Value) -> String {
        fs::write(self.path(name), document.to_string()).unwrap();
        self.at(name)
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    pub fn tensors(&self, name: &str) -> BTreeMap<String, TensorData> {
        tensors(&self.path(name))
    }

    /// Returns what the command's `forward` predicts with the weights of a run.
    pub fn forward(&self, pipeline: &str, weights: &str, input: &str) -> Vec<f64> {
        let [weights, input, output] = [weights, input, "forward.safetensors"].map(|name| self.at(name));
        self.done(&[
            "forward",
            "--pipeline",
            &self.at(pipeline),
            "--checkpoint",
            &weights,
            "--input",
            &input,
            "--output",
            &output,
        ]);
        numbers(self.tensors("forward.safetensors")["prediction"].clone())
    }
}

pub fn tensors(path: &Path) -> BTreeMap<String, TensorData> {
    let file = open::open(path).unwrap();
    file.iter().map(|(name, tensor)| (name.clone(), bridge::to_data(tensor).unwrap())).collect()
}

/// Runs tests/export/reads.py. Returns whether there is a Python to run it.
#[track_caller]
pub fn python(test: &str, arguments: &[&str]) -> bool {
    let Some(python) = std::env::var_os("UNGUIDED_PYTHON") else {
        goldens::skipped(test, "UNGUIDED_PYTHON names no Python with torch, diffusers, transformers and peft");
        return false;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/export/reads.py");
    let output = Command::new(python).arg(script).args(arguments).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {text}");
    true
}

/// Values that look like noise, the same in every run.
pub fn values(shape: &[usize], seed: f64) -> TensorData {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| ((i as f64 * 12.9898 + seed).sin() * 43758.5453).fract() as f32 * 2.0;
    TensorData::new((0..count).map(value).collect::<Vec<f32>>(), shape.to_vec())
}

/// Sizes of the text encoder.
fn clip(room: &Room) -> Value {
    json!({
        "type": "clip_text", "path": room.at("clip.safetensors"),
        "tokenizer": goldens::path("bpe_simple_vocab_16e6.txt.gz"), "length": 16, "hidden_size": 24,
        "intermediate_size": 96, "num_layers": 2, "num_heads": 4
    })
}

/// Returns the conditioner of [`clip`].
pub fn conditioner(room: &Room) -> ClipText {
    let mut entry = clip(room);
    entry.as_object_mut().unwrap().remove("type");
    serde_json::from_value(entry).unwrap()
}

/// A small Stable Diffusion: recorded U-Net and autoencoder, and a random text encoder.
pub fn stable_diffusion(room: &Room, objective: &str, guidance: Value, train: Value) -> Value {
    let conditioner = conditioner(room);
    let network = initialize(conditioner.init(&Device::flex()), &Random::new(7), &|path, _| match path {
        _ if path.contains("norm") && path.ends_with("weight") => Init::Ones,
        _ => Init::Normal(0.1),
    });
    let formats: Vec<OfficialNames> = conditioner.formats();
    official::save(&network, &formats[0], &room.path("clip.safetensors")).unwrap();
    let mut whole = json!({
        "steps": 2, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 0, "log_every": 1, "sample_columns": 1,
        "from": { "checkpoint": goldens::path("sd15_diffusers_unet.safetensors") }, "ema": { "decay": 0.5 }
    });
    for (key, value) in train.as_object().unwrap() {
        whole[key] = value.clone();
    }
    json!({
        "version": 1, "about": "A small Stable Diffusion for a test.",
        "data": { "type": "shapes", "image_size": 24, "groups": 1, "count": 8 },
        "tokenizer": {
            "type": "sd_vae", "path": goldens::path("sd15_diffusers_vae.safetensors"), "block_out_channels": [32, 64],
            "layers_per_block": 1
        },
        "conditioner": clip(room),
        "backbone": {
            "type": "sd15", "sample_size": 12, "in_channels": 4, "block_out_channels": [32, 64], "layers_per_block": 1,
            "attention": [0], "num_heads": 8, "cross_attention_dim": 24, "norm_num_groups": 16,
            "guidance_input": guidance
        },
        "objective": { "type": objective }, "train": whole, "sampler": { "type": "ddim", "steps": 2 },
        "guidance": { "type": "none" }
    })
}

/// Writes the input of `forward` for [`stable_diffusion`], with and without a guidance number.
pub fn inputs(room: &Room, beta: f64) {
    let mut given = vec![
        ("x".to_string(), values(&[2, 4, 12, 12], 1.0)),
        ("t".to_string(), TensorData::new(vec![7.0_f32, 801.0], [2])),
        ("context".to_string(), values(&[2, 16, 24], 2.0)),
    ];
    save_tensors(&given, &room.path("plain.safetensors")).unwrap();
    given.push(("beta".to_string(), TensorData::new(vec![beta as f32; 2], [2])));
    save_tensors(&given, &room.path("in.safetensors")).unwrap();
}

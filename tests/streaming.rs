//! Loading a checkpoint needs little more memory than the network, because the file is read tensor by tensor.
#![cfg(target_os = "linux")]

#[allow(dead_code)]
mod torch;

use framework::burn::tensor::Device;
use framework::checkpoint::names::Layout;
use framework::nn::parameters;
use registry::Registry;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use torch::{Entry, tensor, text, whole};
use unguided as _;

/// Returns a document with a DiT of 470 MB. Its class table is a tenth of that.
fn document() -> Value {
    json!({
        "version": 1, "data": { "type": "latents", "path": "absent" }, "tokenizer": { "type": "pixels" },
        "backbone": {
            "type": "dit", "hidden_size": 768, "depth": 10, "num_heads": 12, "patch_size": 2, "input_size": 8,
            "in_channels": 4, "num_classes": 15_000
        },
        "objective": { "type": "cfg" }, "train": { "steps": 1, "batch_size": 1, "learning_rate": 1e-4 },
        "sampler": { "type": "ddim", "steps": 2 }, "guidance": { "type": "none" }
    })
}

/// Returns the name and shape of every tensor in the official file.
fn tensors(document: &Value) -> Vec<(String, Vec<usize>)> {
    let registry = Registry::linked();
    let parsed = registry.parse_value(document.clone()).unwrap();
    let pipeline = registry.build(parsed);
    let names = &pipeline.backbone.formats()[0];
    let parameters = parameters::parameters(&pipeline.backbone.init(&Device::flex()));
    let foreign = |(path, shape, _): (String, Vec<usize>, bool)| {
        let name = (names.of)(&path);
        let shape = match name.layout {
            Layout::Same => shape,
            Layout::Transposed => vec![shape[1], shape[0]],
            Layout::PatchConv { patch } => vec![shape[1], shape[0] / (patch * patch), patch, patch],
            Layout::Reshaped(theirs) => theirs,
            Layout::Part { .. } => panic!("a DiT has no parts"),
        };
        (name.name, shape)
    };
    parameters.into_iter().map(foreign).collect()
}

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Writes a sparse safetensors file whose tensors are zero.
fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>)], dtype: &str, size: usize) {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + size * count(shape);
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let header = Value::from(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
}

/// Writes a sparse `torch.save` file whose tensors are zero.
fn write_torch(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let mut pickle = b"}(".to_vec();
    let mut entries = Vec::new();
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let strides: Vec<i64> = (1..=shape.len()).map(|d| count(&shape[d..]) as i64).collect();
        let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
        let numbers: i64 = shape.iter().product();
        pickle.extend([text(name), tensor(&i.to_string(), numbers, 0, &shape, &strides)].concat());
        let bytes = 4 * numbers as u32;
        entries.push(Entry { name: format!("m/data/{i}"), bytes: &[], hole: bytes, method: 0, says: bytes });
    }
    pickle.push(b'u');
    let pickle = whole(&pickle);
    let says = pickle.len() as u32;
    entries.push(Entry { name: "m/data.pkl".into(), bytes: &pickle, hole: 0, method: 0, says });
    torch::zip(&mut File::create(path).unwrap(), &entries).unwrap();
}

/// Returns the command's peak anonymous memory in bytes while it loads `checkpoint`, and its stderr.
///
/// Mapped pages of the file do not count, because the system can reclaim them at any time.
fn peak(pipeline: &Path, checkpoint: &Path) -> (usize, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_unguided"))
        .args(["forward", "--input", "absent", "--output", "absent", "--pipeline"])
        .arg(pipeline)
        .arg("--checkpoint")
        .arg(checkpoint)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
        peak = peak.max(1024 * kilobytes.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    (peak, String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap())
}

#[test]
fn loading_holds_a_fifth_more_than_the_network() {
    let folder = tempfile::tempdir().unwrap();
    let (document, checkpoint) = (folder.path().join("a.json"), folder.path().join("a.safetensors"));
    fs::write(&document, self::document().to_string()).unwrap();
    let tensors = tensors(&self::document());
    let sizes: Vec<usize> = tensors.iter().map(|(_, shape)| 4 * count(shape)).collect();
    let (model, largest) = (sizes.iter().sum::<usize>(), *sizes.iter().max().unwrap());
    assert!(model > 400 << 20 && (9..12).contains(&(model / largest)), "{model} bytes, largest tensor {largest}");
    let torch = folder.path().join("a.pt");
    let (before, _) = peak(&document, &folder.path().join("absent"));
    let loads = |name: &str, checkpoint: &Path| {
        let (peak, said) = peak(&document, checkpoint);
        // The command fails at its missing input, after it has loaded the weights.
        assert!(said.contains("tensors used") && said.contains("absent"), "{name}: {said}");
        let peak = peak - before;
        eprintln!("{name}: {} MB held to load a network of {} MB", peak >> 20, model >> 20);
        assert!(peak >= model, "{name}: measured {peak} bytes, less than the network's {model}");
        assert!((peak as f64) < 1.2 * model as f64, "{name}: {peak} bytes for a network of {model}");
    };
    for (dtype, size) in [("F32", 4), ("F16", 2)] {
        write_safetensors(&checkpoint, &tensors, dtype, size);
        loads(dtype, &checkpoint);
    }
    write_torch(&torch, &tensors);
    loads("torch", &torch);
}

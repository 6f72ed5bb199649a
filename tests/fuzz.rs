//! Fuzzes the registry with ten thousand mutated example documents and every linked plugin. Each document is valid and
//! keeps every value that was written, null included, or every problem states its location. None causes a panic.

#[path = "../registry/tests/mutations/mod.rs"]
mod mutations;

use proptest::test_runner::{Config, TestRunner};
use registry::Registry;
use serde_json::Value;
use std::cell::Cell;
use std::path::Path;
use unguided as _;

/// Returns the committed examples, and documents with the options that no example uses.
fn documents() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pipelines");
    let documents = |folder: &Path| -> Vec<_> {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = paths.filter(|path| path.is_file()).collect();
        paths.sort();
        paths
    };
    let paths = [documents(&folder), documents(&folder.join("guidance"))].concat();
    let mut documents: Vec<Value> =
        paths.iter().map(|path| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()).collect();
    let first = documents[0].clone();
    for (slot, value) in [
        (
            "data",
            serde_json::json!({ "type": "image_folder", "path": "images", "image_size": 8, "channels": 1, "horizontal_flip": true }),
        ),
        ("data", serde_json::json!({ "type": "latents", "path": "latents.safetensors" })),
        (
            "tokenizer",
            serde_json::json!({ "type": "vq_f16", "path": "vq.pt", "codebook_size": 64, "ch": 32, "ch_mult": [1, 2] }),
        ),
        ("tokenizer", serde_json::json!({ "type": "var_vqvae", "path": "vae.pth", "v_patch_nums": [1, 2, 4] })),
        ("tokenizer", serde_json::json!({ "type": "kl_f16", "path": "kl16.ckpt", "scaling_factor": 0.5 })),
        ("sampler", serde_json::json!({ "type": "ddpm", "steps": 20 })),
        ("sampler", serde_json::json!({ "type": "dpm_solver_pp", "steps": 20, "order": 3, "spacing": "log_snr" })),
        (
            "backbone",
            serde_json::json!({
                "type": "dit", "size": "S/2", "input_size": 8, "in_channels": 1, "num_classes": 10, "learn_sigma": true,
                "process": { "betas": "cosine", "timesteps": 100, "prediction": "v" }
            }),
        ),
    ] {
        let mut document = first.clone();
        document[slot] = value;
        documents.push(document);
    }
    documents
}

/// Writes null into every field of the plugins of each document that may be null, one field at a time. The resolved
/// document must contain it: a field that is left out when it is null would lose what was written.
#[test]
fn a_written_null_is_kept() {
    let registry = Registry::linked();
    let schema = registry.schema();
    let mut nulls = 0;
    for document in documents() {
        let slots = document.as_object().unwrap().iter().filter(|(_, entry)| entry.get("type").is_some());
        for (slot, entry) in slots {
            let plugin = format!("{slot}.{}", entry["type"].as_str().unwrap());
            let fields = schema["$defs"][&plugin]["properties"].as_object().unwrap().keys();
            for field in fields {
                let mut document = document.clone();
                document[slot][field] = Value::Null;
                if let Ok(parsed) = registry.parse(&document.to_string()) {
                    let resolved = registry.resolved(&parsed);
                    assert_eq!(resolved[slot].get(field), Some(&Value::Null), "{slot}/{field}");
                    nulls += 1;
                }
            }
        }
    }
    assert!(nulls > 100, "{nulls} fields were null");
}

#[test]
fn nothing_written_is_ignored() {
    let registry = Registry::linked();
    let valid = Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 10_000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&mutations::a_mutant(documents()), |mutant| {
        valid.set(valid.get() + usize::from(mutations::is_located_or_kept(&registry, &mutant)?));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    // Both outcomes must occur. If every mutant were refused, the test would prove nothing about silent defaults.
    assert!((100..9_000).contains(&valid.get()), "{} of 10,000 mutants are valid", valid.get());
}

//! The documents of published experiments pass `check`. They need ImageNet and many GPUs, so nothing trains them here.

use registry::Registry;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use unguided as _;

/// Pairs that papers report, by network. Each has a document in the folder.
const EXPERIMENTS: [&str; 24] = [
    "dit-b-2-gft",
    "dit-xl-2-cfg",
    "dit-xl-2-distill",
    "dit-xl-2-gft",
    "dit-xl-2-mg",
    "llamagen-3b-cca",
    "llamagen-3b-cfg",
    "llamagen-3b-gft",
    "llamagen-l-cca",
    "llamagen-l-cfg",
    "llamagen-l-gft",
    "mar-b-gft",
    "mar-l-cfg",
    "mar-l-gft",
    "sd15-cfg",
    "sd15-distill",
    "sd15-gft",
    "sit-xl-2-cfg",
    "sit-xl-2-mg",
    "sit-xl-2-mg-scale-input",
    "var-d30-cca",
    "var-d30-cfg",
    "var-d30-gft",
    "var-d16-gft",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pipelines/published")
}

#[test]
fn every_published_experiment_has_a_document_that_passes_check() {
    let found: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, EXPERIMENTS.map(String::from).into());
    let registry = Registry::linked();
    for name in found {
        let text = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        let document = registry.parse_and_check(&text).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        let resolved = registry.resolved(&document);
        let objective = resolved.pointer("/objective/type").and_then(Value::as_str).unwrap();
        assert!(name.contains(objective), "{name} trains {objective}");
    }
}

#[test]
fn networks_have_their_published_number_of_parameters() {
    use framework::burn::tensor::Device;
    use framework::nn::parameters;
    let registry = Registry::linked();
    // Millions, as the papers print them, without the guidance input.
    for (name, millions) in [
        ("dit-xl-2-cfg", 675.0),
        ("sit-xl-2-cfg", 675.0),
        ("var-d30-cfg", 2000.0),
        ("llamagen-l-cfg", 343.0),
        ("llamagen-3b-cfg", 3100.0),
        ("mar-l-cfg", 479.0),
        ("sd15-cfg", 860.0),
    ] {
        let text = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        let pipeline = registry.build(registry.parse_and_check(&text).unwrap());
        let count = parameters::count(&pipeline.backbone.init(&Device::flex())) as f64 / 1e6;
        assert!((count / millions - 1.0).abs() < 0.01, "{name}: {count:.1} million parameters, published {millions}");
    }
}

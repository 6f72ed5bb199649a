//! Any backbone trains with any objective. One rule writes the documents of all pairs to `examples/pipelines/pairs`
//! (`UPDATE_PAIRS=1 cargo test --test pairings`), and every pair trains, resumes, samples and is measured.

mod backbones;

use backbones::{backbones, caption};
use registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use unguided as _;

/// The objectives. `cfg` comes first, because `distill` and `cca` start from its run.
const OBJECTIVES: [&str; 5] = ["cfg", "gft", "mg", "distill", "cca"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pipelines/pairs")
}

/// The rule: returns the document of each pair with its name.
fn documents() -> Vec<(String, Value)> {
    let pairs = backbones().into_iter().flat_map(|parts| OBJECTIVES.map(|objective| (parts.clone(), objective)));
    pairs
        .map(|((name, backbone, tokenizer, sampler), objective)| {
            let reads_scale = ["gft", "distill"].contains(&objective);
            let mut backbone = backbone;
            if reads_scale {
                backbone["guidance_input"] = json!(if name == "sd15" { "linear" } else { "mlp" });
            }
            let file = format!("{name}-{objective}");
            let before = match objective {
                "distill" | "cca" => format!(" Train {name}-cfg.json first, because this run starts from it."),
                _ => String::new(),
            };
            let about = format!(
                "Pair of backbone {name} and objective {objective}, in seconds on a CPU.{before} \
             Run: unguided train examples/pipelines/pairs/{file}.json"
            );
            let mut train = json!({
                "steps": 3, "batch_size": 4, "learning_rate": 1e-3, "ema": { "decay": 0.9 }, "sample_columns": 1
            });
            if !before.is_empty() {
                train["from"] = json!({ "checkpoint": format!("runs/{name}-cfg") });
            }
            let guidance = match objective {
                "cfg" => json!({ "type": "cfg", "scale": 2.0 }),
                _ if reads_scale => json!({ "type": "none", "scale": 2.0 }),
                _ => json!({ "type": "none" }),
            };
            let metric = if name == "sd15" { "caption_accuracy" } else { "nearest_neighbour" };
            let mut document = json!({
                "$schema": "../../../pipeline.schema.json", "version": 1, "about": about, "data": { "type": "digits" },
                "tokenizer": tokenizer, "backbone": backbone, "objective": { "type": objective }, "train": train,
                "sampler": sampler, "guidance": guidance, "metrics": [{ "type": metric }]
            });
            if name == "sd15" {
                caption(&mut document);
            }
            (file, document)
        })
        .collect()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command in `folder`, which contains the runs.
#[track_caller]
fn unguided(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

#[test]
fn one_rule_writes_the_documents_of_all_pairs() {
    let written = documents();
    assert_eq!(written.len(), 30);
    if std::env::var_os("UPDATE_PAIRS").is_some() {
        fs::create_dir_all(folder()).unwrap();
        for (name, document) in &written {
            let text = format!("{}\n", serde_json::to_string_pretty(document).unwrap());
            fs::write(folder().join(format!("{name}.json")), text).unwrap();
        }
    }
    let names: BTreeSet<String> = written.iter().map(|(name, _)| format!("{name}.json")).collect();
    let found = fs::read_dir(folder()).expect("run UPDATE_PAIRS=1 cargo test --test pairings");
    let found: BTreeSet<String> = found.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, names);
    for (name, document) in written {
        let text = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        let found: Value = serde_json::from_str(&text).unwrap();
        assert!(found == document, "{name}.json differs from the rule: run UPDATE_PAIRS=1 cargo test --test pairings");
    }
}

#[test]
fn every_pair_trains_resumes_samples_and_is_measured() {
    let runs = tempfile::tempdir().unwrap();
    for (name, _) in documents() {
        let document = folder().join(format!("{name}.json"));
        let (document, run) = (document.to_str().unwrap(), format!("runs/{name}"));
        unguided(runs.path(), &["train", document, "--set", "/train/steps=2"]);
        let resumed = unguided(runs.path(), &["train", document]);
        assert!(resumed.contains("(step 2)"), "{name}: {resumed}");
        assert!(runs.path().join(&run).join("samples.png").exists(), "{name}");
        let measured = unguided(runs.path(), &["sample", &run, "--count", "2", "--metrics"]);
        let metric = if name.starts_with("sd15") { "caption_accuracy" } else { "nearest_neighbour" };
        assert!(measured.contains(metric), "{name}: {measured}");
        if name.ends_with("-mg") {
            // The trained network computes in bf16, its teacher in f32.
            let half = ["--run", "runs/half", "--set", "/train/precision=bf16", "--set", "/metrics=[]"];
            unguided(runs.path(), &[&["train", document][..], &half].concat());
            fs::remove_dir_all(runs.path().join("runs/half")).unwrap();
        }
    }
    // A schedule of the guidance number along sampling gives the same samples with and without a cache.
    for name in ["llamagen-gft", "var-gft"] {
        let sampled = |cache: &str, file: &str| {
            let schedule = "/guidance/schedule={\"type\": \"power_cosine\", \"power\": 1.0}";
            let run = format!("runs/{name}");
            let set = ["--set", schedule, "--set", cache, "--output", file];
            unguided(runs.path(), &[&["sample", &run, "--count", "2"][..], &set].concat());
            image::open(runs.path().join(file)).unwrap().into_rgb8()
        };
        assert!(sampled("/sampler/cache=true", "a.png") == sampled("/sampler/cache=false", "b.png"), "{name}");
    }
}

#[test]
fn an_impossible_pair_is_refused_with_the_nearest_that_works() {
    let registry = Registry::linked();
    let problems = |document: &Value| {
        let document = registry.parse_value(document.clone()).unwrap();
        registry.check(&document)
    };
    let (mut without_input, mut without_average, mut without_reference) = (0, 0, 0);
    for (name, document) in documents() {
        assert_eq!(problems(&document), [], "{name}");
        if name.ends_with("-gft") || name.ends_with("-distill") {
            let mut broken = document.clone();
            broken["backbone"].as_object_mut().unwrap().remove("guidance_input");
            let fix = problems(&broken).into_iter().find_map(|problem| problem.fix).unwrap();
            let value = fix.strip_prefix("set /backbone/guidance_input to ").unwrap_or_else(|| panic!("{name}: {fix}"));
            broken["backbone"]["guidance_input"] = serde_json::from_str(value).unwrap();
            assert_eq!(problems(&broken), [], "{name}: {fix}");
            without_input += 1;
        }
        if name.ends_with("-mg") {
            let mut broken = document.clone();
            broken["train"].as_object_mut().unwrap().remove("ema");
            let fix = problems(&broken).into_iter().find_map(|problem| problem.fix).unwrap();
            let value = fix.strip_prefix("set /train/ema to ").unwrap_or_else(|| panic!("{name}: {fix}"));
            broken["train"]["ema"] = serde_json::from_str(value).unwrap();
            assert_eq!(problems(&broken), [], "{name}: {fix}");
            without_average += 1;
        }
        if name.ends_with("-distill") || name.ends_with("-cca") {
            let mut broken = document.clone();
            broken["train"].as_object_mut().unwrap().remove("from");
            let found = problems(&broken);
            let fix = found.iter().find_map(|problem| problem.fix.as_deref()).unwrap();
            assert!(fix.contains("objective \"cfg\" first"), "{name}: {fix}");
            without_reference += 1;
        }
    }
    assert_eq!([without_input, without_average, without_reference], [12, 6, 12]);
}

#[test]
fn the_list_of_pairs_names_every_document_with_its_paper() {
    let listed = unguided(Path::new("."), &["list", "--pairs"]);
    for (name, _) in documents() {
        let file = format!("examples/pipelines/pairs/{name}.json");
        assert_eq!(listed.matches(&file).count(), 1, "{listed}");
    }
    let row = |backbone: &str, objective: &str| {
        let mut rows = listed.lines().filter(|line| line.split_whitespace().take(2).eq([backbone, objective]));
        rows.next().unwrap_or_else(|| panic!("{backbone} {objective}: {listed}")).to_string()
    };
    assert!(row("dit", "gft").contains("arXiv:2501.15420") && row("dit", "gft").contains("at scale 1 / beta"));
    assert!(row("sit", "cca").contains("extension") && row("mar", "mg").contains("extension"));
    assert_eq!(listed.lines().filter(|line| line.contains(" extension ")).count(), 19);
}

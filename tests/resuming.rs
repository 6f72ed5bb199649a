//! What a run may change when it goes on, and what it may start from.

use framework::checkpoint::{self, Checkpoint};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use unguided as _;

/// A document in a temporary folder, and the runs that it trains.
struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    fn new() -> Self {
        let runs = Self { folder: tempfile::tempdir().unwrap() };
        let text = fs::read_to_string("examples/pipelines/digits-dit-cfg-tiny.json").unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document["metrics"] = json!([]);
        document["train"]["steps"] = json!(6);
        document["train"]["save_every"] = json!(3);
        // A constant learning rate does not depend on the number of steps.
        document["train"].as_object_mut().unwrap().remove("learning_rate_decay");
        fs::write(runs.document(), document.to_string()).unwrap();
        runs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn document(&self) -> PathBuf {
        self.path("document.json")
    }

    /// Trains the document in the folder `run`.
    fn train(&self, run: &str, more: &[&str]) -> Output {
        let (document, run) = (self.document(), self.path(run));
        let first = ["train", document.to_str().unwrap(), "--run", run.to_str().unwrap()];
        Command::new(env!("CARGO_BIN_EXE_unguided")).args(first).args(more).output().expect("the command starts")
    }

    /// Loads the checkpoint of a run at a step.
    fn at(&self, run: &str, step: usize) -> Checkpoint {
        Checkpoint::load(&self.checkpoint(run, step)).unwrap()
    }

    fn checkpoint(&self, run: &str, step: usize) -> PathBuf {
        self.path(run).join("checkpoints").join(checkpoint::file_name(step))
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    text(output)
}

#[track_caller]
fn refused(output: &Output, code: i32, says: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    assert!(text(output).contains(says), "{}", text(output));
}

#[test]
fn a_run_goes_on_with_more_steps_and_with_other_settings_that_do_not_bind_it() {
    let runs = Runs::new();
    succeeds(&runs.train("whole", &["--set", "/train/steps=12"]));
    succeeds(&runs.train("run", &[]));
    let said = succeeds(&runs.train("run", &["--set", "/train/steps=12", "--set", "/about=\"a remark\""]));
    assert!(said.contains("changed since the run began: /about, /train/steps"), "{said}");
    assert!(said.contains("steps: 6 before, 12 now"), "{said}");
    let (whole, longer) = (runs.at("whole", 12), runs.at("run", 12));
    assert!(whole.model == longer.model && whole.ema == longer.ema, "the longer run has other bits");
    for change in [
        "/train/log_every=2",
        "/train/sample_columns=1",
        "/sampler/steps=3",
        "/guidance/scale=1.5",
        "/metrics=[{\"type\":\"class_accuracy\"}]",
    ] {
        succeeds(&runs.train("run", &["--set", "/train/steps=12", "--set", change]));
    }
    for (change, pointer) in [("/train/seed=1", "/train/seed"), ("/train/batch_size=8", "/train/batch_size")] {
        refused(&runs.train("run", &["--set", "/train/steps=12", "--set", change]), 2, pointer);
    }
    // Fewer steps than the checkpoint has.
    refused(&runs.train("run", &["--set", "/train/steps=9"]), 2, "/train/steps");
}

#[test]
fn a_checkpoint_without_an_average_starts_the_average_from_its_weights() {
    let runs = Runs::new();
    succeeds(&runs.train("run", &[]));
    // A checkpoint of `convert` has weights only.
    let mut weights = runs.at("run", 6);
    weights = Checkpoint { step: 0, ema: None, optimizer: Vec::new(), losses: (0.0, 0), ..weights };
    let path = runs.path("weights.safetensors");
    weights.save(&path).unwrap();
    let said = succeeds(&runs.train("again", &["--resume-from", path.to_str().unwrap()]));
    assert!(said.contains("the average starts from its weights"), "{said}");
    let again = runs.at("again", 6);
    let average = again.ema.expect("the document asks for an average");
    assert!(average.keys().eq(again.model.keys()) && average != again.model);
}

#[test]
fn checkpoints_with_inconsistent_content_are_refused() {
    let runs = Runs::new();
    succeeds(&runs.train("run", &[]));
    let last = runs.checkpoint("run", 6);
    let good = fs::read(&last).unwrap();
    let resume = |path: &Path| runs.train("run", &["--resume-from", path.to_str().unwrap()]);
    // The name says another step.
    let renamed = runs.path("step-000000005.safetensors");
    fs::copy(&last, &renamed).unwrap();
    refused(&resume(&renamed), 1, "its name says step 5, its content says step 6");
    // Steps beyond the last, and steps without optimizer state.
    let altered = runs.path("altered.safetensors");
    let checkpoint = runs.at("run", 6);
    Checkpoint { step: 1_000_000_000, ..checkpoint.clone() }.save(&altered).unwrap();
    refused(&resume(&altered), 1, "beyond the last step 6");
    Checkpoint { optimizer: Vec::new(), ..checkpoint.clone() }.save(&altered).unwrap();
    refused(&resume(&altered), 2, "but no optimizer state");
    Checkpoint { losses: (f64::NAN, 3), ..checkpoint }.save(&altered).unwrap();
    refused(&resume(&altered), 1, "are not finite numbers");
    assert!(fs::read(&last).unwrap() == good, "a refused checkpoint changed the run");
}

#[test]
fn a_start_without_a_checkpoint_binds_the_folder_to_no_document() {
    let runs = Runs::new();
    // The data are missing.
    let failed = runs.train(
        "run",
        &["--set", "/data={\"type\":\"image_folder\",\"path\":\"absent\",\"image_size\":8,\"channels\":1}"],
    );
    assert!(!failed.status.success(), "{}", text(&failed));
    succeeds(&runs.train("run", &[]));
}

#[test]
fn dropout_masks_repeat_after_an_interruption_and_with_any_number_of_workers() {
    for (name, rates) in [
        ("llamagen", json!({ "token_dropout_p": 0.1, "resid_dropout_p": 0.2, "ffn_dropout_p": 0.1 })),
        ("var", json!({ "drop_rate": 0.1, "drop_path_rate": 0.3 })),
        ("mar", json!({ "proj_dropout": 0.2 })),
    ] {
        let runs = Runs::new();
        let text = fs::read_to_string(format!("examples/pipelines/pairs/{name}-gft.json")).unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document["metrics"] = json!([]);
        document["train"]["steps"] = json!(4);
        document["train"]["accumulate"] = json!(2);
        let write = |document: &Value| fs::write(runs.document(), document.to_string()).unwrap();
        write(&document);
        succeeds(&runs.train("plain", &[]));
        document["backbone"].as_object_mut().unwrap().extend(rates.as_object().unwrap().clone());
        write(&document);
        succeeds(&runs.train("whole", &[]));
        succeeds(&runs.train("parts", &["--set", "/train/steps=2"]));
        succeeds(&runs.train("parts", &[]));
        succeeds(&runs.train("workers", &["--set", "/train/workers=2"]));
        let whole = runs.at("whole", 4).model;
        assert!(whole != runs.at("plain", 4).model, "{name}: dropout changes nothing");
        assert!(whole == runs.at("parts", 4).model, "{name}: the resumed run has other masks");
        assert!(whole == runs.at("workers", 4).model, "{name}: two workers have other masks");
    }
}

//! Measurements during a training, and metrics that fail after it.

mod commands;

use commands::{command, done, refused, text, wait_for};
use framework::checkpoint::{Checkpoint, file_name};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use unguided as _;

const TINY: &str = "examples/pipelines/digits-dit-gft-tiny.json";

/// Returns a training of the tiny document.
fn train(run: &Path, set: &[&str]) -> Command {
    let mut train = command(&["train", TINY, "--run", run.to_str().unwrap()]);
    for set in set {
        train.args(["--set", set]);
    }
    train
}

fn lines(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the steps and results of the measurements, without their durations.
fn measured(run: &Path) -> Vec<Value> {
    let mut all = lines(run);
    all.retain(|line| line.get("evaluation_seconds").is_some());
    for line in &mut all {
        assert!(line["evaluation_seconds"].as_f64().unwrap() > 0.0);
        line["evaluation_seconds"] = json!(0);
    }
    all
}

fn last(run: &Path, step: usize) -> Checkpoint {
    Checkpoint::load(&run.join("checkpoints").join(file_name(step))).unwrap()
}

const EVERY: [&str; 4] =
    ["/train/evaluate_every=4", "/train/steps=24", "/train/save_every=6", "/metrics=[{\"type\":\"frechet\"}]"];

#[test]
fn measurements_during_a_training_change_no_bit_and_are_logged_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    done(train(&at("plain"), &["/train/steps=24", "/train/save_every=6", "/metrics=[]"]).output().unwrap());
    done(train(&at("measured"), &EVERY).output().unwrap());
    let (plain, whole) = (last(&at("plain"), 24), last(&at("measured"), 24));
    assert!(plain.model == whole.model && plain.ema == whole.ema, "measuring changed the training");
    let all = measured(&at("measured"));
    let steps: Vec<u64> = all.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [4, 8, 12, 16, 20, 24]);
    assert!(all.iter().all(|line| line["frechet_pixels"].is_number()), "{all:?}");
    // The last measurement has the samples of the report.
    let report: Value = serde_json::from_str(&fs::read_to_string(at("measured/report.json")).unwrap()).unwrap();
    assert_eq!(all[5]["frechet_pixels"], report["frechet_pixels"]);
    // Kills between measurement and checkpoint: the step is measured again, and logged once.
    for least in [1, 4] {
        let mut killed = train(&at("killed"), &EVERY).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let logged = || fs::read_to_string(at("killed/metrics.jsonl")).unwrap_or_default();
        wait_for(&mut killed, || logged().matches("evaluation_seconds").count() >= least);
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    done(train(&at("killed"), &EVERY).output().unwrap());
    let killed = last(&at("killed"), 24);
    assert!(killed.model == whole.model && killed.ema == whole.ema, "the resumed run ends with other bits");
    assert_eq!(measured(&at("killed")), all);
    // The setting does not bind a run.
    let said = done(train(&at("measured"), &[&EVERY[..], &["/train/evaluate_every=null"]].concat()).output().unwrap());
    assert!(said.contains("changed since the run began: /train/evaluate_every"), "{said}");
}

#[test]
fn a_metric_that_fails_leaves_a_complete_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let metrics = r#"/metrics=[{"type":"class_accuracy","neighbours":5000},{"type":"frechet"}]"#;
    let said = refused(train(&run, &[metrics, "/train/evaluate_every=10"]).output().unwrap(), 1);
    assert!(said.contains("the run is complete, but a metric failed: metric \"class_accuracy\""), "{said}");
    assert!(said.contains("warning: step 10  metric \"class_accuracy\" failed"), "{said}");
    let report: Value = serde_json::from_str(&fs::read_to_string(run.join("report.json")).unwrap()).unwrap();
    assert!(report["frechet_pixels"].is_number() && report.get("class_accuracy").is_none(), "{report}");
    assert!(run.join("samples.png").exists() && last(&run, 20).step == 20);
    assert_eq!(measured(&run).len(), 2);
    // The same command measures again, with the metric corrected.
    let said = done(train(&run, &["/metrics=[{\"type\":\"class_accuracy\"}]"]).output().unwrap());
    assert!(said.contains("class_accuracy"), "{said}");
}

#[test]
fn a_metric_whose_needs_are_not_met_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    for (set, says) in [
        (
            &["/train/evaluate_every=5", "/metrics=[]"][..],
            "`evaluate_every` has no effect: the document has no metrics",
        ),
        (&["/train/evaluate_every=21"], "`evaluate_every` = 21 has no effect: the run has 20 steps"),
        (&["/train/metric_samples=30"], "needs at least 65 samples"),
        (&["/metrics=[{\"type\":\"caption_accuracy\"}]"], "needs captions"),
    ] {
        let said = refused(train(&run, set).output().unwrap(), 2);
        assert!(said.contains(says), "{said}");
    }
    // A dataset that states nothing before it is opened.
    let images = folder.path().join("images");
    for class in 0..10 {
        fs::create_dir_all(images.join(class.to_string())).unwrap();
        let picture = run_folder::picture::image(&[class as f32 / 10.0; 64], [1, 8, 8]);
        run_folder::picture::save(&picture, &images.join(format!("{class}/0.png"))).unwrap();
    }
    let data = json!({ "type": "image_folder", "path": images, "image_size": 8, "channels": 1 });
    let said = refused(train(&run, &[&format!("/data={data}")]).output().unwrap(), 2);
    assert!(said.contains("metric \"frechet\" needs at least 65 real images; there are 10"), "{said}");
    assert!(!run.join("metrics.jsonl").exists(), "{}", text(&train(&run, &[]).output().unwrap()));
}

#[test]
fn the_automatic_scale_of_mg_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut train = command(&["train", "examples/pipelines/digits-sit-mg-tiny.json", "--run", run.to_str().unwrap()]);
    let objective = json!({ "type": "mg", "scale": { "type": "automatic", "measurement": "frechet_pixels" } });
    for set in [
        format!("/objective={objective}"),
        "/train/sample_every=5".to_string(),
        "/train/log_every=1".to_string(),
        "/train/metric_samples=70".to_string(),
        "/metrics=[{\"type\":\"frechet\"}]".to_string(),
    ] {
        train.args(["--set", &set]);
    }
    done(train.output().unwrap());
    let all = lines(&run);
    let scales: Vec<f64> = all.iter().filter_map(|line| line["scale"].as_f64()).collect();
    let steps = all.iter().filter(|line| line.get("loss").is_some()).count();
    // The first measurement follows step 5.
    assert_eq!(scales.len(), steps - 5, "{all:#?}");
    assert!(scales.iter().all(|scale| (1.0..=1.9).contains(scale)), "{scales:?}");
    assert!(all.iter().any(|line| line.get("evaluation_seconds").is_some() && line["frechet_pixels"].is_number()));
}

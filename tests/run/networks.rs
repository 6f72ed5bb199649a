//! Networks of other runs, and guidance that would read a prediction that nothing trained.

use super::*;
use framework::checkpoint::Checkpoint;

const CFG: &str = "examples/pipelines/digits-dit-cfg-tiny.json";
const DISTILL: &str = "examples/pipelines/digits-dit-distill-tiny.json";

/// A student starts from new weights, so that only the teacher is another run.
const FRESH: &str = "/train/from=null";

/// Trains a run of two steps with these overrides.
#[track_caller]
fn trained(folder: &Path, name: &str, document: &str, overrides: &[&str]) -> PathBuf {
    let run = folder.join(name);
    let mut arguments = vec!["train", document, "--run", run.to_str().unwrap(), "--set", "/metrics=[]"];
    arguments.extend(["--set", "/train/steps=2", "--set", "/train/warmup_steps=0"]);
    arguments.extend(overrides.iter().flat_map(|one| ["--set", one]));
    let output = unguided(&arguments);
    assert!(output.status.success(), "{}", text(&output));
    run
}

/// Returns the problems that `check` prints for a document with these overrides.
fn refused(document: &str, overrides: &[&str]) -> String {
    let mut arguments = vec!["check", document];
    arguments.extend(overrides.iter().flat_map(|one| ["--set", one]));
    let output = unguided(&arguments);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    text(&output)
}

#[test]
fn guidance_reads_no_untrained_null_prediction() {
    let rule = "/guidance={\"type\": \"cfg\", \"scale\": 2.0}";
    let said = refused(CFG, &["/objective/drop_probability=0.0", rule]);
    assert!(said.contains("`drop_probability` is 0"), "{said}");
    let said = refused(DISTILL, &[rule]);
    assert!(said.contains("the student learns guided predictions alone"), "{said}");
}

#[test]
fn a_teacher_is_read_at_the_numbers_that_its_objective_trained() {
    let folder = tempfile::tempdir().unwrap();
    let of_teacher = |run: &Path| format!("/train/reference={}", serde_json::json!({ "checkpoint": run }));
    let kept = |run: &Path| Checkpoint::load_for_sampling(&run.join("reference.safetensors")).unwrap().memory;
    // gft reads beta: 1 for a sample without guidance, and 1 for null.
    let gft = trained(folder.path(), "gft", TINY, &[]);
    let student = trained(folder.path(), "of gft", DISTILL, &[FRESH, &of_teacher(&gft)]);
    let numbers: Vec<f64> = kept(&student).into_values().collect();
    assert_eq!(numbers, [1.0, 1.0]);
    // A scale-aware mg reads the scale: 1 without guidance, and 0 for null.
    let aware = "/objective={\"type\": \"mg\", \"scale\": {\"type\": \"input\"}}";
    let mg = trained(folder.path(), "mg", TINY, &[aware]);
    let numbers: Vec<f64> =
        kept(&trained(folder.path(), "of mg", DISTILL, &[FRESH, &of_teacher(&mg)])).into_values().collect();
    assert_eq!(numbers, [1.0, 0.0]);
    // A network without a guidance input reads none.
    let cfg = trained(folder.path(), "cfg", CFG, &[]);
    let student = trained(folder.path(), "of cfg", DISTILL, &[FRESH, &of_teacher(&cfg)]);
    assert!(kept(&student).is_empty());
    // A student never learned the null prediction that a teacher needs.
    let run = folder.path().join("of student");
    let output =
        unguided(&["train", DISTILL, "--run", run.to_str().unwrap(), "--set", FRESH, "--set", &of_teacher(&student)]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("which its run did not train"), "{}", text(&output));
}

#[test]
fn a_weak_network_is_a_run_or_weights_between_two() {
    let folder = tempfile::tempdir().unwrap();
    let strong = trained(folder.path(), "strong", CFG, &[]);
    let other = trained(folder.path(), "other", CFG, &["/train/seed=7"]);
    let sampled = |name: &str, rule: serde_json::Value| {
        let file = folder.path().join(format!("{name}.safetensors"));
        let picture = folder.path().join(format!("{name}.png"));
        let output = unguided(&[
            "sample",
            strong.to_str().unwrap(),
            "--count",
            "1",
            "--tensors",
            file.to_str().unwrap(),
            "--output",
            picture.to_str().unwrap(),
            "--set",
            &format!("/guidance={rule}"),
        ]);
        assert!(output.status.success(), "{}", text(&output));
        let bytes = fs::read(file).unwrap();
        let x = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("x").unwrap().data().to_vec();
        x.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let apart =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    let weak = |weak: serde_json::Value| serde_json::json!({ "type": "weak_model", "scale": 2.0, "weak": weak });
    let between = |weight: f64| {
        weak(serde_json::json!({ "checkpoint": strong, "interpolate": { "checkpoint": other, "weight": weight } }))
    };
    let plain = sampled("plain", serde_json::json!({ "type": "none" }));
    // The difference to itself is 0.
    assert!(apart(&plain, &sampled("itself", weak(serde_json::json!({ "checkpoint": strong })))) < 1e-5);
    assert!(apart(&plain, &sampled("weight 0", between(0.0))) < 1e-5);
    let guided = sampled("guided", weak(serde_json::json!({ "checkpoint": other })));
    assert!(apart(&plain, &guided) > 1e-4);
    assert!(apart(&guided, &sampled("weight 1", between(1.0))) < 1e-5);
    assert!(apart(&guided, &sampled("weight 0.5", between(0.5))) > 1e-5);

    let output = unguided(&[
        "sample",
        strong.to_str().unwrap(),
        "--set",
        "/guidance={\"type\": \"weak_model\", \"scale\": 2.0, \"weak\": {\"checkpoint\": \"nowhere\"}}",
        "--output",
        folder.path().join("none.png").to_str().unwrap(),
    ]);
    assert!(!output.status.success() && text(&output).contains("nowhere"), "{}", text(&output));
}

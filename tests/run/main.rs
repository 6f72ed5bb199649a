//! Tests of the command: resuming after `kill -9`, damaged checkpoints, refused documents, options of training.

#[cfg(unix)]
#[path = "../default_signals/mod.rs"]
mod default_signals;
#[path = "../folders/mod.rs"]
mod folders;
mod networks;
mod options;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use unguided as _;

const TINY: &str = "examples/pipelines/digits-dit-gft-tiny.json";

fn unguided(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).output().expect("the command starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns a training command with enough steps that a kill interrupts them.
fn train(run: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command
        .args(["train", TINY, "--run", run.to_str().unwrap()])
        .args(["--set", "/train/steps=150", "--set", "/train/save_every=7", "--set", "/train/accumulate=2"])
        .args(["--set", "/train/keep_last=3", "--set", "/metrics=[]"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn last_checkpoint(run: &Path) -> PathBuf {
    let mut all: Vec<PathBuf> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("step-"));
    all.sort();
    all.pop().expect("the run has a checkpoint")
}

/// Returns every tensor of a checkpoint except the optimizer's record, whose entries have no fixed order.
fn tensors(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(checkpoint).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<(String, Vec<u8>)> =
        file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    all.retain(|(name, _)| name != "optimizer");
    all.sort();
    assert!(
        all.iter().any(|(name, _)| name.starts_with("model/")) && all.iter().any(|(name, _)| name.starts_with("ema/"))
    );
    all
}

#[test]
fn a_killed_run_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    assert!(train(&whole).status().unwrap().success());
    let expected = tensors(&last_checkpoint(&whole));
    // Kill at times taken from the clock, so that every test run tries different ones.
    let mut random = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos() as u64;
    let killed = folder.path().join("killed");
    for _ in 0..3 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut child = train(&killed).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(150 + (random >> 33) % 900));
        // SIGKILL on Unix. If the run has already ended, the last call finds it complete.
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(train(&killed).status().unwrap().success());
    assert!(tensors(&last_checkpoint(&killed)) == expected, "the resumed run ends with different bits");
    let steps = |run: &Path| {
        let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let line = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap();
        lines.lines().map(line).collect::<Vec<_>>()
    };
    assert_eq!(steps(&killed), steps(&whole), "metrics.jsonl must hold every logged step once");
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_previous_one_offered() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let arguments = ["train", TINY, "--run", run.to_str().unwrap()];
    assert!(unguided(&arguments).status.success());
    let last = last_checkpoint(&run);
    let (bytes, expected) = (fs::read(&last).unwrap(), tensors(&last));
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (damage, says) in
        [(flipped, "does not match its SHA-256"), (bytes[..bytes.len() / 2].to_vec(), "truncated or altered")]
    {
        fs::write(&last, damage).unwrap();
        let output = unguided(&arguments);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(
            text(&output).contains(says) && text(&output).contains("step-000000015.safetensors"),
            "{}",
            text(&output)
        );
        let output = unguided(&["sample", run.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    }
    let previous = run.join("checkpoints/step-000000015.safetensors");
    let again = unguided(&[&arguments[..], &["--resume-from", previous.to_str().unwrap()]].concat());
    assert!(again.status.success(), "{}", text(&again));
    assert!(tensors(&last) == expected, "resuming from the previous checkpoint must write the same bits");
    // The damaged checkpoint was set aside, not deleted.
    assert!(text(&again).contains("moved later checkpoints to"), "{}", text(&again));
    assert!(run.join("checkpoints/set-aside-1").join(last.file_name().unwrap()).exists());
}

#[test]
fn going_back_makes_the_chosen_checkpoint_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let arguments = ["train", TINY, "--run", run.to_str().unwrap(), "--set", "/metrics=[]"];
    let arguments = [&arguments[..], &["--set", "/train/save_every=5", "--set", "/train/keep_last=9"]].concat();
    assert!(unguided(&arguments).status.success());
    let names = |folder: &str| {
        let all = fs::read_dir(run.join("checkpoints").join(folder)).unwrap();
        let mut all: Vec<String> = all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        all.retain(|name| name.ends_with(".safetensors"));
        all.sort();
        all
    };
    let all = names("");
    assert_eq!(all.len(), 4, "{all:?}");
    // Resume from the second checkpoint, which is now outside the run folder.
    let elsewhere = folder.path().join("elsewhere.safetensors");
    fs::rename(run.join("checkpoints").join(&all[1]), &elsewhere).unwrap();
    let again = unguided(&[&arguments[..], &["--resume-from", elsewhere.to_str().unwrap()]].concat());
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(names("set-aside-1"), all[2..]);
    assert_eq!(names(""), all);
    // Resume again, from a checkpoint that was set aside. No file is overwritten.
    let aside = run.join("checkpoints/set-aside-1").join(&all[2]);
    let before = fs::read(&aside).unwrap();
    let again = unguided(&[&arguments[..], &["--resume-from", aside.to_str().unwrap()]].concat());
    assert!(again.status.success(), "{}", text(&again));
    // The optimizer's record has no fixed order. So the file of the repeated step differs, and it is set aside with the
    // later ones.
    assert_eq!(names("set-aside-1"), all[2..]);
    assert!(names("set-aside-2").ends_with(&all[3..]), "{:?}", names("set-aside-2"));
    assert!(fs::read(&aside).unwrap() == before);
    // Resume from a different checkpoint of a step that the run has: the run's own is set aside, too.
    let mut other = framework::checkpoint::Checkpoint::load(&aside).unwrap();
    other.losses.0 += 1.0;
    other.save(&elsewhere).unwrap();
    let again = unguided(&[&arguments[..], &["--resume-from", elsewhere.to_str().unwrap()]].concat());
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(names("set-aside-3"), all[2..]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_command_saves_before_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut child = train(&run);
    default_signals::with_default_signals(&mut child).args(["--set", "/train/steps=100000"]).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    while !run.join("metrics.jsonl").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    let step = framework::checkpoint::step_of(&last_checkpoint(&run)).unwrap();
    assert!(text(&output).contains(&format!("stopped at step {step}; the same command resumes the run")));
}

#[test]
fn two_trainings_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut first = train(&run).args(["--set", "/train/steps=100000"]).spawn().unwrap();
    while !run.join("metrics.jsonl").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut second = train(&run);
    let second = second.args(["--set", "/train/steps=100000"]).stderr(Stdio::piped()).output().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", text(&second));
    assert!(text(&second).contains("another `train` is running in"), "{}", text(&second));
}

#[test]
fn data_without_classes_is_refused_for_a_network_with_classes() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    folders::images(&images);
    // The folder of one class contains images, but no class folders.
    let data = serde_json::json!({ "type": "image_folder", "path": images.join("3"), "image_size": 8, "channels": 1 });
    let run = folder.path().join("run");
    let output = unguided(&["train", TINY, "--run", run.to_str().unwrap(), "--set", &format!("/data={data}")]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("the dataset has no classes; the backbone expects 10 classes"), "{}", text(&output));
}

#[test]
fn a_run_folder_of_another_document_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert!(unguided(&["train", TINY, "--run", run.to_str().unwrap()]).status.success());
    let output = unguided(&["train", TINY, "--run", run.to_str().unwrap(), "--set", "/train/seed=1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("/train/seed"), "{}", text(&output));
}

#[test]
fn samples_depend_on_no_batch_size_and_little_on_matmul_precision() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert!(unguided(&["train", TINY, "--run", run.to_str().unwrap(), "--set", "/metrics=[]"]).status.success());
    let draw = |batch: &str, precision: &str| {
        let file = folder.path().join(format!("{batch}-{precision}.safetensors"));
        let picture = folder.path().join("grid.png");
        let output = unguided(&[
            "sample",
            run.to_str().unwrap(),
            "--count",
            "2",
            "--batch-size",
            batch,
            "--matmul-precision",
            precision,
            "--tensors",
            file.to_str().unwrap(),
            "--output",
            picture.to_str().unwrap(),
            "--set",
            "/sampler/eta=0.5",
        ]);
        assert!(output.status.success(), "{}", text(&output));
        let bytes = fs::read(file).unwrap();
        let x = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("x").unwrap().data().to_vec();
        x.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let (whole, split, rounded) = (draw("20", "highest"), draw("3", "highest"), draw("20", "medium"));
    let apart =
        |other: &[f32]| whole.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    let largest = whole.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    assert!(apart(&split) <= 1e-4 * largest, "{} against {largest}", apart(&split));
    // 16-bit products keep three digits. On processors without 16-bit products, the samples are equal.
    assert!(apart(&rounded) <= 3e-2 * largest, "{} against {largest}", apart(&rounded));
    #[cfg(target_arch = "x86_64")]
    assert!(!is_x86_feature_detected!("avx512fp16") || rounded != whole, "medium precision changed nothing");
}

#[test]
fn every_problem_of_a_document_is_printed_with_its_place() {
    let output = unguided(&["check", TINY, "--set", "/objective/type=gtf", "--set", "/train/batch_size=0"]);
    assert_eq!(output.status.code(), Some(2));
    let text = text(&output);
    for part in ["/objective/type", "nearest  gft", "/train/batch_size", TINY] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn a_scale_that_the_objective_does_not_train_is_refused() {
    let output = unguided(&["check", TINY, "--set", r#"/guidance={"type":"none","scale":0.5}"#]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("accepts  scales >= 1"), "{}", text(&output));
    let output = unguided(&["check", TINY, "--set", "/objective/beta_min=0.4", "--set", "/guidance/scale=3"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("accepts  scales from 1 to 2.5"), "{}", text(&output));
}

#[test]
fn sampling_zero_images_is_refused() {
    assert_eq!(unguided(&["sample", "absent", "--count", "0"]).status.code(), Some(2));
}

#[test]
fn a_guidance_free_objective_needs_the_guidance_input() {
    let output = unguided(&["check", TINY, "--set", "/backbone/guidance_input=null"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("/backbone/guidance_input"), "{}", text(&output));
}

#[test]
fn broken_images_are_replaced_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    folders::images(&images);
    let data = serde_json::json!({ "type": "image_folder", "path": images, "image_size": 8, "channels": 1 });
    let data = format!("/data={data}");
    let train = |name: &str| {
        let run = folder.path().join(name);
        let arguments = ["train", TINY, "--run", run.to_str().unwrap(), "--set", "/metrics=[]", "--set", &data];
        (unguided(&arguments), run)
    };
    let broken = images.join("3/1.png");
    fs::write(&broken, "no image").unwrap();
    let (output, run) = train("some");
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("skipped an item that cannot be read") && text(&output).contains("3/1.png"));
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let count = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["skipped"].as_u64();
    let skipped: u64 = lines.lines().filter_map(count).sum();
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(skipped > 0 && report.contains(&format!("{skipped} items could not be read")), "{lines}\n{report}");
    assert!(!run.join("skipped.png").exists());

    for class in 0..10 {
        for i in 0..2 {
            fs::write(images.join(format!("{class}/{i}.png")), "no image").unwrap();
        }
    }
    let (output, _) = train("most");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("items of a batch cannot be read"), "{}", text(&output));
}

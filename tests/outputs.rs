//! Outputs: wrong ones are refused before the work begins, and no lost byte goes unnoticed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use unguided as _;

const TINY: &str = "examples/pipelines/digits-dit-gft-tiny.json";

fn unguided(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).env_remove("UNGUIDED_PLUGINS").output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Trains a run in `folder`, and returns its path.
fn trained(folder: &Path) -> String {
    let run = folder.join("run").to_str().unwrap().to_string();
    let output = unguided(&["train", TINY, "--run", &run, "--set", "/metrics=[]"]);
    assert!(output.status.success(), "{}", text(&output));
    run
}

#[test]
fn wrong_outputs_are_refused_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    // None of these commands gets as far as its missing input.
    let (gif, none, plain) = (at("grid.gif"), at("none/out.png"), at("grid"));
    let (input, grid, weights) = (at("absent.safetensors"), at("grid.png"), at("none/out.safetensors"));
    for (arguments, option) in [
        (vec!["sample", "absent", "--output", &gif], "--output"),
        (vec!["sample", "absent", "--output", &plain], "--output"),
        (vec!["sample", "absent", "--output", &none], "--output"),
        (vec!["sample", "absent", "--output", &grid, "--tensors", &none], "--tensors"),
        (vec!["forward", "--pipeline", TINY, "--checkpoint", &input, "--input", &input, "--output", &none], "--output"),
        (vec!["convert", "--pipeline", TINY, &input, &weights], "OUTPUT"),
    ] {
        let output = unguided(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(&format!("\n  at       {option}\n")), "{arguments:?}: {}", text(&output));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn images_are_not_mixed_with_those_of_another_command() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (images, grid) = (at("images"), at("grid.png"));
    let sample = ["sample", &run, "--count", "1", "--classes", "3", "--output", &grid, "--images", &images];
    let output = unguided(&sample);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(fs::read_dir(&images).unwrap().count(), 1);
    let output = unguided(&sample);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("already contains files"), "{}", text(&output));
}

/// A limit of the file size takes the place of a full disk: every write fails.
#[cfg(unix)]
#[test]
fn a_picture_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let grid = folder.path().join("grid.png");
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_unguided"), "sample", &run]);
    let output = limited.args(["--count", "1", "--classes", "3", "--output"]).arg(&grid).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("grid"), "{}", text(&output));
    assert!(!grid.exists());
}

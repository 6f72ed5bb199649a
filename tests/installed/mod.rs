//! The command as a user of plugins runs it: in a folder, without plugins from the environment.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the command in `folder`, without plugins from the environment.
pub fn unguided(folder: &Path, arguments: &[&str]) -> Output {
    command(folder).args(arguments).output().expect("the command starts")
}

/// Returns the command, to run in `folder`.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.current_dir(folder).env_remove("UNGUIDED_PLUGINS").env("CARGO_NET_OFFLINE", "true");
    command
}

/// Returns all that a command printed.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the output of a command that must succeed.
#[track_caller]
pub fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// Trains a pipeline for `steps` steps.
pub fn train(folder: &Path, pipeline: &str, run: &str, steps: usize) -> Output {
    let steps = format!("/train/steps={steps}");
    let mut train = command(folder);
    train.args(["train", pipeline, "--trust-plugins", "--run", run, "--set", &steps, "--set", "/train/save_every=10"]);
    train
        .args(["--set", "/train/log_every=5", "--set", "/train/keep_last=9", "--set", "/metrics=[]"])
        .args(["--set", "/train/warmup_steps=0"]);
    train.output().unwrap()
}

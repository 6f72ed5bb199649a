//! Signals: what an interrupted command leaves, and its exit code.

#![cfg(unix)]

mod default_signals;

use default_signals::with_default_signals;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use unguided as _;

const TINY: &str = "examples/pipelines/digits-dit-gft-tiny.json";

/// Arguments of a training without an end, which writes no regular checkpoint.
const ENDLESS: [&str; 8] = [
    "--set",
    "/metrics=[]",
    "--set",
    "/train/steps=10000000",
    "--set",
    "/train/save_every=10000000",
    "--set",
    "/train/log_every=1",
];

/// A started command, which is killed if its test fails.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Started {
    fn new(command: &mut Command) -> Self {
        let command = with_default_signals(command);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the process is a child that was not waited for, so its id belongs to it.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits for the end, and returns the exit code.
    #[track_caller]
    fn code(&mut self, most: Duration) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < most, "the command did not end within {most:?}");
            sleep(Duration::from_millis(10));
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// Waits until `is_true`.
#[track_caller]
fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < MINUTE, "{what} did not happen within a minute");
        sleep(Duration::from_millis(10));
    }
}

fn unguided(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.args(arguments).env_remove("UNGUIDED_PLUGINS");
    command
}

/// Starts a training without an end, and waits for its first logged step.
fn training(run: &Path, more: &[&str]) -> Started {
    let mut train = unguided(&["train", TINY, "--run", run.to_str().unwrap()]);
    let mut started = Started::new(train.args(ENDLESS).args(more));
    let metrics = run.join("metrics.jsonl");
    until("the first step", || {
        assert!(started.is_running(), "the training ended by itself");
        fs::metadata(&metrics).is_ok_and(|file| file.len() > 0)
    });
    started
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(run.join("checkpoints")).into_iter().flatten();
    all.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect()
}

#[test]
fn a_training_that_is_stopped_saves_a_checkpoint_and_exits_with_the_signal() {
    let folder = tempfile::tempdir().unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR2] {
        let run = folder.path().join(signal.to_string());
        let mut train = training(&run, &[]);
        train.signal(signal);
        assert_eq!(train.code(MINUTE), Some(128 + signal));
        assert_eq!(checkpoints(&run).len(), 1, "signal {signal}");
    }
}

#[test]
fn a_request_that_arrives_twice_at_once_is_one_request() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut train = training(&run, &[]);
    train.signal(libc::SIGTERM);
    train.signal(libc::SIGTERM);
    assert_eq!(train.code(MINUTE), Some(143));
    assert_eq!(checkpoints(&run).len(), 1);
}

#[test]
fn a_checkpoint_is_saved_on_request_and_the_training_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut train = training(&run, &[]);
    train.signal(libc::SIGUSR1);
    until("the checkpoint", || !checkpoints(&run).is_empty());
    let logged = || fs::metadata(run.join("metrics.jsonl")).unwrap().len();
    let before = logged();
    until("another step", || logged() > before);
    assert!(train.is_running());
    train.signal(libc::SIGINT);
    assert_eq!(train.code(MINUTE), Some(130));
}

#[test]
fn ignored_signals_stay_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP INT; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_unguided"), "train", TINY, "--run"]);
    let mut train = Started::new(shell.arg(&run).args(ENDLESS).env_remove("UNGUIDED_PLUGINS"));
    let logged = || fs::metadata(run.join("metrics.jsonl")).map_or(0, |file| file.len());
    until("the first step", || logged() > 0);
    train.signal(libc::SIGHUP);
    train.signal(libc::SIGINT);
    sleep(Duration::from_millis(500));
    let before = logged();
    until("another step", || logged() > before);
    assert!(train.is_running());
    train.signal(libc::SIGTERM);
    assert_eq!(train.code(MINUTE), Some(143));
}

#[test]
fn other_work_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run").to_str().unwrap().to_string();
    let trained = unguided(&["train", TINY, "--run", &run, "--set", "/metrics=[]"]).output().unwrap();
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let output = folder.path().join("grid.png").to_str().unwrap().to_string();
    let sample = ["sample", &run, "--count", "20000", "--steps", "500", "--output", &output];
    for (arguments, signal) in [
        (&sample[..], libc::SIGINT),
        (&sample[..], libc::SIGTERM),
        (&["verify", "--worlds", "1000000"][..], libc::SIGINT),
    ] {
        let mut command = Started::new(&mut unguided(arguments));
        sleep(Duration::from_secs(1));
        assert!(command.is_running(), "{arguments:?} ended by itself");
        command.signal(signal);
        assert_eq!(command.code(Duration::from_secs(5)), Some(128 + signal), "{arguments:?}");
    }
    assert!(!Path::new(&output).exists());
}

#[test]
fn sampling_within_a_training_ends_early_and_its_step_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    // The samples after step 1 take minutes.
    let slow = ["--set", "/train/sample_every=1", "--set", "/sampler/steps=1000", "--set", "/train/sample_columns=64"];
    let mut train = training(&run, &slow);
    sleep(Duration::from_millis(500));
    train.signal(libc::SIGINT);
    assert_eq!(train.code(Duration::from_secs(20)), Some(130));
    let saved = checkpoints(&run);
    assert_eq!(saved.len(), 1);
    assert!(saved[0].ends_with("step-000000001.safetensors"), "{}", saved[0].display());
    assert_eq!(fs::read_dir(run.join("samples")).unwrap().count(), 0);
}

#[test]
fn the_help_names_the_signals_and_the_exit_codes() {
    let help = |arguments: &[&str]| String::from_utf8(unguided(arguments).output().unwrap().stdout).unwrap();
    let said = help(&["train", "--help"]);
    for name in ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"] {
        assert!(said.contains(name), "{name} is not in\n{said}");
    }
    let said = help(&["--help"]);
    assert!(said.contains("130") && said.contains("143"), "{said}");
}

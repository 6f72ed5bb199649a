//! Training with several processes that `mpirun` starts. Needs a build with the feature `mpi`.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use unguided as _;

const TINY: &str = "examples/pipelines/digits-dit-gft-tiny.json";

/// Returns whether several processes can be started. Reports the skipped test if not.
fn can_run(test: &str) -> bool {
    if !cfg!(feature = "mpi") {
        goldens::skipped(test, "the build has no feature `mpi`");
        return false;
    }
    if Command::new("mpirun").arg("--version").output().is_err() {
        goldens::skipped(test, "mpirun is not installed");
        return false;
    }
    true
}

/// Returns `mpirun`, for more processes than cores and for root, as in a container.
fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ("RAYON_NUM_THREADS", "1"),
    ] {
        command.env(name, value);
    }
    command.env_remove("UNGUIDED_PLUGINS").stdin(Stdio::null());
    command
}

/// Adds `ranks` processes that train the tiny document in `run`.
fn train(command: &mut Command, ranks: usize, run: &Path, set: &[&str]) {
    command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_unguided"), "train", TINY, "--run"]).arg(run);
    for value in ["/metrics=[]", "/train/batch_size=4", "/train/accumulate=4"].iter().chain(set) {
        command.args(["--set", value]);
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn the_checkpoint_has_the_same_bytes_on_one_two_and_four_ranks() {
    if !can_run("the_checkpoint_has_the_same_bytes_on_one_two_and_four_ranks") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = |ranks: usize| {
        let run = folder.path().join(ranks.to_string());
        let mut command = mpirun();
        train(&mut command, ranks, &run, &[]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(said(&output).matches("report.html").count(), 1, "only rank 0 reports:\n{}", said(&output));
        fs::read(run.join("checkpoints/step-000000020.safetensors")).unwrap()
    };
    let alone = {
        let run = folder.path().join("alone");
        let mut command = mpirun();
        train(&mut command, 1, &run, &[]);
        let own: Vec<_> = command.get_args().skip(2).map(ToOwned::to_owned).collect();
        assert!(Command::new(&own[0]).args(&own[1..]).output().unwrap().status.success());
        fs::read(run.join("checkpoints/step-000000020.safetensors")).unwrap()
    };
    for ranks in [1, 2, 4] {
        assert!(checkpoint(ranks) == alone, "{ranks} ranks write other bytes than one process");
    }
}

/// A started job, which is ended if its test fails.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Started {
    /// Starts two ranks that train without an end, and waits for the first logged step.
    fn endless(run: &Path, more: &[&str]) -> Self {
        let mut command = mpirun();
        train(&mut command, 2, run, &["/train/steps=10000000", "/train/save_every=10000000", "/train/log_every=1"]);
        let log = fs::File::create(run.with_extension("log")).unwrap();
        command.args(more).stdout(Stdio::null()).stderr(log);
        let started = Self(command.spawn().unwrap());
        let start = Instant::now();
        while !fs::metadata(run.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0) {
            assert!(start.elapsed() < Duration::from_secs(120), "the first step did not happen");
            sleep(Duration::from_millis(20));
        }
        started
    }

    /// Waits for the end. Returns the exit code.
    #[track_caller]
    fn code(&mut self, most: Duration) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < most, "the job did not end within {most:?}");
            sleep(Duration::from_millis(20));
        }
    }
}

fn signal(process: u32, signal: i32) {
    // SAFETY: the call sends a signal and touches no memory.
    assert_eq!(unsafe { libc::kill(process as i32, signal) }, 0);
}

/// Returns the process of a rank of the job in `run`.
fn process(run: &Path, rank: usize) -> u32 {
    let is_rank = |process: &u32| {
        let read = |file: &str| fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
        let has = |bytes: Vec<u8>, part: &str| String::from_utf8_lossy(&bytes).split('\0').any(|text| text == part);
        has(read("cmdline"), run.to_str().unwrap())
            && (has(read("environ"), &format!("OMPI_COMM_WORLD_RANK={rank}"))
                || has(read("environ"), &format!("PMI_RANK={rank}")))
    };
    let mut all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    all.find(is_rank).expect("the rank is running")
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_request_to_stop_one_rank_stops_all_with_one_checkpoint() {
    if !can_run("a_request_to_stop_one_rank_stops_all_with_one_checkpoint") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut job = Started::endless(&run, &[]);
    signal(process(&run, 1), libc::SIGTERM);
    assert_ne!(job.code(Duration::from_secs(60)), Some(0));
    assert_eq!(checkpoints(&run).len(), 1);
}

#[test]
fn a_killed_rank_ends_the_job_within_seconds() {
    if !can_run("a_killed_rank_ends_the_job_within_seconds") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for rank in [0, 1] {
        let run = folder.path().join(rank.to_string());
        let mut job = Started::endless(&run, &[]);
        signal(process(&run, rank), libc::SIGKILL);
        assert_ne!(job.code(Duration::from_secs(20)), Some(0), "rank {rank}");
    }
}

#[test]
fn a_rank_that_hangs_is_noticed_by_the_others() {
    if !can_run("a_rank_that_hangs_is_noticed_by_the_others") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut job = Started::endless(&run, &["--step-timeout", "3"]);
    signal(process(&run, 1), libc::SIGSTOP);
    assert_ne!(job.code(Duration::from_secs(60)), Some(0));
    let log = fs::read_to_string(run.with_extension("log")).unwrap();
    assert!(log.contains("rank 0: step ") && log.contains("did not end within 3 s"), "{log}");
}

#[test]
fn the_error_of_one_rank_ends_all_with_its_message() {
    if !can_run("the_error_of_one_rank_ends_all_with_its_message") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut command = mpirun();
    train(&mut command, 1, &run, &[]);
    command.args([":", "-n", "1", env!("CARGO_BIN_EXE_unguided"), "train", TINY, "--device", "none"]);
    let start = Instant::now();
    let output = command.output().unwrap();
    assert!(!output.status.success() && start.elapsed() < Duration::from_secs(30), "{}", said(&output));
    assert!(said(&output).contains("error: rank 1: unknown device \"none\""), "{}", said(&output));
}

#[test]
fn more_ranks_than_passes_are_an_input_error_that_is_shown_once() {
    if !can_run("more_ranks_than_passes_are_an_input_error_that_is_shown_once") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = mpirun();
    train(&mut command, 3, &folder.path().join("run"), &["/train/accumulate=2"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(said(&output).matches("3 ranks share 2 passes").count(), 1, "{}", said(&output));
}

#[test]
fn other_commands_and_builds_refuse_several_processes() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
        command.args(arguments).env("OMPI_COMM_WORLD_SIZE", "2").env_remove("UNGUIDED_PLUGINS").output().unwrap()
    };
    let output = run(&["list"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("only `train` divides its work"), "{}", said(&output));
    if !cfg!(feature = "mpi") {
        let output = run(&["train", TINY]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("build with --features mpi"), "{}", said(&output));
    }
}

#[test]
fn a_limit_of_a_step_without_other_ranks_is_an_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    let output = command.args(["train", TINY, "--step-timeout", "9"]).env_remove("UNGUIDED_PLUGINS").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("--step-timeout") && said(&output).contains("has no effect"), "{}", said(&output));
}

//! What a command does when nobody reads its output, and what it never writes to a terminal.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use unguided as _;

const TINY: &str = "examples/pipelines/digits-dit-gft-tiny.json";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.args(arguments).env_remove("UNGUIDED_PLUGINS").stdin(Stdio::null());
    command
}

/// Returns the writing end of a pipe whose reader has gone.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Returns a stream on which every write fails because the disk is full.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn train(run: &Path) -> Command {
    let mut train = command(&["train", TINY, "--set", "/metrics=[]", "--set", "/train/log_every=1", "--run"]);
    train.arg(run);
    train
}

#[test]
fn a_listing_whose_reader_has_gone_ends_quietly() {
    for arguments in [&["list"][..], &["schema"], &["schema", "--markdown"], &["check", TINY], &["completions", "bash"]]
    {
        let output = command(arguments).stdout(closed()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("error"), "{arguments:?}: {said}");
    }
}

#[test]
fn a_listing_that_a_full_disk_loses_is_an_error() {
    for arguments in [&["list"][..], &["schema"], &["check", TINY], &["completions", "bash"]] {
        let output = command(arguments).stdout(full()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("error: standard output: "), "{arguments:?}: {said}");
    }
}

#[test]
fn a_training_goes_on_without_its_log() {
    let folder = tempfile::tempdir().unwrap();
    for (name, stdout, stderr) in [("closed", closed(), closed()), ("full", full(), full())] {
        let run = folder.path().join(name);
        let status = train(&run).stdout(stdout).stderr(stderr).status().unwrap();
        assert_eq!(status.code(), Some(0), "{name}");
        assert!(run.join("report.html").exists(), "{name}");
    }
    // The summary is in the report, too. A full disk under it is worth a warning only.
    let output = train(&folder.path().join("warned")).stdout(full()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("warning: standard output: "), "{said}");
}

#[test]
fn an_error_keeps_its_exit_code_where_nobody_reads_it() {
    for stream in [closed(), full()] {
        let status = command(&["check", "absent.json"]).stderr(stream).stdout(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(2));
    }
}

#[test]
fn control_characters_of_a_document_are_shown_as_escapes() {
    let folder = tempfile::tempdir().unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&fs::read_to_string(TINY).unwrap()).unwrap();
    let write = |document: &serde_json::Value| -> PathBuf {
        let path = folder.path().join("evil.json");
        fs::write(&path, document.to_string()).unwrap();
        path
    };
    let run = |path: &Path| {
        let output = command(&["check", path.to_str().unwrap()]).output().unwrap();
        let all = [output.stdout, output.stderr].concat();
        let hidden = |byte: &u8| (*byte < 32 && *byte != b'\n' && *byte != b'\t') || *byte == 127;
        assert!(!all.iter().any(hidden), "{}", String::from_utf8_lossy(&all));
        (output.status.code(), String::from_utf8(all).unwrap())
    };
    document["about"] = "\u{1b}[31mred\u{7f}".into();
    let (code, said) = run(&write(&document));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("\\u001b[31mred\\u007f"), "{said}");
    document["objective"]["type"] = "\u{1b}]0;title\u{7}".into();
    let (code, said) = run(&write(&document));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("]0;title"), "{said}");
}

/// The standard library's macros panic when a stream is closed, and print names from files as they are.
#[test]
fn only_the_console_prints() {
    let mut seen = 0;
    let mut folders: Vec<PathBuf> = ["src", "run_folder/src", "registry/src"].iter().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // The templates are plugins of the user.
                if !path.ends_with("templates") {
                    folders.push(path);
                }
                continue;
            }
            if path.extension().is_none_or(|ending| ending != "rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let code = code.lines().map(|line| line.split("//").next().unwrap());
            let prints = code.filter(|line| ["print!(", "println!(", "dbg!("].iter().any(|name| line.contains(name)));
            assert_eq!(prints.collect::<Vec<_>>(), Vec::<&str>::new(), "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}

/// A helper of this file that must hold for its tests to mean anything.
#[test]
fn the_full_device_refuses_writes() {
    use std::io::Write;
    let mut full: File = OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!(full.write_all(b"x").is_err());
}

//! Limits of documents: large ones are refused at once, and no list of problems floods the terminal.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use unguided as _;

/// Runs `check`, and returns its exit code and its standard error.
fn check(path: &Path) -> (Option<i32>, String) {
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    let output = command.arg("check").arg(path).env_remove("UNGUIDED_PLUGINS").output().unwrap();
    // A second on an idle machine.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn tiny() -> Value {
    serde_json::from_str(&fs::read_to_string("examples/pipelines/digits-dit-gft-tiny.json").unwrap()).unwrap()
}

fn check_text(text: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.json");
    fs::write(&path, text).unwrap();
    check(&path)
}

#[test]
fn documents_of_more_than_a_megabyte_are_refused() {
    let mut document = tiny();
    document["about"] = "".into();
    let room = 1_000_000 - document.to_string().len();
    document["about"] = "x".repeat(room).into();
    let (code, said) = check_text(&document.to_string());
    assert_eq!(code, Some(0), "{said}");
    document["about"] = "x".repeat(room + 1).into();
    let (code, said) = check_text(&document.to_string());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the document is too large") && said.contains("at most 1 MB"), "{said}");
    let (code, said) = check_text(&"[".repeat(50_000_000));
    assert_eq!(code, Some(2), "{said}");
}

#[cfg(unix)]
#[test]
fn a_device_without_an_end_is_read_up_to_the_limit() {
    let (code, said) = check(Path::new("/dev/zero"));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("at most 1 MB"), "{said}");
}

#[test]
fn documents_of_too_many_values_are_refused() {
    let mut document = tiny();
    document["metrics"] = json!(vec![0; 30_000]);
    let (code, said) = check_text(&document.to_string());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("at most 20000 values") && said.len() < 1000, "{said}");
}

#[test]
fn a_list_of_problems_stops_at_fifty_and_counts_the_others() {
    let mut document = tiny();
    for i in 0..10_000 {
        document[format!("key{i:05}")] = json!(i);
    }
    let (code, said) = check_text(&document.to_string());
    assert_eq!(code, Some(2));
    assert_eq!(said.matches("error: unknown field").count(), 50, "{}", &said[..2000]);
    assert!(said.ends_with("error: 9950 more problems are not shown\n"), "{}", &said[said.len() - 200..]);
    assert!(said.contains("key00000") && said.contains("key00049") && !said.contains("key00050"));
}

#[test]
fn long_names_are_cut_in_messages() {
    let mut document = tiny();
    document["x".repeat(900_000)] = json!(1);
    let (code, said) = check_text(&document.to_string());
    assert_eq!(code, Some(2));
    assert!(said.contains("unknown field \"xxx") && said.len() < 20_000, "{} bytes", said.len());
}

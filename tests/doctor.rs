//! `unguided doctor`: what a report of a bug needs, and nothing private.

use std::fs;
use std::path::Path;
use std::process::Command;
use unguided as _;

fn doctor(home: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.arg("doctor").args(arguments).current_dir(home).env("HOME", home).env("USER", "ada");
    let output = command.env_remove("UNGUIDED_PLUGINS").env("RAYON_NUM_THREADS", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn doctor_prints_what_a_bug_report_needs() {
    let home = tempfile::tempdir().unwrap();
    let said = doctor(home.path(), &[]);
    for part in [
        "unguided   ",
        "rustc: ",
        "target: ",
        "source: ",
        "processor  ",
        "devices    cpu",
        "memory     ",
        "disk       ",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(said.contains("RAYON_NUM_THREADS=1") && said.contains(" linked"), "{said}");
    #[cfg(unix)]
    assert!(said.contains("open files: "), "{said}");
    #[cfg(target_os = "linux")]
    assert!(!said.contains("unknown free"), "{said}");
}

#[test]
fn doctor_shows_no_names_and_runs_no_code() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().canonicalize().unwrap();
    fs::create_dir_all(folder.join("ada/libraries")).unwrap();
    fs::write(folder.join("ada/libraries/mine.so"), "not a library").unwrap();
    let said = doctor(&folder, &["--plugin-dir", "ada/libraries"]);
    let shown = Path::new("~").join("USER").join("libraries").join("mine.so").display().to_string();
    assert!(said.contains(&shown) && said.contains("the file is not a shared library"), "{said}");
    assert!(!said.contains(folder.to_str().unwrap()) && !said.contains("/ada/"), "{said}");
}

//! `unguided devices`, and `--device` with a name that no device has.

use std::process::{Command, Output};
use unguided as _;

fn unguided(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.args(arguments).env_remove("UNGUIDED_PLUGINS").output().unwrap()
}

#[test]
fn the_list_ends_with_the_cpu_and_its_memory() {
    let output = unguided(&["devices"]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["name", "kind", "model", "memory"]);
    let last = lines.last().unwrap();
    assert_eq!(last[..2], ["cpu", "CPU"]);
    #[cfg(target_os = "linux")]
    assert!(last[last.len() - 2].parse::<f64>().is_ok_and(|memory| memory > 0.0), "{said}");
}

#[test]
fn a_wrong_name_shows_the_devices_that_are_present() {
    for name in ["gpu", "vulkan:9", "cuda:x", "cpu:1", ""] {
        let output = unguided(&["train", "examples/pipelines/digits-dit-gft-tiny.json", "--device", name]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("unknown device \"{name}\"")) && said.contains("cpu (CPU)"), "{said}");
    }
}

//! The command, what it prints, and how it ends.

use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// Returns the command, without plugins from the environment.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.args(arguments).env_remove("UNGUIDED_PLUGINS");
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

/// Returns the output of a command that must end with an exit code.
#[track_caller]
pub fn refused(output: Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    text(&output)
}

/// Waits until `is_due`, while the command runs.
#[track_caller]
pub fn wait_for(child: &mut Child, is_due: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_due() {
        assert!(child.try_wait().unwrap().is_none(), "the command ended by itself");
        assert!(start.elapsed() < Duration::from_secs(120), "nothing happened within two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
}

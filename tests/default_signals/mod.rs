//! Commands that start with the default action of every signal.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Resets the signals of a command before it runs. A test runner that a shell started in the background ignores SIGINT,
/// and every command that it starts would ignore it too.
pub fn with_default_signals(command: &mut Command) -> &mut Command {
    let reset = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
            // SAFETY: `signal` is safe to call between fork and exec, and SIG_DFL is a valid action.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure calls nothing but `signal`.
    unsafe { command.pre_exec(reset) }
}

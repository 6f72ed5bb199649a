//! Handles signals. The first request to stop lets a training save a checkpoint, and ends any other work at once. The
//! second request ends everything at once. SIGUSR1 requests a checkpoint.

use crate::job;
use framework::interrupt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Signals that follow the first one within this time are the same request: `timeout` and batch systems signal the
/// process and its group.
const ONE_REQUEST: Duration = Duration::from_millis(100);

/// Time of the first request to stop.
static FIRST: OnceLock<Instant> = OnceLock::new();

/// Installs the signal handlers of this process. Signals that are ignored at the start stay ignored, as `nohup`
/// requires.
pub fn handle() {
    #[cfg(unix)]
    unix::handle();
    #[cfg(not(unix))]
    // If a handler cannot be installed, the default handling remains.
    let _ = ctrlc::set_handler(|| stop(2, "press Ctrl-C again"));
}

/// Asks the process to stop because of a signal. `again` says how to end it at once.
fn stop(signal: i32, again: &str) {
    // Set the request before checking whether a training is in progress. A training that ends in between then sees the
    // request.
    let is_repeated = interrupt::request_stop(signal);
    let is_training = interrupt::is_training();
    if is_training && is_repeated && FIRST.get().is_some_and(|first| first.elapsed() < ONE_REQUEST) {
        return;
    }
    if is_repeated || !is_training {
        end(i32::from(interrupt::exit_code()));
    }
    let _ = FIRST.set(Instant::now());
    job::say(&format!("stopping after this step and saving a checkpoint; {again} to stop at once"));
}

/// Ends the process without running exit handlers, because other threads are still running. No file is left half
/// written, because files are replaced atomically.
fn end(code: i32) -> ! {
    #[cfg(unix)]
    // SAFETY: the call ends the process and touches no memory of it.
    unsafe {
        libc::_exit(code)
    }
    #[cfg(not(unix))]
    std::process::exit(code)
}

#[cfg(unix)]
mod unix {
    use super::{interrupt, job, stop};
    #[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
    use libc::__errno as errno;
    #[cfg(any(target_os = "linux", target_os = "emscripten", target_os = "hurd"))]
    use libc::__errno_location as errno;
    #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
    use libc::__error as errno;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{IntoRawFd, OwnedFd};
    use std::ptr;
    use std::sync::Once;
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::thread;

    /// Signals that ask to stop.
    const STOPS: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR2];

    /// Writing end of the pipe from the handler to the thread.
    static PIPE: AtomicI32 = AtomicI32::new(-1);

    /// Installs the handlers and starts the thread that obeys them. If the system has no pipe or thread left, the
    /// default handling remains.
    pub fn handle() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let Ok((reader, writer)) = std::io::pipe() else { return };
            let mut reader = File::from(OwnedFd::from(reader));
            let obey = move || {
                let mut signal = [0];
                while reader.read_exact(&mut signal).is_ok() {
                    obey(i32::from(signal[0]));
                }
            };
            if thread::Builder::new().name("signals".to_string()).spawn(obey).is_err() {
                return;
            }
            PIPE.store(OwnedFd::from(writer).into_raw_fd(), Ordering::SeqCst);
            // A write beyond the limit of the file size then fails like a write to a full disk.
            // SAFETY: the signal is valid, and no handler is involved.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
            for signal in STOPS.into_iter().chain([libc::SIGUSR1]) {
                install(signal);
            }
        });
    }

    fn obey(signal: i32) {
        if signal != libc::SIGUSR1 {
            let again = if signal == libc::SIGINT { "press Ctrl-C again" } else { "send the signal again" };
            stop(signal, again);
        } else if interrupt::is_training() {
            interrupt::request_save();
            job::say("saving a checkpoint after this step");
        } else {
            job::say("no training is at work, so there is no checkpoint to save");
        }
    }

    /// Installs the handler of a signal, unless the signal is ignored.
    fn install(signal: i32) {
        // SAFETY: both structures are plain data and valid when zeroed. The handler calls only functions that are safe
        // in signal handlers.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &mut old) != 0 || old.sa_sigaction == libc::SIG_IGN {
                return;
            }
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = on_signal as extern "C" fn(i32) as usize;
            new.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut new.sa_mask);
            libc::sigaction(signal, &new, ptr::null_mut());
        }
    }

    /// Passes the signal to the thread, which reads at once, so the pipe does not fill up.
    extern "C" fn on_signal(signal: i32) {
        let byte = signal as u8;
        // SAFETY: write(2) is safe in a signal handler, and the byte outlives the call. Restore errno for the
        // interrupted code.
        unsafe {
            let errno = errno();
            let saved = *errno;
            libc::write(PIPE.load(Ordering::SeqCst), ptr::from_ref(&byte).cast(), 1);
            *errno = saved;
        }
    }
}

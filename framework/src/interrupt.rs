//! Requests from outside to a running training: to stop, or to save a checkpoint and continue. The program's signal
//! handling sets them. They are global, because a signal is sent to the whole process.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};

/// Set when the process is asked to stop.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// Number of the signal that asked to stop; 0 = none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Set when the process is asked to save a checkpoint.
static SAVE: AtomicBool = AtomicBool::new(false);

/// Number of trainings with steps that a checkpoint can save.
static TRAININGS: AtomicUsize = AtomicUsize::new(0);

/// Number of calls of [`abortable`] in progress.
static ABORTABLE: AtomicUsize = AtomicUsize::new(0);

/// The payload of the unwinding that ends an abortable computation.
pub(crate) struct Interrupted;

/// Asks the process to stop because of a signal. Returns whether the process had already been asked.
pub fn request_stop(signal: i32) -> bool {
    let _ = SIGNAL.compare_exchange(0, signal, SeqCst, SeqCst);
    STOP.swap(true, SeqCst)
}

/// Asks the training to save a checkpoint after its current step and to continue.
pub fn request_save() {
    SAVE.store(true, SeqCst);
}

/// Returns whether a checkpoint was asked for since the last call.
pub(crate) fn take_save_request() -> bool {
    SAVE.swap(false, SeqCst)
}

/// Returns the exit code of a process that stops because it was asked to: 128 and the number of the signal.
pub fn exit_code() -> u8 {
    let signal = match SIGNAL.load(SeqCst) {
        0 => 2,
        signal => signal,
    };
    u8::try_from(128 + signal).unwrap_or(130)
}

/// Returns whether a training is in progress that will save a checkpoint before it stops. Any other work can end at
/// once, because it has nothing to save.
pub fn is_training() -> bool {
    TRAININGS.load(SeqCst) > 0
}

/// Increments a counter while the value exists.
pub(crate) struct Counted(&'static AtomicUsize);

impl Counted {
    fn new(counter: &'static AtomicUsize) -> Self {
        counter.fetch_add(1, SeqCst);
        Self(counter)
    }

    /// Counts a training in progress.
    pub(crate) fn training() -> Self {
        Self::new(&TRAININGS)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Runs a computation that a request to stop may end at each [`abort_if_asked`], on any thread.
pub(crate) fn abortable<T>(run: impl FnOnce() -> T) -> T {
    let _counted = Counted::new(&ABORTABLE);
    run()
}

/// Returns whether the abortable computation in progress must end.
pub fn must_abort() -> bool {
    ABORTABLE.load(SeqCst) > 0 && STOP.load(SeqCst)
}

/// Unwinds to the nearest [`crate::blame::caught`], which returns [`crate::error::Error::Interrupted`].
pub(crate) fn abort() -> ! {
    resume_unwind(Box::new(Interrupted))
}

/// Ends the sampling or measuring of a training in progress if the process is asked to stop: unwinds to the nearest
/// [`crate::blame::caught`], which returns [`crate::error::Error::Interrupted`]. Does nothing elsewhere.
pub fn abort_if_asked() {
    if must_abort() {
        abort();
    }
}

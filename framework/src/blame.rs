//! Attributes panics to plugins: a plugin's code runs under the plugin's name. A panic then fails the run
//! with that name instead of aborting the process.

use crate::error::{Error, Result};
use crate::interrupt::Interrupted;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    /// Number of calls of [`caught`] on this thread.
    static CAUGHT: Cell<usize> = const { Cell::new(0) };
}

/// Returns whether a panic on this thread would become an error. For panic hooks.
pub fn is_caught() -> bool {
    CAUGHT.get() > 0
}

/// A panic payload, with the name of the plugin that panicked.
struct Panicked {
    who: String,
    what: String,
}

/// Runs the code of `who`. A panic continues with that name attached. If names are nested, the innermost one
/// is kept.
pub fn named<T>(who: &str, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| match panic.is::<Interrupted>() {
        true => resume_unwind(panic),
        false => resume_unwind(name(who, panic)),
    })
}

/// Runs the code of `who` and turns a panic into an error.
///
/// # Errors
/// If the code panics: the error names the plugin and contains the panic message. If the process was asked to stop and
/// the code is abortable: [`Error::Interrupted`].
pub fn caught<T>(who: &str, run: impl FnOnce() -> T) -> Result<T> {
    CAUGHT.set(CAUGHT.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(run));
    CAUGHT.set(CAUGHT.get() - 1);
    done.map_err(|panic| {
        if panic.is::<Interrupted>() {
            return Error::Interrupted;
        }
        let Panicked { who, what } = *name(who, panic);
        Error::Run(format!("{who} panicked: {what}"))
    })
}

fn name(who: &str, panic: Box<dyn Any + Send>) -> Box<Panicked> {
    panic.downcast::<Panicked>().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Box::new(Panicked { who: who.to_string(), what: text.unwrap_or_else(|| "no message".to_string()) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_name_is_reported() {
        let error = caught::<()>("outer", || named("inner", || panic!("out of {}", "range"))).unwrap_err();
        assert_eq!(error.to_string(), "inner panicked: out of range");
        assert!(caught("outer", is_caught).unwrap() && !is_caught());
        assert_eq!(caught("outer", || named("inner", || 3)).unwrap(), 3);
    }

    #[test]
    fn an_interruption_is_not_blamed_on_a_plugin() {
        let interrupted = || named("inner", || resume_unwind(Box::new(Interrupted)));
        assert!(matches!(caught::<()>("outer", interrupted), Err(Error::Interrupted)));
    }
}

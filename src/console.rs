//! All output of a command: its result on standard output, and messages and progress on standard error. Progress is a
//! bar on a terminal and plain lines in a log. No other file prints, because `println!` panics if the reader closed the
//! pipe or the disk is full, and because names from files may contain control characters.

use crate::Outcome;
use console::Term;
use framework::error::Error;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use run_folder::watcher::{Stage, Watcher};
use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Name of the standard output in errors.
const STDOUT: &str = "standard output";

/// Writes lines to standard output. For commands whose output is their result.
///
/// # Errors
/// If the lines cannot be written. [`is_closed_output`] recognizes a closed pipe.
pub fn print(lines: &str) -> Outcome {
    let mut output = io::stdout().lock();
    let written = writeln!(output, "{}", visible(lines)).and_then(|()| output.flush());
    written.map_err(|source| Error::Io { path: STDOUT.to_string(), source })
}

/// Writes lines to standard output. For commands whose result is in files: if the lines cannot be written, the command
/// still succeeds. A warning on standard error says so, unless the reader closed the pipe.
pub fn report(lines: &str) {
    match print(lines) {
        Err(error) if !is_closed_output(&error) => say(&format!("warning: {error}")),
        _ => {}
    }
}

/// Writes a value as indented JSON to standard output. For commands whose output is their result.
///
/// # Errors
/// Like [`print`].
pub fn json(value: &serde_json::Value) -> Outcome {
    print(&format!("{value:#}"))
}

/// Whether only results and errors are printed.
static QUIET: AtomicBool = AtomicBool::new(false);
/// Whether more is printed than usual.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Sets how much the command prints besides its result.
pub fn set_detail(quiet: bool, verbose: bool) {
    QUIET.store(quiet, Relaxed);
    VERBOSE.store(verbose, Relaxed);
}

/// Returns whether only results and errors are printed.
fn is_quiet() -> bool {
    QUIET.load(Relaxed)
}

/// Returns whether more is printed than usual.
pub fn is_verbose() -> bool {
    VERBOSE.load(Relaxed)
}

/// Writes an error to standard error.
pub fn error(error: &Error) {
    write_error(&format!("error: {error}"));
}

/// Writes lines to standard error, unless the user asked for quiet. A message that cannot be written is lost, because a
/// broken log must not stop a training.
pub fn say(lines: &str) {
    if !is_quiet() {
        write_error(lines);
    }
}

fn write_error(lines: &str) {
    let mut output = io::stderr().lock();
    let _ = output.write_all(format!("{}\n", visible(lines)).as_bytes());
}

/// Writes a question to standard error, without a line break after it. Returns whether it was written.
pub fn ask(question: &str) -> bool {
    io::stderr().write_all(visible(question).as_bytes()).is_ok()
}

/// Returns whether the error says that the reader closed standard output, as in `unguided list | head`.
pub fn is_closed_output(error: &Error) -> bool {
    matches!(error, Error::Io { path, source } if path == STDOUT && source.kind() == ErrorKind::BrokenPipe)
}

/// Replaces control characters with escapes such as `\u001b`, except line breaks and tabs. The escapes are also valid
/// in JSON strings. Characters that reverse the direction of text are also replaced.
fn visible(text: &str) -> Cow<'_, str> {
    let is_hidden = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if is_hidden(c) { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// Shows one progress bar at a time.
pub struct Console {
    bar: Option<(Stage, ProgressBar)>,
    is_terminal: bool,
}

impl Console {
    /// Creates a console on standard error.
    pub fn new() -> Self {
        Self { bar: None, is_terminal: io::stderr().is_terminal() }
    }
}

impl Watcher for Console {
    fn progress(&mut self, stage: Stage, done: usize, total: usize, message: &str) {
        if !self.is_terminal || is_quiet() {
            return;
        }
        if self.bar.as_ref().is_none_or(|(shown, _)| *shown != stage) {
            // A nested stage (sampling during training) replaces the bar. The outer stage creates a new one afterwards.
            if let Some((_, bar)) = self.bar.take() {
                bar.finish_and_clear();
            }
            let bar = bar(stage.name(), total);
            bar.set_position(done as u64);
            bar.reset_eta();
            self.bar = Some((stage, bar));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            if !message.is_empty() {
                bar.set_message(visible(message).into_owned());
            }
        }
    }

    fn finished(&mut self, stage: Stage) {
        if let Some((_, bar)) = self.bar.take_if(|(shown, _)| *shown == stage) {
            bar.finish_and_clear();
        }
    }

    fn say(&mut self, line: &str) {
        match &self.bar {
            Some((_, bar)) => bar.println(visible(line)),
            None => say(line),
        }
    }

    fn logged(&mut self, step: usize, steps: usize, summary: &str, seconds_left: f64) {
        if !self.is_terminal {
            say(&format!("step {step}/{steps}  {summary}  {seconds_left:.0} s left"));
        }
    }
}

/// Returns the layout of a progress bar on a terminal with this many columns.
fn layout(columns: usize) -> &'static str {
    match columns {
        110.. => "{prefix} {bar:32} {pos}/{len}  {msg}  {eta} left",
        70.. => "{prefix} {wide_bar} {pos}/{len} {msg} {eta}",
        30.. => "{prefix} {wide_bar} {percent}% {eta}",
        _ => "{percent}% {eta}",
    }
}

fn bar(name: &str, length: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length as u64), ProgressDrawTarget::stderr());
    let columns = usize::from(Term::stderr().size().1);
    bar.set_style(ProgressStyle::with_template(layout(columns)).expect("a valid template"));
    bar.set_prefix(name.to_string());
    bar
}

/// Formats a number of bytes in the largest fitting unit.
pub fn bytes(n: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use std::sync::{Arc, Mutex};

    /// A terminal of a given width that keeps the lines drawn to it.
    #[derive(Clone, Debug)]
    struct Narrow(u16, Arc<Mutex<String>>);

    impl TermLike for Narrow {
        fn width(&self) -> u16 {
            self.0
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.1.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("\n")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_progress_bar_fits_its_terminal() {
        for columns in [12, 20, 30, 45, 69, 70, 90, 110, 200] {
            let drawn = Arc::new(Mutex::new(String::new()));
            let target = ProgressDrawTarget::term_like(Box::new(Narrow(columns, drawn.clone())));
            let bar = ProgressBar::with_draw_target(Some(100_000), target);
            bar.set_style(ProgressStyle::with_template(layout(usize::from(columns))).unwrap());
            bar.set_prefix("training");
            bar.set_message("loss 0.1234  12345 images/s");
            bar.set_position(12_345);
            bar.abandon();
            let drawn = drawn.lock().unwrap().clone();
            assert!(drawn.contains("12"), "{columns}: {drawn:?}");
            for line in drawn.lines() {
                assert!(line.trim_end().chars().count() <= usize::from(columns), "{columns}: {line:?}");
            }
        }
    }

    #[test]
    fn control_characters_are_shown_as_escapes() {
        assert_eq!(visible("a\u{1b}[31mb\r\u{7f}\u{9b}\u{202e}"), "a\\u001b[31mb\\u000d\\u007f\\u009b\\u202e");
        for text in ["two\nlines\tand a tab", "名前 café 🙂", ""] {
            assert_eq!(visible(text), text);
        }
    }

    #[test]
    fn the_escapes_are_valid_in_json() {
        let value = serde_json::Value::from("\u{7f}\u{9b}\u{1b}");
        let shown = visible(&value.to_string()).into_owned();
        assert!(shown.is_ascii() && !shown.contains(char::is_control), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn only_a_reader_that_has_gone_ends_a_listing_quietly() {
        let error = |path: &str, kind: ErrorKind| Error::Io { path: path.to_string(), source: kind.into() };
        assert!(is_closed_output(&error(STDOUT, ErrorKind::BrokenPipe)));
        assert!(!is_closed_output(&error(STDOUT, ErrorKind::StorageFull)));
        assert!(!is_closed_output(&error("a file", ErrorKind::BrokenPipe)));
    }
}

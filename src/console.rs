//! Progress of a command on standard error: progress bars on a terminal, plain lines in a log.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use run_folder::watcher::{Stage, Watcher};
use std::io::IsTerminal;

/// Shows one progress bar at a time.
pub struct Console {
    bar: Option<(Stage, ProgressBar)>,
    is_terminal: bool,
}

impl Console {
    /// Creates a console on standard error.
    pub fn new() -> Self {
        Self { bar: None, is_terminal: std::io::stderr().is_terminal() }
    }
}

impl Watcher for Console {
    fn progress(&mut self, stage: Stage, done: usize, total: usize, message: &str) {
        if !self.is_terminal {
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
                bar.set_message(message.to_string());
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
            Some((_, bar)) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    fn logged(&mut self, step: usize, steps: usize, summary: &str, seconds_left: f64) {
        if !self.is_terminal {
            eprintln!("step {step}/{steps}  {summary}  {seconds_left:.0} s left");
        }
    }
}

fn bar(name: &str, length: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length as u64), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{prefix} {bar:32} {pos}/{len}  {msg}  {eta} left").expect("a valid template");
    bar.set_style(style);
    bar.set_prefix(name.to_string());
    bar
}

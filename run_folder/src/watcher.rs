//! How a caller observes a run: the progress of each stage, and messages.

/// A stage of a run that reports progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The tokenizer fits its codebook.
    Tokenizer,
    /// The optimizer takes steps.
    Training,
    /// Images are sampled.
    Sampling,
    /// Dataset items are encoded.
    Encoding,
    /// Real images are read for a comparison.
    Reference,
    /// Images are read and measured.
    Measuring,
}

impl Stage {
    /// Returns the name shown on the progress bar.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Training => "training",
            Self::Sampling => "sampling",
            Self::Encoding => "encoding",
            Self::Reference => "real images",
            Self::Measuring => "measuring",
        }
    }
}

/// Observer of a run. The command shows progress bars; a server could publish the same events.
pub trait Watcher {
    /// Reports that `done` of `total` units of `stage` are done. `message` describes the state in a few words.
    fn progress(&mut self, stage: Stage, done: usize, total: usize, message: &str);

    /// Reports that `stage` has ended.
    fn finished(&mut self, stage: Stage);

    /// Shows one line of text, such as a warning or the path of a saved checkpoint.
    fn say(&mut self, line: &str);

    /// Reports a logged training step. Called every `log_every` steps.
    fn logged(&mut self, step: usize, steps: usize, summary: &str, seconds_left: f64) {
        let _ = (step, steps, summary, seconds_left);
    }
}

/// Watcher that ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Watcher for Silent {
    fn progress(&mut self, _: Stage, _: usize, _: usize, _: &str) {}
    fn finished(&mut self, _: Stage) {}
    fn say(&mut self, _: &str) {}
}

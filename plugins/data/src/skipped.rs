//! Counts the entries that a dataset skips when it is opened, by reason.

use std::collections::BTreeMap;
use std::fmt::Display;

/// The number of skipped entries for each reason, and the first entry of each.
#[derive(Clone, Debug, Default)]
pub struct Skipped(BTreeMap<String, (usize, String)>);

impl Skipped {
    /// Counts one more entry `what`, skipped for `reason`.
    pub fn because(&mut self, reason: impl Into<String>, what: impl Display) {
        self.0.entry(reason.into()).or_insert_with(|| (0, what.to_string())).0 += 1;
    }

    /// Returns one sentence per reason.
    pub fn warnings(&self) -> Vec<String> {
        let sentence = |(reason, (count, first)): (&String, &(usize, String))| {
            format!("{count} skipped: {reason}; the first is {first}")
        };
        self.0.iter().map(sentence).collect()
    }
}

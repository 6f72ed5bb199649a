//! What a dataset leaves out when it is opened, counted by reason.

use std::collections::BTreeMap;
use std::fmt::Display;

/// How many were left out for each reason, and the first of them.
#[derive(Clone, Debug, Default)]
pub struct Skipped(BTreeMap<String, (usize, String)>);

impl Skipped {
    /// Counts one more.
    pub fn because(&mut self, reason: impl Into<String>, what: impl Display) {
        self.0.entry(reason.into()).or_insert_with(|| (0, what.to_string())).0 += 1;
    }

    /// One sentence a reason.
    pub fn warnings(&self) -> Vec<String> {
        let sentence = |(reason, (count, first)): (&String, &(usize, String))| {
            format!("{count} skipped: {reason}; the first is {first}")
        };
        self.0.iter().map(sentence).collect()
    }
}

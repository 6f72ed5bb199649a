//! Counts the entries that a dataset skips when it is opened, and the items that it changes when it reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

/// The number of skipped entries for each reason, and the first entry of each.
#[derive(Clone, Debug, Default)]
pub struct Skipped(BTreeMap<String, (usize, String)>);

impl Skipped {
    /// Counts one more entry `what`, skipped for `reason`.
    pub fn because(&mut self, reason: impl Into<String>, what: impl Display) {
        self.0.entry(printable(&reason.into())).or_insert_with(|| (0, printable(&what.to_string()))).0 += 1;
    }

    /// Returns one sentence per reason.
    pub fn warnings(&self) -> Vec<String> {
        let sentence = |(reason, (count, first)): (&String, &(usize, String))| {
            format!("{count} skipped: {reason}; the first is {first}")
        };
        self.0.iter().map(sentence).collect()
    }

    /// Returns the sentences as lines that follow an error message.
    pub fn lines(&self) -> String {
        self.warnings().iter().map(|warning| format!("\n  {warning}")).collect()
    }
}

/// Counts the changed items per reason, each item once. Threads share the counts.
#[derive(Debug, Default)]
pub struct Changed(Mutex<BTreeMap<String, (BTreeSet<usize>, String)>>);

impl Changed {
    /// Counts the item `index`, which messages call `what`, unless it was counted for this reason.
    pub fn because(&self, reason: &str, index: usize, what: impl Display) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (items, first) = all.entry(reason.to_string()).or_default();
        if items.first().is_none_or(|known| index < *known) {
            *first = printable(&what.to_string());
        }
        items.insert(index);
    }

    /// Returns one sentence per reason.
    pub fn notes(&self) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(reason, (items, first))| format!("{} {reason}; the first is {first}", items.len())).collect()
    }
}

/// Escapes control characters, which could change what a terminal shows.
pub fn printable(text: &str) -> String {
    let escaped = |letter: char| match letter.is_control() {
        true => letter.escape_default().collect::<String>(),
        false => letter.to_string(),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_the_first_entry_is_named() {
        let mut skipped = Skipped::default();
        skipped.because("a link", "b\u{1b}[2J");
        skipped.because("a link", "a");
        assert_eq!(skipped.warnings(), ["2 skipped: a link; the first is b\\u{1b}[2J"]);
        assert_eq!(skipped.lines(), "\n  2 skipped: a link; the first is b\\u{1b}[2J");
    }

    #[test]
    fn changed_items_are_counted_once() {
        let changed = Changed::default();
        for (index, name) in [(3, "d"), (1, "b"), (3, "d"), (2, "c")] {
            changed.because("images have transparent pixels", index, name);
        }
        assert_eq!(changed.notes(), ["3 images have transparent pixels; the first is b"]);
    }
}

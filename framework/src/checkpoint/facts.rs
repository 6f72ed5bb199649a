//! Facts about the dataset that a checkpoint stores.

use serde::{Deserialize, Serialize};

/// Facts about the dataset of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// Names of the classes, by index; `None` if the classes have no names.
    pub class_names: Option<Vec<String>>,
    /// Number of items.
    pub items: usize,
    /// SHA-256 over the descriptions of all items, hexadecimal; empty in checkpoints of earlier versions.
    #[serde(default)]
    pub listing: String,
    /// SHA-256 over the properties and a sample of the items, hexadecimal.
    pub fingerprint: String,
}

impl DatasetFacts {
    /// Compares the data of a run with the data that it resumes with. Returns one line per difference.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.items != now.items {
            found.push(format!("the number of items was {}, and is {} now", self.items, now.items));
        }
        if self.class_names != now.class_names {
            found.push(classes(self.class_names.as_deref(), now.class_names.as_deref()));
        }
        if found.is_empty() && self.listing != now.listing && !self.listing.is_empty() {
            found.push("the names, sizes or labels of items changed".to_string());
        }
        if found.is_empty() && self.fingerprint != now.fingerprint {
            found.push("the content of items changed".to_string());
        }
        found
    }
}

/// Maximum number of class names that a message lists.
const LISTED: usize = 8;

/// Describes the difference between two lists of class names.
fn classes(before: Option<&[String]>, now: Option<&[String]>) -> String {
    let (before, now) = (before.unwrap_or_default(), now.unwrap_or_default());
    let lost: Vec<&String> = before.iter().filter(|name| !now.contains(name)).collect();
    let new: Vec<&String> = now.iter().filter(|name| !before.contains(name)).collect();
    let list = |names: &[&String]| match names {
        [] => "none".to_string(),
        _ if names.len() > LISTED => format!("{} classes", names.len()),
        _ => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    };
    if lost.is_empty() && new.is_empty() {
        return "the order of the classes changed".to_string();
    }
    format!("classes that are gone: {}; new classes: {}", list(&lost), list(&new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(names: &[&str], items: usize, listing: &str, fingerprint: &str) -> DatasetFacts {
        let class_names = (!names.is_empty()).then(|| names.iter().map(ToString::to_string).collect());
        DatasetFacts { class_names, items, listing: listing.into(), fingerprint: fingerprint.into() }
    }

    #[test]
    fn differences_say_what_changed() {
        let run = facts(&["cat", "dog"], 6, "a", "b");
        assert_eq!(run.differences(&run), Vec::<String>::new());
        let renamed = run.differences(&facts(&["dog", "zebra"], 6, "c", "d"));
        assert_eq!(renamed, ["classes that are gone: `cat`; new classes: `zebra`"]);
        assert_eq!(run.differences(&facts(&["dog", "cat"], 6, "c", "d")), ["the order of the classes changed"]);
        assert_eq!(run.differences(&facts(&["cat", "dog"], 5, "c", "d")), ["the number of items was 6, and is 5 now"]);
        let listing = run.differences(&facts(&["cat", "dog"], 6, "c", "b"));
        assert_eq!(listing, ["the names, sizes or labels of items changed"]);
        assert_eq!(run.differences(&facts(&["cat", "dog"], 6, "a", "d")), ["the content of items changed"]);
        // An earlier version stored no listing.
        assert_eq!(facts(&[], 6, "", "b").differences(&facts(&[], 6, "c", "b")), Vec::<String>::new());
    }
}

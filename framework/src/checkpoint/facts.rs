//! What a checkpoint remembers of the dataset.

use serde::{Deserialize, Serialize};

/// What a run remembers of its dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// Names of the classes, by index; `None` if the classes have no names.
    pub class_names: Option<Vec<String>>,
    /// Number of items.
    pub items: usize,
    /// SHA-256 over the properties and a sample of the items, hexadecimal.
    pub fingerprint: String,
}

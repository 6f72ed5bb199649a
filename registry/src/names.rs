//! Suggestions for misspelt names, lists of names, and JSON pointers.

/// Returns the accepted name with the smallest edit distance to `name`. `None` if no name is near enough to be meant.
pub fn nearest<'a>(name: &str, accepted: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let name = name.to_lowercase();
    let length = name.chars().count();
    // The distance is at least the difference of the lengths. Names from a document may be very long.
    let may_be_near = |candidate: &&str| {
        let count = candidate.chars().count();
        count.abs_diff(length) <= count.div_ceil(3)
    };
    accepted
        .into_iter()
        .filter(may_be_near)
        .map(|candidate| (strsim::damerau_levenshtein(&name, &candidate.to_lowercase()), candidate))
        .filter(|(edits, candidate)| *edits <= candidate.chars().count().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate.to_string())
}

/// Formats names as a list in a message.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    if names.is_empty() { "nothing".to_string() } else { names.join(", ") }
}

/// Appends `key` to a JSON pointer (RFC 6901).
pub(crate) fn join(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Splits a JSON pointer into the pointer of the parent and the last key.
pub(crate) fn split(pointer: &str) -> Option<(&str, String)> {
    let (parent, key) = pointer.rsplit_once('/')?;
    Some((parent, key.replace("~1", "/").replace("~0", "~")))
}

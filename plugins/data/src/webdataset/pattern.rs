//! Patterns that name several shards.

use std::path::PathBuf;

/// Maximum number of shards that one pattern may expand to.
const MOST_SHARDS: usize = 100_000;

/// Expands the ranges `{000..012}` of a pattern. Numbers are padded with zeros to the width of the first one.
pub fn expand(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, behind)) = rest.split_once('{') {
        let (range, after) = behind.split_once('}').ok_or("a `{` is not closed")?;
        let (first, last) = range.split_once("..").ok_or(format!("{{{range}}} is not a range of numbers"))?;
        let number = |text: &str| text.parse::<usize>().map_err(|_| format!("{{{range}}} is not a range of numbers"));
        let (from, to, width) = (number(first)?, number(last)?, first.len());
        if from > to {
            return Err(format!("{{{range}}} counts down"));
        }
        if to - from >= MOST_SHARDS / paths.len() {
            return Err(format!("it names more than {MOST_SHARDS} shards"));
        }
        let longer = |path: &String| (from..=to).map(move |i| format!("{path}{before}{i:0width$}")).collect::<Vec<_>>();
        paths = paths.iter().flat_map(longer).collect();
        rest = after;
    }
    Ok(paths.into_iter().map(|path| PathBuf::from(path + rest)).collect())
}

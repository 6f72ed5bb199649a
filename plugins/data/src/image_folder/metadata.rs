//! Reads captions from `metadata.jsonl`, in the layout of Hugging Face's ImageFolder.

use crate::decode::caption;
use crate::skipped::Skipped;
use framework::error::{Error, Result};
use framework::prelude::*;
use framework::serde_json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path as FilePath, PathBuf};

/// Longest line of `metadata.jsonl` that is read, in bytes.
pub const LONGEST_LINE: u64 = 1 << 20;

/// One line of `metadata.jsonl`; other keys are ignored.
#[derive(Deserialize)]
struct Line {
    file_name: String,
    text: String,
}

/// Reads the captions in `metadata.jsonl`, keyed by file name relative to the folder.
pub fn metadata(path: &FilePath, skipped: &mut Skipped) -> Result<BTreeMap<PathBuf, String>> {
    let mut reader = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
    let mut told = BTreeMap::new();
    for number in 1.. {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes);
        if read.map_err(|e| Error::io(path, e))? == 0 {
            break;
        }
        let at = format!("line {number} of {}", path.display());
        if bytes.len() as u64 == LONGEST_LINE && bytes.last() != Some(&b'\n') {
            reader.skip_until(b'\n').map_err(|e| Error::io(path, e))?;
            skipped.because(format!("a line longer than {LONGEST_LINE} bytes"), at);
            continue;
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let Ok(Line { file_name, text }) = serde_json::from_slice(&bytes) else {
            skipped.because("a line that is not a JSON object with \"file_name\" and \"text\"", at);
            continue;
        };
        let parts: Vec<Component<'_>> =
            FilePath::new(&file_name).components().filter(|part| *part != Component::CurDir).collect();
        if !parts.iter().all(|part| matches!(part, Component::Normal(_))) {
            skipped.because("a file name that is absolute or leads out of the folder", at);
            continue;
        }
        match caption(text.as_bytes()) {
            Err(reason) => skipped.because(reason, at),
            Ok(_) if told.contains_key(&parts.iter().collect::<PathBuf>()) => {
                skipped.because("a second line for the same file", at);
            }
            Ok(caption) => drop(told.insert(parts.iter().collect(), caption)),
        }
    }
    Ok(told)
}

//! Reads captions from `metadata.jsonl`, in the layout of Hugging Face's ImageFolder.

use crate::regular;
use crate::skipped::Skipped;
use crate::text::{caption, decoded, is_utf16};
use framework::error::{Error, Result};
use framework::prelude::*;
use framework::serde_json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Component, Path as FilePath, PathBuf};

/// Name of the file in the folder.
pub const NAME: &str = "metadata.jsonl";
/// Largest file in UTF-16 that is read, in bytes. It is converted in memory.
const LARGEST_WIDE: u64 = 256 << 20;
/// Longest line of `metadata.jsonl` that is read, in bytes.
pub const LONGEST_LINE: u64 = 1 << 20;

/// One line of `metadata.jsonl`; other keys are ignored.
#[derive(Deserialize)]
struct Line {
    file_name: String,
    text: String,
}

/// Opens the file as UTF-8.
fn reader(path: &FilePath) -> Result<Box<dyn BufRead>> {
    let failed = |error| Error::io(path, error);
    let mut file = BufReader::new(regular::open(path).map_err(failed)?);
    if !is_utf16(file.fill_buf().map_err(failed)?) {
        return Ok(Box::new(file));
    }
    let bytes = regular::read(path, LARGEST_WIDE).map_err(failed)?;
    match decoded(&bytes) {
        Some(text) => Ok(Box::new(Cursor::new(text.into_owned().into_bytes()))),
        None => Err(Error::file(path, "starts as UTF-16, but is not valid UTF-16; convert it to UTF-8")),
    }
}

/// Reads the captions in `metadata.jsonl`, keyed by file name relative to the folder.
pub fn metadata(path: &FilePath, skipped: &mut Skipped) -> Result<BTreeMap<PathBuf, String>> {
    let mut reader = reader(path)?;
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
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1).unwrap_or(&bytes).trim_ascii();
        if bytes.is_empty() {
            continue;
        }
        let Ok(Line { file_name, text }) = serde_json::from_slice(bytes) else {
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

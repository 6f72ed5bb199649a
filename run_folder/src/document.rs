//! Reads a pipeline document with its overrides, and builds a checked pipeline from it.

use crate::nearest_file::nearest_file;
use framework::error::{Error, Problem, Problems, Result};
use framework::pipeline::Pipeline;
use registry::{Registry, library};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Reads the document at `path`, applies the overrides, and parses, checks and builds it.
///
/// # Errors
/// If the file cannot be read, an override is malformed, a plugin library is not loaded, or the document has problems.
pub fn read(path: &Path, overrides: &[String]) -> Result<Pipeline> {
    from_text(&text(path)?, overrides, &path.display().to_string())
}

/// Reads the text of a document's file.
///
/// # Errors
/// If the file cannot be read or is too large.
pub fn text(path: &Path) -> Result<String> {
    let failed = |e: std::io::Error| {
        let near = if e.kind() == ErrorKind::NotFound { nearest_file(path) } else { None };
        Error::from(Problem::new("", format!("{}: {e}", path.display())).nearest(near))
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    // A device or a pipe has no size that could be checked before, so limit the read.
    file.take(registry::MOST_BYTES as u64 + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() > registry::MOST_BYTES {
        return Err(registry::too_large().in_file(&path.display().to_string()).into());
    }
    String::from_utf8(text).map_err(|e| failed(std::io::Error::new(ErrorKind::InvalidData, e)))
}

/// Does the same as [`read`] for the text of a document. Error messages call it `name`.
///
/// # Errors
/// Like [`read`].
pub fn from_text(text: &str, overrides: &[String], name: &str) -> Result<Pipeline> {
    let registry = Registry::linked();
    let show = |problems: Problems| Error::input(problems, name);
    let (mut value, mut problems) = registry::read(text).map_err(|problem| show(vec![problem]))?;
    for change in overrides {
        let Some((pointer, new)) = change.split_once('=') else {
            problems.push(Problem::new("", format!("--set {change} has no `=`")).accepts("--set /POINTER=VALUE"));
            continue;
        };
        if let Err(problem) = registry::set(&mut value, pointer, new) {
            problems.push(problem);
        }
    }
    if !problems.is_empty() {
        return Err(show(problems));
    }
    let missing = library::missing(&value);
    if !missing.is_empty() {
        return Err(show(missing));
    }
    let document = registry.parse_value(value).map_err(show)?;
    let problems = registry.check(&document);
    if !problems.is_empty() {
        return Err(show(problems));
    }
    Ok(registry.build(document))
}

//! Reads a pipeline document with its overrides, and builds a checked pipeline from it.

use framework::error::{Error, Problem, Problems, Result};
use framework::pipeline::Pipeline;
use registry::{Registry, library};
use std::path::Path;

/// Reads the document at `path`, applies the overrides, and parses, checks and builds it.
///
/// # Errors
/// If the file cannot be read, an override is malformed, a plugin library is not loaded, or the document has problems.
pub fn read(path: &Path, overrides: &[String]) -> Result<Pipeline> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::from(Problem::new("", format!("{}: {e}", path.display()))))?;
    from_text(&text, overrides, &path.display().to_string())
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

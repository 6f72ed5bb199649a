//! The plugin libraries that a command loads: from `--plugin-dir`, from `UNGUIDED_PLUGINS`, and from its document's
//! `plugins`. Opening a library runs its code, so the command loads no library that the user did not name.

use crate::Outcome;
use framework::error::{Error, Problem, Result};
use registry::{Registry, library};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Opens the requested libraries. Must run before the first document is parsed.
pub fn load(named: &[PathBuf], document: Option<&Path>) -> Outcome {
    let environment = env::var_os("UNGUIDED_PLUGINS").unwrap_or_default();
    let environment = env::split_paths(&environment).filter(|path| !path.as_os_str().is_empty());
    let mut libraries = Vec::new();
    for path in named.iter().cloned().chain(environment) {
        libraries.extend(within(&path)?);
    }
    libraries.extend(document.map(listed).unwrap_or_default());
    if libraries.is_empty() {
        return Ok(());
    }
    if !cfg!(feature = "shared") {
        return Err(Error::from(
            Problem::new(libraries[0].display().to_string(), "a build without feature `shared` cannot load plugins")
                .fix("build it with its default features, or link the plugin (see `unguided::main`)"),
        ));
    }
    Registry::load(&libraries).map(|_| ()).map_err(Error::Input)
}

/// Returns the libraries in a folder, or `path` itself if it is not a folder.
fn within(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).map_err(|e| Error::from(Problem::new("", format!("{}: {e}", path.display()))))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension() == Some(OsStr::new(env::consts::DLL_EXTENSION)));
    if found.is_empty() {
        return Err(Error::from(
            Problem::new(path.display().to_string(), "the folder contains no plugin library")
                .accepts(format!("a folder with .{} files, or one such file", env::consts::DLL_EXTENSION)),
        ));
    }
    found.sort();
    Ok(found)
}

/// Returns the libraries that a document lists. Problems with the document are reported later, when it is parsed.
fn listed(document: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(document).unwrap_or_default();
    let folder = document.parent().unwrap_or(Path::new(""));
    registry::read(&text)
        .map(|(value, _)| library::listed(&value).map(|name| folder.join(name)).collect())
        .unwrap_or_default()
}

//! The plugin libraries that a command loads: from `--plugin-dir`, from `UNGUIDED_PLUGINS`, and from its document's
//! `plugins`. Opening a library runs its code. The user sets the options and the environment, but a document may come
//! from anyone. So its libraries need the user's consent.

use crate::Outcome;
use crate::consent::{self, Consent};
use framework::error::{Error, Problem, Problems, Result};
use registry::Registry;
use registry::library::{self, Library};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the libraries that the options `named` and the environment name.
///
/// # Errors
/// If a folder cannot be read or contains no library.
pub fn named(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let environment = env::var_os("UNGUIDED_PLUGINS").unwrap_or_default();
    let environment = env::split_paths(&environment).filter(|path| !path.as_os_str().is_empty());
    let mut paths = Vec::new();
    for path in named.iter().cloned().chain(environment) {
        paths.extend(within(&path)?);
    }
    Ok(paths)
}

/// Opens the requested libraries. Must run before the first document is parsed. `trusted` is the consent to all
/// libraries that the document lists.
pub fn load(options: &[PathBuf], document: Option<&Path>, trusted: bool) -> Outcome {
    let paths = named(options)?;
    let listed = document.map(listed).unwrap_or_default();
    let Some(first) = paths.first().or(listed.first()) else { return Ok(()) };
    if !cfg!(feature = "shared") {
        return Err(Error::from(
            Problem::new(first.display().to_string(), "a build without feature `shared` cannot load plugins")
                .fix("build it with its default features, or link the plugin (see `unguided::main`)"),
        ));
    }
    let (mut libraries, mut refused) = (Vec::new(), Problems::new());
    for path in library::distinct(&paths) {
        match Library::read(&path) {
            Ok(library) => libraries.push(library),
            Err(problem) => refused.push(problem),
        }
    }
    // A library that the user named replaces a listed one of the same file name.
    let is_named = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| library::is_open(name) || paths.iter().any(|named| named.file_name() == Some(name)))
    };
    for (i, path) in listed.iter().enumerate().filter(|(_, path)| !is_named(path)) {
        let document = document.expect("only a document lists libraries");
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        if libraries.iter().any(|library: &Library| library.path == path) {
            continue;
        }
        match Library::read(&path).and_then(|library| library.check().map(|()| library)) {
            Ok(library) => match consent::of(&library, document, trusted, refused.is_empty()) {
                Consent::Given => libraries.push(library),
                Consent::Missing => refused.push(consent::missing(&library, document, i)),
            },
            Err(problem) => refused.push(problem),
        }
    }
    Registry::open(libraries, refused).map(|_| ()).map_err(Error::Input)
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
    let text = run_folder::document::text(document).unwrap_or_default();
    let folder = document.parent().unwrap_or(Path::new(""));
    registry::read(&text)
        .map(|(value, _)| library::listed(&value).map(|name| folder.join(name)).collect())
        .unwrap_or_default()
}

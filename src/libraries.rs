//! Which plugin libraries a command loads: those of `--plugin-dir`, of `UNGUIDED_PLUGINS`, and of its document's
//! `plugins`. Nothing is loaded unasked, since opening a library runs its code.

use crate::{Failure, Outcome};
use framework::error::Problem;
use registry::{Registry, library};
use serde_json::Value;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Opens what was asked for, before the first document is parsed.
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
        return Err(Failure::Input(format!(
            "error: this build is one file and cannot load plugin libraries\n  at       {}\n  fix      build it with its default features, or link the plugin: see `unguided::main`",
            libraries[0].display()
        )));
    }
    let show = |all: Vec<library::Refused>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    Registry::load(&libraries).map(|_| ()).map_err(|refused| Failure::Input(show(refused)))
}

/// The libraries of a folder, or the one library that is named.
fn within(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).map_err(|e| Failure::Input(format!("error: {}: {e}", path.display())))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension() == Some(OsStr::new(env::consts::DLL_EXTENSION)));
    if found.is_empty() {
        return Err(Failure::Input(format!(
            "error: the folder holds no plugin library\n  at       {}\n  accepts  a folder with files that end in .{}, or one such file",
            path.display(),
            env::consts::DLL_EXTENSION
        )));
    }
    found.sort();
    Ok(found)
}

/// The libraries that a document lists. What is wrong with the document is reported when it is parsed.
fn listed(document: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(document).unwrap_or_default();
    let folder = document.parent().unwrap_or(Path::new(""));
    registry::read(&text).map(|(value, _)| names(&value).map(|name| folder.join(name)).collect()).unwrap_or_default()
}

fn names(document: &Value) -> impl Iterator<Item = &str> {
    document["plugins"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The libraries that a document lists and that are not open: a checkpoint's document opens none.
pub fn missing(document: &Value) -> Vec<Problem> {
    let is_open = |name: &str| Path::new(name).file_name().is_some_and(library::is_open);
    let missing = names(document).enumerate().filter(|(_, name)| !is_open(name));
    missing
        .map(|(i, name)| {
            Problem::new(format!("/plugins/{i}"), format!("the plugin library \"{name}\" is not loaded"))
                .accepts("libraries that the command line names: a checkpoint's word is not enough to run their code")
                .fix("add --plugin-dir FOLDER")
        })
        .collect()
}

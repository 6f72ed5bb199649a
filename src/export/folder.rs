//! The folder of an export. It is written next to its final name and then renamed, so it is complete or absent.

use crate::{Outcome, outputs};
use framework::checkpoint::component::write_json;
use framework::checkpoint::tensor_file::write_atomically;
use framework::error::{Error, Problem, Result};
use serde_json::{Value, json};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The list of the files that an export wrote. A folder is only replaced if it lists everything in the folder.
const LIST: &str = "export.json";

/// A checked folder, which [`Folder::write`] creates.
pub struct Folder<'a> {
    path: &'a Path,
    /// Whether an earlier export is replaced.
    replaces: bool,
}

impl<'a> Folder<'a> {
    /// Checks before any work that the folder can be written.
    ///
    /// # Errors
    /// If it contains files and `force` is not set, or files of anything but an export.
    pub fn check(path: &'a Path, force: bool) -> Result<Self> {
        let refuse = |what: String| Problem::new("FOLDER", what).accepts("a new or empty folder");
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.file_name().is_none() {
            return Err(refuse(format!("{} names no folder of its own", path.display())).into());
        }
        let found = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(refuse(format!("{}: {error}", path.display())).into()),
        };
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
            return Err(refuse(format!("{} is a symbolic link", path.display())).into());
        }
        if found {
            let problem = refuse(format!("{} contains files", path.display()));
            if !force {
                return Err(problem.fix("choose another folder, or replace an earlier export with --force").into());
            }
            if let Some(other) = not_exported(path)? {
                let what = format!("{} contains {}, which no export wrote", path.display(), other.display());
                return Err(refuse(what).fix("choose another folder, or move that file").into());
            }
        }
        if !parent.is_dir() {
            let what = format!("the folder {} does not exist", parent.display());
            return Err(Problem::new("FOLDER", what).fix("create it, or choose another folder").into());
        }
        outputs::writable("FOLDER", parent)?;
        Ok(Self { path, replaces: found })
    }

    /// Writes the folder. `write` fills it under another name.
    ///
    /// # Errors
    /// If a file cannot be written. Then the folder is as it was.
    pub fn write(&self, layout: &str, write: &mut dyn FnMut(&Path) -> Outcome) -> Outcome {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |e: std::io::Error| Error::io(self.path, e);
        // The folder is removed if it is dropped before its rename.
        let partial = tempfile::Builder::new().prefix(".export-").tempdir_in(parent).map_err(failed)?;
        let content = partial.path().join("content");
        fs::create_dir(&content).map_err(failed)?;
        write(&content)?;
        let files: Vec<String> = files(&content)?.iter().map(|file| file.display().to_string()).collect();
        let list = json!({ "unguided": env!("CARGO_PKG_VERSION"), "to": layout, "files": files });
        write_json(&content.join(LIST), &list)?;
        let old = partial.path().join("replaced");
        if self.replaces {
            fs::rename(self.path, &old).map_err(failed)?;
        }
        fs::rename(&content, self.path).map_err(|error| {
            if self.replaces {
                let _ = fs::rename(&old, self.path);
            }
            failed(error)
        })
    }
}

/// Writes a text file.
pub fn text(folder: &Path, name: &str, content: &str) -> Outcome {
    write_atomically(&folder.join(name), [content.as_bytes()])
}

/// Returns the paths of all files in a folder, relative to it and sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(inner) = open.pop() {
        let path = folder.join(&inner);
        for entry in fs::read_dir(&path).map_err(|e| Error::io(&path, e))? {
            let entry = entry.map_err(|e| Error::io(&path, e))?;
            let kind = entry.file_type().map_err(|e| Error::io(&path, e))?;
            let name = inner.join(entry.file_name());
            if kind.is_dir() { open.push(name) } else { found.push(name) }
        }
    }
    found.sort();
    Ok(found)
}

/// Returns a file in the folder that no export wrote, if there is one.
fn not_exported(folder: &Path) -> Result<Option<PathBuf>> {
    let list = fs::read(folder.join(LIST)).unwrap_or_default();
    let list: Value = serde_json::from_slice(&list).unwrap_or_default();
    let listed: Vec<PathBuf> =
        list["files"].as_array().into_iter().flatten().filter_map(|name| Some(PathBuf::from(name.as_str()?))).collect();
    let is_other = |file: &PathBuf| !listed.contains(file) && (listed.is_empty() || file != Path::new(LIST));
    Ok(files(folder)?.into_iter().find(is_other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_complete_or_as_it_was_and_only_exports_are_replaced() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("model");
        let write = |force: bool, content: &str| -> Outcome {
            Folder::check(&path, force)?.write("lora", &mut |folder| {
                fs::create_dir(folder.join("unet")).unwrap();
                text(folder, "unet/a.txt", content)
            })
        };
        let now = || fs::read_to_string(path.join("unet/a.txt")).unwrap();
        let failed = Folder::check(&path, false).unwrap().write("lora", &mut |_| Err(Error::Run("full".into())));
        assert!(failed.is_err() && fs::read_dir(outer.path()).unwrap().count() == 0, "nothing is left");
        fs::create_dir(&path).unwrap();
        write(false, "first").unwrap();
        let error = write(false, "second").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--force") && now() == "first", "{error}");
        write(true, "second").unwrap();
        assert_eq!(now(), "second");
        fs::write(path.join("unet/mine.txt"), "precious").unwrap();
        let error = write(true, "third").unwrap_err().to_string();
        assert!(error.contains("mine.txt, which no export wrote"), "{error}");
        assert_eq!((now().as_str(), fs::read_dir(outer.path()).unwrap().count()), ("second", 1));
        // A folder without the list of an export is never replaced, and neither is a file.
        fs::remove_file(path.join(LIST)).unwrap();
        assert!(write(true, "third").is_err());
        fs::write(outer.path().join("file"), "").unwrap();
        assert!(Folder::check(&outer.path().join("file"), true).is_err());
        assert!(Folder::check(&outer.path().join("none/model"), false).is_err());
        assert!(Folder::check(Path::new("/"), true).is_err());
    }
}

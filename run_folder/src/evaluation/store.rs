//! The folder of an evaluation or a sweep: its request, its lock, and its results.
//!
//!   request.json      everything that the results depend on
//!   reference/        statistics of the real images, until the evaluation is complete
//!   samples/          samples, one file per batch, until the evaluation is complete
//!   evaluation.json   results; the same bytes for the same request, however often it was interrupted
//!   times.json        measured times

use crate::binding;
use framework::checkpoint::tensor_file::write_atomically;
use framework::error::{Error, Problem, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The folder of an evaluation or a sweep, locked until the value is dropped.
#[derive(Debug)]
pub struct Folder {
    /// Path of the folder.
    pub path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Creates or opens the folder for a request, and locks it.
    ///
    /// # Errors
    /// If the folder belongs to another request or contains other files, another process holds the lock, or a file
    /// cannot be written.
    pub fn open(path: &Path, request: &Value) -> Result<Self> {
        let failed = |error: std::io::Error| Error::from(refusal(format!("{}: {error}", path.display())));
        fs::create_dir_all(path).map_err(failed)?;
        let known = path.join("request.json");
        match fs::read_to_string(&known) {
            Ok(text) => {
                let begun: Value = serde_json::from_str(&text).unwrap_or_default();
                let differs = binding::differences("", &begun, request);
                if !differs.is_empty() {
                    let what = format!("{} contains an evaluation with another {}", path.display(), differs.join(", "));
                    return Err(refusal(what).fix("choose another folder, or delete this one").into());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if fs::read_dir(path).map_err(failed)?.any(|entry| entry.is_ok_and(|e| e.file_name() != "lock")) {
                    return Err(refusal(format!("{} already contains other files", path.display())).into());
                }
            }
            Err(error) => return Err(failed(error)),
        }
        let lock = path.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&lock).map_err(failed)?;
        // Some network file systems do not support locks.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let what = format!("another `evaluate` is running in {}", path.display());
            return Err(Error::failed(Problem::new("", what).fix("wait for it, or choose another folder")));
        }
        if !known.exists() {
            save(&known, request)?;
        }
        Ok(Self { path: path.to_path_buf(), _lock: file })
    }
}

fn refusal(what: String) -> Problem {
    Problem::new("--output", what).accepts("an empty folder, a new one, or one of the same evaluation")
}

/// Writes a value as JSON. The file is either complete or absent.
///
/// # Errors
/// If the file cannot be written.
pub fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Run(e.to_string()))?;
    write_atomically(path, [text.as_bytes(), b"\n"])
}

/// Reads a value that [`save`] wrote, or returns `None` if there is no file.
///
/// # Errors
/// If the file cannot be read, or has other content.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::file(path, format!("{e}; delete the file to measure again"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, error)),
    }
}

/// Removes a folder with all files in it, if it exists.
///
/// # Errors
/// If it cannot be removed.
pub fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(folder, error)),
        _ => Ok(()),
    }
}

/// Returns the SHA-256 of bytes, hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the default folder of a request: the first digits of its hash, in `evaluations` of the run, or of the working
/// directory. The same command therefore finds its own folder again.
pub fn default_path(run: Option<&Path>, request: &Value) -> PathBuf {
    let hash = sha256(request.to_string().as_bytes());
    run.unwrap_or(Path::new("")).join("evaluations").join(&hash[..12])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_folder_belongs_to_one_request_and_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/one");
        let open = |request: &Value| Folder::open(&path, request).map_err(|e| e.to_string());
        let first = open(&json!({ "samples": 3, "seed": 0 })).unwrap();
        assert!(open(&json!({ "samples": 3, "seed": 0 })).unwrap_err().contains("another `evaluate` is running"));
        drop(first);
        open(&json!({ "samples": 3, "seed": 0 })).unwrap();
        let said = open(&json!({ "samples": 4, "seed": 0 })).unwrap_err();
        assert!(said.contains("another /samples") && said.contains("--output"), "{said}");
        fs::write(folder.path().join("other"), "").unwrap();
        let said = Folder::open(folder.path(), &json!({})).unwrap_err();
        assert_eq!(said.exit_code(), 2);
        assert!(said.to_string().contains("already contains other files"), "{said}");
    }

    #[test]
    fn equal_requests_have_one_folder() {
        let (one, two) = (json!({ "samples": 3 }), json!({ "samples": 4 }));
        assert_eq!(default_path(None, &one), default_path(None, &one.clone()));
        assert_ne!(default_path(None, &one), default_path(None, &two));
        assert!(default_path(Some(Path::new("runs/a")), &one).starts_with("runs/a/evaluations"));
    }
}

//! A run folder: `document.json`, `checkpoints/`, `metrics.jsonl`, `samples/`, pictures, the report, and `lock`, which
//! the running `train` holds.

use crate::binding::{Binding, Changes};
use framework::checkpoint::tensor_file;
use framework::checkpoint::{self, Checkpoint};
use framework::error::{Error, Problem, Result};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Key in `metrics.jsonl` for the number of items that could not be read since the previous line. Each item counts
/// once, in epoch 0. Absent if zero.
pub const SKIPPED: &str = "skipped";

/// Key in `metrics.jsonl` for the duration of sampling and measuring, in seconds. Its line has the step and the results
/// of the metrics.
pub const EVALUATION_SECONDS: &str = "evaluation_seconds";

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// Path of the folder.
    pub path: PathBuf,
}

impl RunFolder {
    /// Returns the default run folder of a document: its file name without the extension, in `runs/`.
    pub fn default_path(pipeline: &Path) -> PathBuf {
        Path::new("runs").join(pipeline.file_stem().unwrap_or_default())
    }

    /// Opens the run folder, or creates it. [`RunFolder::claim`] then compares its document.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn open(folder: &Path) -> Result<Self> {
        let run = Self { path: folder.to_path_buf() };
        for folder in [run.checkpoints(), run.samples()] {
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        Ok(run)
    }

    /// Claims the locked folder for a document, and returns what changed since the run began. The new values of
    /// settings that do not bind the run are saved. A folder without a checkpoint is not bound to a document.
    ///
    /// # Errors
    /// If the folder contains a run of another document, or cannot be written.
    pub fn claim(&self, document: &str, binding: Binding) -> Result<Changes> {
        let path = self.path.join("document.json");
        let begun = match fs::read_to_string(&path) {
            Ok(begun) => begun,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tensor_file::write_atomically(&path, [document.as_bytes()])?;
                return Ok(Changes::default());
            }
            // An unreadable document may belong to a run: never overwrite it.
            Err(error) => {
                let problem =
                    Problem::new(path.display().to_string(), format!("unreadable document of a run: {error}"));
                return Err(problem.fix("make the file readable, or choose another folder with --run").into());
            }
        };
        if begun == document {
            return Ok(Changes::default());
        }
        let mut changes = binding.changes(&begun, document);
        if !changes.binding.is_empty() {
            if !checkpoint::list(&self.checkpoints())?.is_empty() {
                let what = format!("{} contains a run of another document", self.path.display());
                return Err(Problem::new(changes.binding.join(" and "), what)
                    .accepts(format!("the values of the document of that run: {}", path.display()))
                    .fix("choose another folder with --run, or restore these values")
                    .into());
            }
            // Without a checkpoint, nothing was trained. Remove the files that were prepared for the other document.
            for name in ["tokenizer.safetensors", "reference.safetensors", "metrics.jsonl"] {
                match fs::remove_file(self.path.join(name)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(Error::io(&self.path.join(name), error));
                    }
                    _ => {}
                }
            }
            changes = Changes::default();
        }
        tensor_file::write_atomically(&path, [document.as_bytes()])?;
        Ok(changes)
    }

    /// Locks the folder so that no other process trains in it. The lock ends when the file is dropped or the process
    /// ends in any way.
    ///
    /// # Errors
    /// If another process holds the lock, or the lock file cannot be created.
    pub fn lock(&self) -> Result<File> {
        let path = self.path.join("lock");
        // The name may be a symbolic link: its target keeps its content.
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::failed(
                Problem::new("", format!("another `train` is running in {}", self.path.display()))
                    .fix("wait for it, or choose another folder with --run"),
            )),
            // Some network file systems do not support locks.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Makes the checkpoint at `path`, saved after `step` steps, the newest of the run. Moves all checkpoints of later
    /// steps (including the best one) and any different checkpoint of the same step to a new folder. Returns that
    /// folder, or `None` if there was nothing to move.
    ///
    /// # Errors
    /// If a file cannot be read or moved.
    pub fn make_newest(&self, path: &Path, step: usize) -> Result<Option<PathBuf>> {
        let folder = self.checkpoints();
        let (kept, best) = (folder.join(checkpoint::file_name(step)), folder.join("best.safetensors"));
        let of = |path: &Path, name: &str| -> Result<Option<String>> {
            Ok(checkpoint::metadata(path)?.and_then(|metadata| metadata.get(name).cloned()))
        };
        let is_another = kept.exists() && of(&kept, "sha256")? != of(path, "sha256")?;
        let mut later = checkpoint::list(&folder)?;
        later.retain(|path| checkpoint::step_of(path).is_some_and(|found| found > step));
        if best.exists()
            && of(&best, "step")?.and_then(|found| found.parse().ok()).is_none_or(|found: usize| found > step)
        {
            later.push(best);
        }
        let mut numbered = (1..).map(|i| folder.join(format!("set-aside-{i}")));
        let aside = numbered.find(|aside| !aside.exists()).expect("an unused number exists");
        let any = is_another || !later.is_empty();
        if any {
            fs::create_dir(&aside).map_err(|e| Error::io(&aside, e))?;
        }
        let set_aside = |path: &Path| {
            let name = path.file_name().expect("the name of a checkpoint");
            fs::rename(path, aside.join(name)).map_err(|e| Error::io(path, e))
        };
        // Link the chosen checkpoint before moving the later ones. The run then has a checkpoint even if this fails.
        if is_another {
            set_aside(&kept)?;
        }
        if fs::canonicalize(path).ok() != fs::canonicalize(&kept).ok() {
            tensor_file::hard_link(path, &kept)?;
        }
        later.iter().try_for_each(|path| set_aside(path))?;
        Ok(any.then_some(aside))
    }

    /// Loads the newest checkpoint of the run with `load`, or returns `None` if there is none. `offer` formats the
    /// command that resumes from a given checkpoint.
    ///
    /// # Errors
    /// If the newest checkpoint is damaged or has another format. The message offers the newest intact checkpoint.
    pub fn newest(
        &self,
        load: fn(&Path) -> Result<Checkpoint>,
        offer: &dyn Fn(&Path) -> String,
    ) -> Result<Option<(PathBuf, Checkpoint)>> {
        let all = checkpoint::list(&self.checkpoints())?;
        let Some(last) = all.last() else { return Ok(None) };
        match load(last) {
            Ok(found) => Ok(Some((last.clone(), found))),
            Err(error) => {
                let format = checkpoint::metadata(last)?.and_then(|mut metadata| metadata.remove("format"));
                let whole = all.iter().rev().skip(1).find(|path| load(path).is_ok());
                let help = match whole {
                    _ if format.is_some_and(|format| format != checkpoint::FORMAT) => {
                        "resume with the build that wrote it, or choose another folder with --run".to_string()
                    }
                    Some(path) => {
                        format!("an earlier checkpoint is intact; resume from it with\n           {}", offer(path))
                    }
                    None => "no earlier checkpoint is intact; delete the run folder to start again".to_string(),
                };
                Err(Error::failed(Problem::new("", format!("{error}")).fix(help)))
            }
        }
    }

    /// Returns the folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Returns the folder of the sample grids saved during training.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// Returns the path of the file with the metrics of every logged step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_lock_that_is_a_link_leaves_its_target_alone() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join("lock")).unwrap();
        let run = RunFolder { path: folder.path().to_path_buf() };
        let held = run.lock().unwrap();
        assert!(run.lock().is_err(), "the link locks like a file");
        drop(held);
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }
}

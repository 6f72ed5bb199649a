//! A run's folder: `document.json`, `checkpoints/`, `metrics.jsonl`, `samples/`, pictures, the report, and `lock`, which the
//! one `train` that is at work holds.

use crate::Failure;
use framework::checkpoint::{self, Checkpoint};
use framework::error::Error;
use serde_json::Value;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its path.
    pub folder: PathBuf,
}

impl Run {
    /// The folder of a document that names none: `runs/` and the document's file name.
    pub fn default_folder(pipeline: &Path) -> PathBuf {
        Path::new("runs").join(pipeline.file_stem().unwrap_or_default())
    }

    /// Opens the folder, or makes it; the document must be the one the run began with.
    pub fn open(folder: &Path, document: &str) -> Result<Self, Failure> {
        let run = Self { folder: folder.to_path_buf() };
        for folder in [run.checkpoints(), run.folder.join("samples")] {
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        let path = run.folder.join("document.json");
        match fs::read_to_string(&path) {
            Ok(begun) if begun != document => {
                let parse = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
                let differ = differences("", &parse(&begun), &parse(document));
                Err(Failure::Input(format!(
                    "error: {} holds a run of another document\n  at       {}\n  accepts  the document it began with: {}\n  fix      choose another folder with --run, or delete this one",
                    run.folder.display(),
                    differ.join(" and "),
                    path.display(),
                )))
            }
            Ok(_) => Ok(run),
            Err(_) => {
                checkpoint::write_atomically(&path, [document.as_bytes()])?;
                Ok(run)
            }
        }
    }

    /// Keeps others from training in this folder until the file is dropped, or the process ends, however it does.
    pub fn lock(&self) -> Result<File, Failure> {
        let path = self.folder.join("lock");
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Failure::Run(format!(
                "error: another `train` runs in {}\n  fix      wait for it, or choose another folder with --run",
                self.folder.display()
            ))),
            // Some network file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Makes a checkpoint of `step` steps the newest. Those of later steps, the best among them, and another one of the same
    /// step are set aside, in the folder that is returned if there were any.
    pub fn make_newest(&self, path: &Path, step: usize) -> Result<Option<PathBuf>, Failure> {
        let folder = self.checkpoints();
        let (kept, best) = (folder.join(checkpoint::file_name(step)), folder.join("best.safetensors"));
        let of = |path: &Path, name: &str| -> Result<Option<String>, Failure> {
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
        let aside = numbered.find(|aside| !aside.exists()).expect("there are numbers enough");
        let any = is_another || !later.is_empty();
        if any {
            fs::create_dir(&aside).map_err(|e| Error::io(&aside, e))?;
        }
        let set_aside = |path: &Path| {
            let name = path.file_name().expect("the name of a checkpoint");
            fs::rename(path, aside.join(name)).map_err(|e| Error::io(path, e))
        };
        // The chosen one first, lest the run have no checkpoint if this fails.
        if is_another {
            set_aside(&kept)?;
        }
        if fs::canonicalize(path).ok() != fs::canonicalize(&kept).ok() {
            checkpoint::second_name(path, &kept)?;
        }
        later.iter().try_for_each(|path| set_aside(path))?;
        Ok(any.then_some(aside))
    }

    /// Where checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// The metrics of every logged step.
    pub fn metrics(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }
}

/// The newest checkpoint of a folder, as `load` reads it. A damaged one is refused and the one before it offered.
pub fn newest(
    checkpoints: &Path,
    load: fn(&Path) -> framework::error::Result<Checkpoint>,
    offer: &dyn Fn(&Path) -> String,
) -> Result<Option<(PathBuf, Checkpoint)>, Failure> {
    let all = checkpoint::list(checkpoints)?;
    let Some(last) = all.last() else { return Ok(None) };
    match load(last) {
        Ok(found) => Ok(Some((last.clone(), found))),
        Err(error) => {
            let format = checkpoint::metadata(last)?.and_then(|mut metadata| metadata.remove("format"));
            let whole = all.iter().rev().skip(1).find(|path| load(path).is_ok());
            let help = match whole {
                _ if format.is_some_and(|format| format != checkpoint::FORMAT) => {
                    "go on with the build that wrote it, or choose another folder with --run".to_string()
                }
                Some(path) => {
                    format!("the previous checkpoint is whole; go on from it with\n           {}", offer(path))
                }
                None => "there is no earlier whole checkpoint; delete the run's folder to begin again".to_string(),
            };
            Err(Failure::Run(format!("error: {error}\n  fix      {help}")))
        }
    }
}

/// JSON pointers at which two documents differ.
pub fn differences(at: &str, a: &Value, b: &Value) -> Vec<String> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            keys.into_iter()
                .flat_map(|key| {
                    let null = Value::Null;
                    differences(&format!("{at}/{key}"), x.get(key).unwrap_or(&null), y.get(key).unwrap_or(&null))
                })
                .collect()
        }
        _ if a == b => Vec::new(),
        _ => vec![at.to_string()],
    }
}

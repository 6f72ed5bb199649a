//! The served runs. A client names a run and a checkpoint by the names listed here; no part of a request becomes part of
//! a path.

use crate::refusal::Refusal;
use axum::http::StatusCode;
use framework::checkpoint;
use framework::error::{Error, Problem, Result};
use registry::nearest;
use run_folder::folder::RunFolder;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Name of the newest checkpoint of a run.
pub const NEWEST: &str = "newest";

/// A served run folder, or a single checkpoint.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name in requests, made of letters, digits, `-`, `_` and `.`.
    pub id: String,
    /// Path of the folder or of the checkpoint, as it was given.
    pub path: PathBuf,
}

/// A checkpoint of a run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Entry {
    /// Name in requests.
    pub name: String,
    /// Steps that it was trained for, if its name says so.
    pub step: Option<usize>,
    /// File of the checkpoint.
    #[serde(skip)]
    pub path: PathBuf,
}

impl Run {
    /// Returns the run as a run folder, or `None` for a single checkpoint.
    pub fn folder(&self) -> Option<RunFolder> {
        self.path.is_dir().then(|| RunFolder { path: self.path.clone() })
    }

    /// Lists the checkpoints, newest first, then the best one.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<Entry>> {
        let entry = |path: PathBuf| Entry {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            step: checkpoint::step_of(&path),
            path,
        };
        let Some(folder) = self.folder() else { return Ok(vec![entry(self.path.clone())]) };
        let folder = folder.checkpoints();
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let mut all: Vec<Entry> = checkpoint::list(&folder)?.into_iter().rev().map(entry).collect();
        all.extend(Some(folder.join("best.safetensors")).filter(|path| path.exists()).map(entry));
        Ok(all)
    }

    /// Returns the checkpoint of this name.
    ///
    /// # Errors
    /// If the run has no such checkpoint.
    pub fn checkpoint(&self, name: &str) -> Result<Entry, Refusal> {
        let mut all = self.checkpoints()?;
        if all.is_empty() {
            let what = format!("run \"{}\" has no checkpoint yet", self.id);
            return Err(Refusal::new(StatusCode::CONFLICT, Problem::new("/checkpoint", what).fix("try again later")));
        }
        let names: Vec<String> = [NEWEST.to_string()].into_iter().chain(all.iter().map(|e| e.name.clone())).collect();
        let found = if name == NEWEST { Some(0) } else { all.iter().position(|entry| entry.name == name) };
        match found {
            Some(index) => Ok(all.swap_remove(index)),
            None => Err(unknown("/checkpoint", "checkpoint", name, &names)),
        }
    }
}

/// The served runs.
#[derive(Clone, Debug)]
pub struct Catalog(Vec<Run>);

impl Catalog {
    /// Lists the runs at these paths.
    ///
    /// # Errors
    /// If a path is neither a run folder nor a checkpoint.
    pub fn new(paths: &[PathBuf]) -> Result<Self> {
        let mut runs: Vec<Run> = Vec::new();
        for path in paths {
            check(path)?;
            let base = id(path);
            let mut ids = std::iter::once(base.clone()).chain((2..).map(|i| format!("{base}-{i}")));
            let id = ids.find(|id| runs.iter().all(|run| run.id != *id)).expect("an unused number exists");
            runs.push(Run { id, path: path.clone() });
        }
        Ok(Self(runs))
    }

    /// Returns all runs.
    pub fn runs(&self) -> &[Run] {
        &self.0
    }

    /// Returns the run with this id. The empty id is the first run.
    ///
    /// # Errors
    /// If there is no such run.
    pub fn run(&self, id: &str) -> Result<&Run, Refusal> {
        let names: Vec<String> = self.0.iter().map(|run| run.id.clone()).collect();
        let found = if id.is_empty() { self.0.first() } else { self.0.iter().find(|run| run.id == id) };
        found.ok_or_else(|| unknown("/run", "run", id, &names))
    }
}

fn check(path: &Path) -> Result<()> {
    let refuse = |what: String| {
        Error::from(Problem::new("", what).accepts("run folders and checkpoints that `unguided train` wrote"))
    };
    let known = match path {
        _ if !path.exists() => return Err(refuse(format!("{} does not exist", path.display()))),
        _ if path.is_dir() => path.join("document.json").exists() || path.join("checkpoints").exists(),
        _ => checkpoint::metadata(path)?.is_some(),
    };
    if known { Ok(()) } else { Err(refuse(format!("{} is neither a run folder nor a checkpoint", path.display()))) }
}

/// Returns the name in requests of a path.
fn id(path: &Path) -> String {
    let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = if path.is_dir() { whole.file_name() } else { whole.file_stem() };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let id: String = name.unwrap_or_default().to_string_lossy().chars().map(plain).take(100).collect();
    if id.trim_matches('.').is_empty() { "run".to_string() } else { id }
}

fn unknown(at: &str, kind: &str, name: &str, known: &[String]) -> Refusal {
    let short: String = name.chars().take(100).collect();
    let problem = Problem::new(at, format!("unknown {kind} \"{short}\"")).accepts(known.join(", "));
    Refusal::new(StatusCode::NOT_FOUND, problem.nearest(nearest(&short, known.iter().map(String::as_str))))
}

//! What a page shows: runs, sweeps, their differences, and samples from the same noise.

use crate::page::differences::{self, Difference};
use crate::page::record::{Record, names};
use crate::page::samples::Strip;
use crate::page::sweep::Sweep;
use framework::error::{Problem, Result};
use std::path::PathBuf;

/// Largest number of runs and sweeps on one page. More could not be told apart by colour.
const MOST: usize = 16;

/// Content of a page.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The runs, in the order of the command line.
    pub runs: Vec<Record>,
    /// The sweeps, in the order of the command line.
    pub sweeps: Vec<Sweep>,
    /// Values that differ between the documents of the runs.
    pub differences: Vec<Difference>,
    /// Samples of all runs from the same noise.
    pub strips: Vec<Strip>,
    /// Remarks for the reader, such as which run is unfinished.
    pub notes: Vec<String>,
}

impl Content {
    /// Reads the folders of runs and of sweeps. A run whose folder also contains a sweep gives both.
    ///
    /// # Errors
    /// If a folder is named twice, contains neither a run nor a sweep, or cannot be read.
    pub fn read(folders: &[PathBuf]) -> Result<Self> {
        if folders.len() > MOST {
            let what = format!("{} folders are named", folders.len());
            return Err(Problem::new("", what).accepts(format!("at most {MOST} runs and sweeps on one page")).into());
        }
        let mut content = Self::default();
        for (folder, name) in folders.iter().zip(names(folders)?) {
            let sweep = Sweep::read(folder, &name)?;
            if sweep.is_none() || folder.join("document.json").is_file() {
                content.runs.push(Record::read(folder, &name)?);
            }
            content.sweeps.extend(sweep);
        }
        for run in content.runs.iter().filter(|run| !run.is_finished) {
            let (name, step, steps) = (&run.name, run.step, run.steps());
            content.notes.push(format!(
                "{name} is unfinished (step {step} of {steps}), so it has no measurements. Its curves and samples are \
                 those of the steps so far."
            ));
        }
        let documents: Vec<_> = content.runs.iter().map(|run| &run.document).collect();
        content.differences = differences::between(&documents);
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn runs_and_sweeps_are_told_apart_by_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, file: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(file), text).unwrap();
            path
        };
        let run = make("run", "document.json", r#"{ "train": { "steps": 9, "batch_size": 2 } }"#);
        let sweep = make("sweep", "sweep.json", r#"{ "points": [] }"#);
        let both = make("both", "document.json", r#"{ "train": { "steps": 8, "batch_size": 2 } }"#);
        fs::write(both.join("sweep.json"), r#"{ "points": [] }"#).unwrap();
        let content = Content::read(&[run.clone(), sweep, both]).unwrap();
        let names = |all: &[&str]| all.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(content.runs.iter().map(|run| run.name.clone()).collect::<Vec<_>>(), names(&["run", "both"]));
        assert_eq!(content.sweeps.iter().map(|s| s.name.clone()).collect::<Vec<_>>(), names(&["sweep", "both"]));
        assert_eq!(content.differences.len(), 1);
        assert!(content.notes[0].contains("run is unfinished (step 0 of 9)"), "{:?}", content.notes);
        assert!(Content::read(&vec![run; 17]).unwrap_err().to_string().contains("at most 16"));
    }
}

//! What a sample picture carries in its text chunks: the document, seed, scale and step for readers, and the request
//! from which the same picture can be sampled again.

use framework::checkpoint;
use framework::data::dataset::Label;
use framework::error::{Error, Problem, Result};
use framework::nn::precision::MatmulPrecision;
use framework::pipeline::Pipeline;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Keyword of the chunk with the [`SampleRecord`].
const KEYWORD: &str = "sample";

/// What the picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// All images of the request, in this number of columns.
    Grid(usize),
    /// The image of this index in the request.
    Image(usize),
}

/// The request of a sample picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleRecord {
    /// Version of the program.
    pub version: String,
    /// Absolute path of the checkpoint.
    pub checkpoint: String,
    /// SHA-256 of the checkpoint's content, hexadecimal.
    pub sha256: String,
    /// Overrides of the checkpoint's document, `/POINTER=VALUE`.
    pub set: Vec<String>,
    /// Labels of the request, with the number of neighbouring samples that have each. A number is a class, a string is
    /// a caption.
    pub labels: Vec<(Value, usize)>,
    /// Index of the first sample, which selects its noise.
    pub first: usize,
    /// Seed.
    pub seed: u64,
    /// Samples per batch. Other batches may round differently.
    pub batch_size: usize,
    /// Precision of the network's matrix products.
    pub matmul_precision: MatmulPrecision,
    /// Device, as the user named it.
    pub device: String,
    /// What the picture shows.
    pub shown: Shown,
}

/// Returns labels as they are recorded.
pub fn recorded(labels: &[Label]) -> Vec<(Value, usize)> {
    let mut runs: Vec<(Value, usize)> = Vec::new();
    for label in labels {
        let value = match label {
            Label::None => Value::Null,
            Label::Class(class) => (*class).into(),
            Label::Caption(caption) => caption.as_str().into(),
        };
        match runs.last_mut() {
            Some((last, count)) if *last == value => *count += 1,
            _ => runs.push((value, 1)),
        }
    }
    runs
}

/// Most samples of a picture, which bounds the memory that a forged record requests.
const MOST_SAMPLES: usize = 1_000_000;

impl SampleRecord {
    /// Returns the labels of the request; `None` if a label is neither a class, nor a caption, nor null, or there are
    /// none or too many.
    fn labels(&self) -> Option<Vec<Label>> {
        let total = self.labels.iter().try_fold(0_usize, |sum, (_, count)| sum.checked_add(*count))?;
        if total == 0 || total > MOST_SAMPLES {
            return None;
        }
        let mut labels = Vec::new();
        for (value, count) in &self.labels {
            let label = match value {
                Value::Null => Label::None,
                Value::String(caption) => Label::Caption(caption.clone()),
                other => Label::Class(usize::try_from(other.as_u64()?).ok()?),
            };
            labels.extend(std::iter::repeat_n(label, *count));
        }
        Some(labels)
    }

    /// Returns the texts of a picture that shows this request of `pipeline`, a checkpoint of `step` steps.
    pub fn texts(&self, pipeline: &Pipeline, step: usize) -> Vec<(&'static str, String)> {
        let record = serde_json::to_string(self).expect("a record can be written as JSON");
        let mut texts = described(pipeline, self.seed, step);
        texts.push((KEYWORD, record));
        texts
    }

    /// Reads the record and its labels from the texts of the picture `path`.
    ///
    /// # Errors
    /// If the picture has no record, or the record is damaged or of another version.
    pub fn of(path: &Path, texts: &[(String, String)]) -> Result<(Self, Vec<Label>)> {
        let refuse = |what: String| {
            Error::from(Problem::new(path.display().to_string(), what).accepts("a PNG file that `sample` wrote"))
        };
        let Some((_, text)) = texts.iter().find(|(keyword, _)| keyword == KEYWORD) else {
            return Err(refuse("the picture does not say how it was sampled".to_string()));
        };
        let damaged = |what: String| refuse(format!("the record of the picture is damaged: {what}"));
        let record: Self = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
        let labels = record.labels().ok_or_else(|| damaged("its labels are not readable".to_string()))?;
        let fits = match record.shown {
            Shown::Grid(columns) => columns > 0 && columns <= MOST_SAMPLES,
            Shown::Image(index) => index < labels.len(),
        };
        match fits && record.batch_size > 0 && record.first <= usize::MAX / 2 {
            true => Ok((record, labels)),
            false => Err(damaged("a number is out of range".to_string())),
        }
    }

    /// Returns the checkpoint that the picture was sampled from: at its recorded path, or in `moved`, which is a run
    /// folder or a checkpoint.
    ///
    /// # Errors
    /// If it does not exist, or has another content.
    pub fn find(&self, moved: Option<&Path>) -> Result<PathBuf> {
        let recorded = PathBuf::from(&self.checkpoint);
        let place = moved.unwrap_or(&recorded);
        let mut candidates = vec![place.to_path_buf()];
        let folder = place.join("checkpoints");
        if folder.is_dir() {
            candidates = checkpoint::list(&folder)?;
            candidates.push(folder.join("best.safetensors"));
        }
        candidates.retain(|path| path.is_file());
        let refuse = |what: String, fix: String| {
            Error::from(
                Problem::new(place.display().to_string(), what)
                    .accepts(format!("a checkpoint whose content has the SHA-256 {}", self.sha256))
                    .fix(fix),
            )
        };
        if candidates.is_empty() {
            let what = "the checkpoint that the picture was sampled from does not exist here".to_string();
            return Err(refuse(what, "name its run folder: unguided sample RUN --from PICTURE".to_string()));
        }
        let is_same = |path: &PathBuf| {
            let metadata = checkpoint::metadata(path).ok().flatten();
            metadata.and_then(|mut metadata| metadata.remove("sha256")).is_some_and(|sha256| sha256 == self.sha256)
        };
        candidates.into_iter().find(is_same).ok_or_else(|| {
            let what = "the checkpoint is not the one that the picture was sampled from".to_string();
            refuse(what, "name the run that holds it, or sample a new picture from this run".to_string())
        })
    }
}

/// Returns the texts that every sample picture carries: program, document, seed, guidance scale and training step.
pub fn described(pipeline: &Pipeline, seed: u64, step: usize) -> Vec<(&'static str, String)> {
    let document: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    let mut texts = vec![
        ("Software", format!("Unguided {}", env!("CARGO_PKG_VERSION"))),
        ("document", pipeline.document.clone()),
        ("seed", seed.to_string()),
        ("step", step.to_string()),
    ];
    if let Some(scale) = document.pointer("/guidance/scale").filter(|scale| !scale.is_null()) {
        texts.push(("scale", scale.to_string()));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SampleRecord {
        SampleRecord {
            version: "1".into(),
            checkpoint: "absent.safetensors".into(),
            sha256: "ab".into(),
            set: Vec::new(),
            labels: recorded(&[Label::Class(2), Label::Class(2), Label::Caption("a".into()), Label::None]),
            first: 0,
            seed: 3,
            batch_size: 100,
            matmul_precision: MatmulPrecision::Highest,
            device: "cpu".into(),
            shown: Shown::Grid(2),
        }
    }

    fn read(record: &SampleRecord) -> Result<(SampleRecord, Vec<Label>)> {
        let text = serde_json::to_string(record).unwrap();
        SampleRecord::of(Path::new("a.png"), &[("sample".to_string(), text)])
    }

    #[test]
    fn labels_are_recorded_by_their_runs() {
        let (read, labels) = read(&record()).unwrap();
        assert_eq!(read, record());
        assert_eq!(labels, [Label::Class(2), Label::Class(2), Label::Caption("a".into()), Label::None]);
    }

    #[test]
    fn damaged_records_are_refused() {
        for wrong in [
            SampleRecord { labels: vec![(Value::from(1), usize::MAX), (Value::from(2), 2)], ..record() },
            SampleRecord { labels: vec![(Value::from(1), 2_000_000)], ..record() },
            SampleRecord { labels: vec![(Value::from(-1), 1)], ..record() },
            SampleRecord { labels: Vec::new(), ..record() },
            SampleRecord { shown: Shown::Grid(0), ..record() },
            SampleRecord { shown: Shown::Image(4), ..record() },
            SampleRecord { batch_size: 0, ..record() },
        ] {
            assert!(
                read(&wrong).unwrap_err().to_string().contains("the record of the picture is damaged"),
                "{wrong:?}"
            );
        }
        let none = SampleRecord::of(Path::new("a.png"), &[]).unwrap_err();
        assert!(none.to_string().contains("does not say how it was sampled"), "{none}");
        assert_eq!(none.exit_code(), 2);
    }

    #[test]
    fn an_absent_checkpoint_is_refused() {
        let said = record().find(None).unwrap_err().to_string();
        assert!(said.contains("does not exist here") && said.contains("--from PICTURE"), "{said}");
    }
}

//! Requests for samples, as JSON, and what they ask for once they are checked.

use crate::catalog::{Catalog, Entry, NEWEST, Run};
use crate::limits::{MOST_CAPTIONS, MOST_EVALUATIONS, MOST_IMAGES};
use crate::refusal::Refusal;
use axum::http::StatusCode;
use framework::checkpoint;
use framework::data::dataset::Label;
use framework::error::{Error, Problem, Result};
use framework::pipeline::Pipeline;
use run_folder::sampling::{self, Names, Settings};
use run_folder::{document, labels};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// The names of a request's settings in messages.
const POINTERS: Names =
    Names { classes: "/classes", captions: "/captions", guidance: "/guidance_number", scale: "/scale" };

/// A request for a grid of samples. Equal requests return equal bytes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SampleRequest {
    /// Id of the run; empty = the first run.
    pub run: String,
    /// Name of a checkpoint of the run: `newest`, `best`, or `step-000000500`.
    pub checkpoint: String,
    /// Classes, one row each; empty = all.
    pub classes: Vec<usize>,
    /// Captions, one row each, for a network that reads captions. At most 16, of at most 1000 characters.
    pub captions: Vec<String>,
    /// Images per row, at least 1. A request has at most 100 images.
    #[schemars(range(min = 1, max = 100))]
    pub count: usize,
    /// Seed. Image i depends only on (seed, i), so two requests with equal seeds start from the same noise.
    pub seed: u64,
    /// Guidance scale; sets `/guidance/scale`.
    pub scale: Option<f64>,
    /// Number that a guidance-free network reads, in the letter of its objective, such as beta = 1 / scale for GFT.
    /// Excludes `scale`.
    pub guidance_number: Option<f64>,
    /// Sampler steps; sets `/sampler/steps`.
    #[schemars(range(min = 1))]
    pub steps: Option<usize>,
    /// Entry of the sampler, as in a document; omitted = the run's.
    pub sampler: Option<Map<String, Value>>,
    /// Entry of the guidance rule, as in a document; omitted = the run's.
    pub guidance: Option<Map<String, Value>>,
}

impl Default for SampleRequest {
    fn default() -> Self {
        Self {
            run: String::new(),
            checkpoint: NEWEST.to_string(),
            classes: Vec::new(),
            captions: Vec::new(),
            count: 8,
            seed: 0,
            scale: None,
            guidance_number: None,
            steps: None,
            sampler: None,
            guidance: None,
        }
    }
}

/// A checked request.
pub struct Prepared {
    /// Path of the run, for the tokenizer that it learned.
    pub run: PathBuf,
    /// The checkpoint.
    pub checkpoint: Entry,
    /// Name of the run's document in messages.
    pub name: String,
    /// Pipeline with the requested sampler and rule, without loaded parts.
    pub pipeline: Pipeline,
    /// Label of each image.
    pub labels: Vec<Label>,
    /// Images per row.
    pub columns: usize,
    /// Seed.
    pub seed: u64,
    /// Scale of the rule, if it has one.
    pub scale: Option<f64>,
    /// Number that the network reads at this scale, if it reads one.
    pub guidance_number: Option<f64>,
    /// Command that draws the same grid.
    pub command: String,
}

/// Returns the resolved document of a checkpoint.
///
/// # Errors
/// If the file cannot be read.
pub fn document_of(entry: &Entry) -> Result<String> {
    let found = checkpoint::metadata(&entry.path)?.and_then(|mut metadata| metadata.remove("document"));
    found.ok_or_else(|| Error::Run(format!("checkpoint {} contains no document", entry.name)))
}

/// Returns the name of a run's document in messages.
pub fn document_name(run: &Run) -> String {
    format!("run {}", run.id)
}

impl SampleRequest {
    /// Checks the request against the run that it names.
    ///
    /// # Errors
    /// The problems of the request, in the words of the command line.
    pub fn prepare(&self, catalog: &Catalog) -> Result<Prepared, Refusal> {
        self.check_sizes()?;
        let run = catalog.run(&self.run)?;
        let checkpoint = run.checkpoint(&self.checkpoint)?;
        let (text, name) = (document_of(&checkpoint)?, document_name(run));
        let before: Value = serde_json::from_str(&text).unwrap_or_default();
        self.check_weak(&before)?;
        let entry = |slot: &str, entry: &Option<Map<String, Value>>| {
            entry.as_ref().map(|entry| format!("/{slot}={}", Value::Object(entry.clone())))
        };
        let set = [entry("sampler", &self.sampler), entry("guidance", &self.guidance)].into_iter().flatten().collect();
        let settings = Settings { scale: self.scale, guidance: self.guidance_number, steps: self.steps, set };
        let overrides = settings.overrides(&text, &name, POINTERS)?;
        let pipeline = document::from_text(&text, &overrides, &name)?;
        let rows = sampling::rows(&pipeline, &self.classes, &self.captions, POINTERS)?;
        let Some(rows) = rows else {
            let problem = Problem::new("/captions", "the network reads captions, and the request has none");
            return Err(Error::from(problem.accepts("at least one caption")).into());
        };
        for label in &rows {
            pipeline.check_label(label)?;
        }
        let images = rows.len() * self.count;
        if images > MOST_IMAGES {
            let what = format!("{} rows of {} images are {images} images", rows.len(), self.count);
            return Err(beyond("/count", &what, &format!("at most {MOST_IMAGES} images")));
        }
        let branches = pipeline.guidance.needs().most_branches;
        let evaluations = pipeline.sampler.evaluations(&pipeline.latent_shape()).saturating_mul(branches);
        if evaluations > MOST_EVALUATIONS {
            let what = format!("the sampler and the rule need {evaluations} network evaluations per image");
            return Err(beyond("/sampler", &what, &format!("at most {MOST_EVALUATIONS}")));
        }
        let after: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
        let scale = after.pointer("/guidance/scale").and_then(Value::as_f64);
        Ok(Prepared {
            command: self.command(run, &checkpoint, &before, &after),
            run: run.path.clone(),
            checkpoint,
            name,
            labels: labels::grid(&rows, self.count),
            columns: self.count,
            seed: self.seed,
            guidance_number: scale.and_then(|scale| pipeline.objective.guidance_of_scale(scale)),
            scale,
            pipeline,
        })
    }

    fn check_sizes(&self) -> Result<(), Refusal> {
        let [captions, characters] = MOST_CAPTIONS;
        if self.count == 0 || self.count > MOST_IMAGES {
            return Err(beyond("/count", "wrong number of images per row", &format!("1 to {MOST_IMAGES}")));
        }
        if self.classes.len() > MOST_IMAGES {
            return Err(beyond("/classes", "too many classes", &format!("at most {MOST_IMAGES}")));
        }
        if self.captions.len() > captions || self.captions.iter().any(|text| text.chars().count() > characters) {
            let accepts = format!("at most {captions} captions of at most {characters} characters");
            return Err(beyond("/captions", "too many or too long captions", &accepts));
        }
        if self.scale.is_some() && self.guidance_number.is_some() {
            let problem = Problem::new("/scale", "the request has a scale and a guidance number");
            return Err(Error::from(problem.and_at("/guidance_number").accepts("one of them")).into());
        }
        Ok(())
    }

    /// Refuses a weak network other than the run's own one: its checkpoint is a path, and no client may name paths.
    fn check_weak(&self, document: &Value) -> Result<(), Refusal> {
        let asked = self.guidance.as_ref().and_then(|guidance| guidance.get("weak")).filter(|weak| !weak.is_null());
        match asked {
            Some(weak) if document.pointer("/guidance/weak") != Some(weak) => {
                let what = "a request cannot name the checkpoint of a weak network";
                let accepts = "the weak network of the run's own document";
                Err(Refusal::new(StatusCode::FORBIDDEN, Problem::new("/guidance/weak", what).accepts(accepts)))
            }
            _ => Ok(()),
        }
    }

    /// Returns the command that draws the same grid: only what differs from the run's document.
    fn command(&self, run: &Run, checkpoint: &Entry, before: &Value, after: &Value) -> String {
        let from = if self.checkpoint == NEWEST { &run.path } else { &checkpoint.path };
        let mut words = vec!["unguided".to_string(), "sample".to_string(), quoted(&from.display().to_string())];
        let mut option = |name: &str, value: &str| words.extend([name.to_string(), quoted(value)]);
        if !self.classes.is_empty() {
            option("--classes", &self.classes.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        }
        self.captions.iter().for_each(|caption| option("--caption", caption));
        option("--count", &self.count.to_string());
        option("--seed", &self.seed.to_string());
        for (slot, field, short) in [("sampler", "steps", "--steps"), ("guidance", "scale", "--scale")] {
            let (old, new) = (&before[slot], &after[slot]);
            let without = |value: &Value| {
                let mut value = value.clone();
                value.as_object_mut().map(|members| members.remove(field));
                value
            };
            if old == new {
                continue;
            }
            if without(old) == without(new) && !new[field].is_null() {
                option(short, &new[field].to_string());
            } else {
                option("--set", &format!("/{slot}={new}"));
            }
        }
        words.join(" ")
    }
}

fn beyond(at: &str, what: &str, accepts: &str) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, Problem::new(at, what).accepts(accepts))
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=+:".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("runs/a-b.c"), "runs/a-b.c");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}

//! What a client may choose: runs, checkpoints, conditions, samplers and guidance rules.

use crate::catalog::{Catalog, Entry, Run};
use crate::limits::{MOST_CAPTIONS, MOST_IMAGES};
use crate::request::{document_name, document_of};
use framework::data::dataset::Label;
use framework::error::Result;
use framework::pipeline::Pipeline;
use framework::plugin::Kind;
use registry::Registry;
use run_folder::{document, labels};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// One served run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RunDescription {
    /// Name in requests.
    pub id: String,
    /// Checkpoints, newest first, then the best one.
    pub checkpoints: Vec<Entry>,
    /// Name of the objective.
    pub objective: String,
    /// Name of the backbone.
    pub backbone: String,
    /// Number of classes; null for a network without classes.
    pub num_classes: Option<usize>,
    /// Whether the network reads captions.
    pub captions: bool,
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// The sampler of the run's document.
    pub sampler: Value,
    /// The guidance rule of the run's document.
    pub guidance: Value,
    /// Smallest and largest scale that the network's guidance input was trained at. The largest is null if there is no
    /// bound; the list is empty for a network without guidance input.
    pub trained_scales: Vec<Option<f64>>,
    /// The guidance numbers that the network reads at the scales from the smallest trained one to 10; empty without
    /// guidance input.
    pub guidance_numbers: Vec<f64>,
    /// Most images per request.
    pub most_images: usize,
    /// Why the run cannot be sampled now; null if it can.
    pub unavailable: Option<String>,
}

/// A sampler or a guidance rule.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Choice {
    /// Name in documents.
    pub name: String,
    /// Papers, such as `arXiv:2501.15420`.
    pub papers: Vec<String>,
    /// Entry with all its settings, to be sent in a request.
    pub entry: Value,
    /// JSON Schema of the entry without `type`.
    pub schema: Value,
    /// Why this run cannot use it; null if it can.
    pub refused: Option<String>,
}

/// The samplers and guidance rules, for one run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Choices {
    /// Samplers.
    pub samplers: Vec<Choice>,
    /// Guidance rules.
    pub guidance: Vec<Choice>,
    /// Captions of the dataset, for a network that reads captions.
    pub captions: Vec<String>,
}

/// Returns the document of a run's newest checkpoint, or of a run without a checkpoint.
fn text(run: &Run) -> Result<String> {
    match run.checkpoints()?.first() {
        Some(entry) => document_of(entry),
        None => document::text(&run.path.join("document.json")),
    }
}

/// Describes every run.
pub fn runs(catalog: &Catalog) -> Vec<RunDescription> {
    catalog.runs().iter().map(describe).collect()
}

fn describe(run: &Run) -> RunDescription {
    let checkpoints = run.checkpoints().unwrap_or_default();
    let empty = RunDescription {
        id: run.id.clone(),
        checkpoints,
        objective: String::new(),
        backbone: String::new(),
        num_classes: None,
        captions: false,
        image: [0; 3],
        sampler: Value::Null,
        guidance: Value::Null,
        trained_scales: Vec::new(),
        guidance_numbers: Vec::new(),
        most_images: MOST_IMAGES,
        unavailable: None,
    };
    let read = text(run).and_then(|text| document::from_text(&text, &[], &document_name(run)));
    let pipeline = match read {
        Ok(pipeline) => pipeline,
        Err(error) => return RunDescription { unavailable: Some(error.to_string()), ..empty },
    };
    let resolved: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    let kind = |slot: &str| resolved[slot]["type"].as_str().unwrap_or_default().to_string();
    let accepts = pipeline.backbone.accepts();
    let unavailable = empty.checkpoints.is_empty().then(|| "the run has no checkpoint yet".to_string());
    RunDescription {
        objective: kind("objective"),
        backbone: kind("backbone"),
        num_classes: accepts.num_classes(),
        captions: accepts.condition.is_text(),
        image: pipeline.image_shape(),
        sampler: resolved["sampler"].clone(),
        guidance: resolved["guidance"].clone(),
        trained_scales: trained(&pipeline),
        guidance_numbers: numbers(&pipeline),
        unavailable,
        ..empty
    }
}

fn trained(pipeline: &Pipeline) -> Vec<Option<f64>> {
    let finite = |scale: f64| Some(scale).filter(|scale| scale.is_finite());
    match (pipeline.objective.guidance_of_scale(1.0), pipeline.objective.trained_scales()) {
        (None, _) => Vec::new(),
        (Some(_), Some(ends)) => ends.map(finite).to_vec(),
        (Some(_), None) => vec![Some(0.0), None],
    }
}

/// Returns the guidance numbers at 100 scales between the smallest trained one and 10, or the largest trained one.
fn numbers(pipeline: &Pipeline) -> Vec<f64> {
    let scales = trained(pipeline);
    let [Some(low), high] = scales[..] else { return Vec::new() };
    let high = high.unwrap_or(10.0).min(10.0).max(low);
    let at = |i: u32| low + (high - low) * f64::from(i) / 100.0;
    (0..=100).filter_map(|i| pipeline.objective.guidance_of_scale(at(i))).filter(|n| n.is_finite()).collect()
}

/// Lists the samplers and rules, with the reason where the run cannot use one.
///
/// # Errors
/// If the run's document cannot be read.
pub fn choices(run: &Run) -> Result<Choices> {
    let (text, name) = (text(run)?, document_name(run));
    let pipeline = document::from_text(&text, &[], &name)?;
    let resolved: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    let registry = Registry::linked();
    let list = |kind: Kind| -> Vec<Choice> {
        let slot = kind.name();
        let entries = registry.entries().iter().filter(|entry| entry.kind == kind);
        let choice = |entry: &&framework::plugin::Entry| {
            let own = resolved[slot]["type"] == entry.name;
            let candidates =
                if own { vec![resolved[slot].clone()] } else { candidates(&registry, entry, &resolved[slot]) };
            let (mut last, mut refused) = (Value::Null, None);
            for candidate in candidates {
                match document::from_text(&text, &[format!("/{slot}={candidate}")], &name) {
                    Ok(pipeline) => {
                        let found: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
                        (last, refused) = (found[slot].clone(), None);
                        break;
                    }
                    // The first candidate has the fewest settings, so its problems are the plugin's own.
                    Err(error) => {
                        refused = refused.or(Some(error.to_string()));
                        last = candidate;
                    }
                }
            }
            Choice {
                name: entry.name.to_string(),
                papers: entry.papers.iter().map(ToString::to_string).collect(),
                entry: last,
                schema: Value::from((entry.schema)()),
                refused,
            }
        };
        entries.map(choice).collect()
    };
    Ok(Choices { samplers: list(Kind::Sampler), guidance: list(Kind::Guidance), captions: captions(&pipeline) })
}

/// Returns entries of a plugin to try, with the current number of steps and the current scale where it has such a
/// setting.
fn candidates(registry: &Registry, entry: &framework::plugin::Entry, current: &Value) -> Vec<Value> {
    let schema = Value::from((entry.schema)());
    let mut all = registry.variants(entry);
    for candidate in &mut all {
        for (field, otherwise) in [("steps", 25.0), ("scale", 2.0)] {
            let known = !schema["properties"][field].is_null();
            if let (true, Some(candidate)) = (known, candidate.as_object_mut()) {
                let value = current.get(field).cloned().filter(Value::is_number);
                let otherwise = if field == "steps" { Value::from(otherwise as u64) } else { Value::from(otherwise) };
                candidate.entry(field).or_insert(value.unwrap_or(otherwise));
            }
        }
    }
    for candidate in &mut all {
        for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if let Some(candidate) = candidate.as_object_mut() {
                candidate.entry(field).or_insert_with(|| plausible(&schema["properties"][field]));
            }
        }
    }
    all
}

/// Returns a value of a required setting to begin with: within its range, and small.
fn plausible(schema: &Value) -> Value {
    let low = schema["minimum"].as_f64().unwrap_or(0.0);
    let high = schema["maximum"].as_f64().unwrap_or(f64::INFINITY);
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match kind {
        Some("integer") => Value::from(low.max(1.0).min(high) as u64),
        Some("number") if high - low <= 10.0 => Value::from((low + high) / 2.0),
        Some("number") => Value::from(low.max(1.0).min(high)),
        Some("array") => {
            let count = schema["minItems"].as_u64().unwrap_or(1).max(1);
            Value::Array((0..count).map(|_| plausible(&schema["items"])).collect())
        }
        _ => Value::Null,
    }
}

/// Returns captions of the dataset, or none if it cannot be opened here.
fn captions(pipeline: &Pipeline) -> Vec<String> {
    if !pipeline.backbone.accepts().condition.is_text() {
        return Vec::new();
    }
    let rows = pipeline.open_data().and_then(|data| labels::rows(pipeline, &data)).unwrap_or_default();
    let caption = |label: Label| match label {
        Label::Caption(caption) => Some(caption),
        _ => None,
    };
    rows.into_iter().filter_map(caption).take(MOST_CAPTIONS[0].min(4)).collect()
}

//! Samples of several runs for the same labels and from the same noise.

use crate::page::record::Record;
use crate::restored;
use crate::samples::sample_request;
use crate::watcher::Watcher;
use crate::{document, labels, picture, weights};
use framework::burn::tensor::Device;
use framework::data::dataset::Label;
use framework::data::loader::spread;
use framework::error::Result;
use framework::network::condition::ConditionShape;
use framework::nn::precision::MatmulPrecision;
use framework::pipeline::Pipeline;
use framework::pipeline::images::Request;

/// Largest number of labels.
const MOST_LABELS: usize = 8;

/// Settings of the samples.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of samples per label.
    pub count: usize,
    /// Seed. Image i depends only on (seed, i).
    pub seed: u64,
    /// Guidance scales. Every run samples at each of them; empty = at the scale of its document.
    pub scales: Vec<f64>,
}

/// The samples of every run for one label.
#[derive(Clone, Debug, Default)]
pub struct Strip {
    /// The label: the name of a class, a caption, or empty.
    pub label: String,
    /// One row per run that was sampled, and per scale.
    pub rows: Vec<Row>,
}

/// Samples of one run.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Index of the run.
    pub run: usize,
    /// Guidance scale; `None` = the scale of the run's document.
    pub scale: Option<f64>,
    /// Images as PNG, in the order of the noise.
    pub images: Vec<Vec<u8>>,
}

/// Samples every run from its newest checkpoint, with its own sampler and guidance rule. Returns the samples, and notes on
/// what they do not share.
///
/// # Errors
/// If a checkpoint cannot be read, a document has problems, or sampling fails.
pub fn from_same_noise(
    runs: &[Record],
    options: &Options,
    device: &Device,
    watcher: &mut dyn Watcher,
) -> Result<(Vec<Strip>, Vec<String>)> {
    let mut pipelines = Vec::new();
    for run in runs {
        let name = format!("{} (its document)", run.path.display());
        pipelines.push(document::from_text(&run.document.to_string(), &[], &name)?);
    }
    let Some(first) = pipelines.first() else { return Ok((Vec::new(), Vec::new())) };
    if let Some(other) = pipelines.iter().position(|pipeline| kind(pipeline) != kind(first)) {
        let (a, b) = (&runs[0].name, &runs[other].name);
        let note = format!(
            "No samples are next to each other: the network of {a} reads {}, that of {b} reads {}.",
            kind(first),
            kind(&pipelines[other])
        );
        return Ok((Vec::new(), vec![note]));
    }
    let mut notes = Vec::new();
    if pipelines.iter().any(|pipeline| pipeline.latent_shape() != first.latent_shape()) {
        notes.push(
            "The latents of the runs have different shapes, so their samples share the seed, not the noise.".into(),
        );
    }
    let rows = rows(&mut pipelines, device)?;
    let texts = rows.iter().map(|row| labels::text(row, &runs[0].class_names));
    let mut strips: Vec<Strip> = texts.map(|label| Strip { label, rows: Vec::new() }).collect();
    for (index, run) in runs.iter().enumerate() {
        let Ok((_, checkpoint)) = weights::checkpoint(&run.path) else {
            notes.push(format!("{} has no checkpoint that can be read, so it has no samples here.", run.name));
            continue;
        };
        let (pipeline, network) = restored::restore(&run.path, checkpoint, &[], device)?;
        let mut variants = vec![(None, None)];
        if !options.scales.is_empty() {
            let name = format!("{} (its document)", run.path.display());
            let at = |scale: &f64| -> Result<_> {
                let text = pipeline.document.as_str();
                Ok((Some(*scale), Some(document::from_text(text, &[format!("/guidance/scale={scale}")], &name)?)))
            };
            variants = options.scales.iter().map(at).collect::<Result<_>>()?;
        }
        for (scale, variant) in &variants {
            let request = Request {
                labels: labels::grid(&rows, options.count),
                seed: options.seed,
                batch_size: 100,
                sampler: &*pipeline.sampler,
                guidance: &*variant.as_ref().unwrap_or(&pipeline).guidance,
                matmul_precision: MatmulPrecision::Highest,
            };
            let sampled = sample_request(&pipeline, &network, &request, device, watcher)?;
            for (row, strip) in strips.iter_mut().enumerate() {
                let images = (0..options.count).map(|column| {
                    let values = sampled.images.row(row * options.count + column);
                    picture::png(&picture::image(values, sampled.images.shape))
                });
                strip.rows.push(Row { run: index, scale: *scale, images: images.collect::<Result<_>>()? });
            }
        }
    }
    Ok((strips, notes))
}

/// Returns what a network reads, in words.
fn kind(pipeline: &Pipeline) -> &'static str {
    match pipeline.backbone.accepts().condition {
        ConditionShape::Text { .. } | ConditionShape::Tokens { .. } => "captions",
        _ if pipeline.backbone.accepts().num_classes().is_some() => "classes",
        _ => "no condition",
    }
}

/// Returns the labels to sample: classes that all networks know, captions of the first dataset, or no label.
fn rows(pipelines: &mut [Pipeline], device: &Device) -> Result<Vec<Label>> {
    let first = &mut pipelines[0];
    if first.backbone.accepts().condition.is_text() {
        first.load(device)?;
        return labels::rows(first, &first.open_data()?);
    }
    let classes = pipelines.iter().filter_map(|pipeline| pipeline.backbone.accepts().num_classes()).min();
    Ok(match classes {
        Some(count) => spread(count, MOST_LABELS).into_iter().map(Label::Class).collect(),
        None => vec![Label::None],
    })
}

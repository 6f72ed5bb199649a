//! The labels to sample: the rows of a sample grid, and the labels that metrics are measured on.

use framework::data::dataset::{Dataset, Label};
use framework::data::loader::spread;
use framework::error::{Error, Result};
use framework::network::condition::ConditionShape;
use framework::pipeline::Pipeline;
use framework::pipeline::train_config::{CAPTION_ROWS, MOST_ROWS, UNCONDITIONAL_ROWS};

/// Number of dataset items searched for distinct captions.
const LOOKED_AT: usize = 1000;

/// Returns the labels of the rows of a training's sample grid: classes, the first distinct captions of the dataset, or
/// no label.
///
/// # Errors
/// If the network reads captions and no item of the dataset can be read.
pub fn rows(pipeline: &Pipeline, dataset: &dyn Dataset) -> Result<Vec<Label>> {
    let mut rows = Vec::new();
    if !pipeline.backbone.accepts().condition.is_text() {
        let Some(classes) = classes(pipeline) else { return Ok(vec![Label::None; UNCONDITIONAL_ROWS]) };
        return Ok(spread(classes.len(), MOST_ROWS).into_iter().map(Label::Class).collect());
    }
    for label in captions(pipeline, dataset, LOOKED_AT) {
        if !rows.contains(&label) {
            rows.push(label);
        }
        if rows.len() == CAPTION_ROWS {
            break;
        }
    }
    if rows.is_empty() { Err(silent()) } else { Ok(rows) }
}

/// Returns every class, or `None` for a network without classes.
pub fn classes(pipeline: &Pipeline) -> Option<Vec<Label>> {
    Some((0..pipeline.backbone.accepts().num_classes()?).map(Label::Class).collect())
}

/// Returns `columns` labels per row, row after row.
pub fn grid(rows: &[Label], columns: usize) -> Vec<Label> {
    rows.iter().flat_map(|row| vec![row.clone(); columns]).collect()
}

/// Returns the labels of `count` samples for metrics: evenly spread classes, or the captions of the dataset in order.
///
/// # Errors
/// If the network reads captions and no item of the dataset can be read.
pub fn measured(pipeline: &Pipeline, dataset: &dyn Dataset, count: usize) -> Result<Vec<Label>> {
    measured_with(pipeline, count, &|| Ok(captions(pipeline, dataset, dataset.len()).take(count).collect()))
}

/// Returns labels like [`measured`]. Calls `captions` only for a network that reads captions.
///
/// # Errors
/// If `captions` fails, or returns none.
pub fn measured_with(
    pipeline: &Pipeline,
    count: usize,
    captions: &dyn Fn() -> Result<Vec<Label>>,
) -> Result<Vec<Label>> {
    let all = match pipeline.backbone.accepts().condition {
        ConditionShape::Text { .. } | ConditionShape::Tokens { .. } => captions()?,
        _ => match classes(pipeline) {
            Some(classes) => spread(classes.len(), count).into_iter().map(Label::Class).collect(),
            None => vec![Label::None],
        },
    };
    if all.is_empty() { Err(silent()) } else { Ok(all.into_iter().cycle().take(count).collect()) }
}

/// Iterates over the captions of the first `most` items, in order. Skips items that cannot be read, and captions that
/// the conditioner cannot encode.
fn captions(pipeline: &Pipeline, dataset: &dyn Dataset, most: usize) -> impl Iterator<Item = Label> {
    let labels = (0..dataset.len().min(most)).filter_map(|index| dataset.label(index).ok());
    labels.filter(|label| pipeline.check_label(label).is_ok())
}

/// Returns a label as text: the name of its class, `class 3` without names, its caption, or nothing.
pub fn text(label: &Label, class_names: &[String]) -> String {
    match label {
        Label::None => String::new(),
        Label::Class(class) => class_names.get(*class).cloned().unwrap_or_else(|| format!("class {class}")),
        Label::Caption(caption) => caption.clone(),
    }
}

fn silent() -> Error {
    Error::Run("no item of the dataset can be read, so there is no caption to sample".into())
}

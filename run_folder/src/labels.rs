//! What samples are asked to show: the rows of a picture, and what metrics are measured on.

use framework::condition::ConditionKind;
use framework::dataset::{Dataset, Label};
use framework::error::{Error, Result};
use framework::loader::spread;
use framework::pipeline::Pipeline;
use framework::train_config::{MOST_ROWS, UNCONDITIONAL_ROWS};

/// Items looked at for captions that differ.
const LOOKED_AT: usize = 1000;

/// What the rows of a training's picture show: classes, the first distinct captions of the dataset, or nothing in particular.
pub fn rows(pipeline: &Pipeline, dataset: &dyn Dataset) -> Result<Vec<Label>> {
    let mut rows = Vec::new();
    if !pipeline.backbone.accepts().condition.is_text() {
        let Some(classes) = classes(pipeline) else { return Ok(vec![Label::None; UNCONDITIONAL_ROWS]) };
        return Ok(spread(classes.len(), MOST_ROWS).into_iter().map(Label::Class).collect());
    }
    for label in captions(dataset).take(LOOKED_AT) {
        if !rows.contains(&label) {
            rows.push(label);
        }
        if rows.len() == UNCONDITIONAL_ROWS {
            break;
        }
    }
    if rows.is_empty() { Err(silent()) } else { Ok(rows) }
}

/// Every class, of a network that has classes.
pub fn classes(pipeline: &Pipeline) -> Option<Vec<Label>> {
    Some((0..pipeline.backbone.accepts().num_classes?).map(Label::Class).collect())
}

/// `columns` samples of each row, row after row.
pub fn grid(rows: &[Label], columns: usize) -> Vec<Label> {
    rows.iter().flat_map(|row| vec![row.clone(); columns]).collect()
}

/// What `count` samples are measured on: classes in turn, or the captions of the dataset, item after item.
pub fn measured(pipeline: &Pipeline, dataset: &dyn Dataset, count: usize) -> Result<Vec<Label>> {
    let all = match pipeline.backbone.accepts().condition {
        ConditionKind::Text | ConditionKind::Tokens => captions(dataset).take(count).collect(),
        _ => match classes(pipeline) {
            Some(classes) => spread(classes.len(), count).into_iter().map(Label::Class).collect(),
            None => vec![Label::None],
        },
    };
    if all.is_empty() { Err(silent()) } else { Ok(all.into_iter().cycle().take(count).collect()) }
}

/// The captions of the items, in order; an item that cannot be read has none to offer.
fn captions(dataset: &dyn Dataset) -> impl Iterator<Item = Label> {
    (0..dataset.len()).filter_map(|index| dataset.label(index).ok())
}

fn silent() -> Error {
    Error::Run("no item of the dataset can be read, so it has no caption to draw".into())
}

/// The captions of the rows, for people.
pub fn names(rows: &[Label]) -> impl Iterator<Item = &str> {
    rows.iter().filter_map(|row| match row {
        Label::Caption(caption) => Some(caption.as_str()),
        _ => None,
    })
}

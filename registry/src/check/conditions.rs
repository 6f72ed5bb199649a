//! Checks of the condition, on which dataset, conditioner and backbone must agree.

use crate::document::Document;
use framework::data::dataset::DatasetInfo;
use framework::error::{Problem, Problems};
use framework::network::condition::ConditionShape;

/// Returns the problems with the condition. `info` is `None` if the dataset's content is unknown until it is opened.
pub(super) fn check(document: &Document, info: Option<&DatasetInfo>) -> Problems {
    let mut problems = conditioner(document);
    problems.extend(info.and_then(|info| data(document, info)));
    problems
}

/// Describes the condition that a network reads.
fn reads(condition: ConditionShape) -> &'static str {
    match condition {
        ConditionShape::None => "no condition",
        ConditionShape::Class { .. } => "a class",
        ConditionShape::Text { .. } => "text features",
        ConditionShape::Tokens { .. } => "text tokens",
    }
}

/// Compares the conditioner with the backbone.
fn conditioner(document: &Document) -> Problems {
    let condition = document.backbone.accepts().condition;
    let (backbone, reads) = (document.backbone.typetag_name(), reads(condition));
    let Some(conditioner) = &document.conditioner else {
        if !condition.is_text() {
            return Problems::new();
        }
        let what = format!("backbone \"{backbone}\" reads a text; the document has no conditioner");
        let problem = Problem::new("/backbone", what).accepts("a backbone that reads a text, with a conditioner");
        return vec![problem.fix("add /conditioner")];
    };
    let name = conditioner.typetag_name();
    let at = |what: String| Problem::new("/conditioner", what).and_at("/backbone");
    let makes = |what: String, reads: String| {
        at(format!("conditioner \"{name}\" produces {what}; backbone \"{backbone}\" reads {reads}"))
    };
    if !condition.is_text() {
        let problem = at(format!("conditioner \"{name}\" has no effect: backbone \"{backbone}\" reads {reads}"));
        return vec![problem.accepts("no conditioner, or a backbone that reads a text").fix("remove /conditioner")];
    }
    let (length, most) = match (conditioner.produces(), condition) {
        (ConditionShape::Text { length, width }, ConditionShape::Text { length: most, width: wanted }) => {
            if width != wanted {
                let problem = makes(format!("features of width {width}"), format!("features of width {wanted}"));
                return vec![problem.accepts(format!("a conditioner with features of width {wanted}"))];
            }
            (length, most)
        }
        (
            ConditionShape::Tokens { length, vocabulary },
            ConditionShape::Tokens { length: most, vocabulary: wanted },
        ) => {
            if vocabulary != wanted {
                let problem = makes(format!("{vocabulary} distinct tokens"), format!("{wanted} distinct tokens"));
                return vec![problem.accepts(format!("a conditioner with {wanted} distinct tokens"))];
            }
            (length, most)
        }
        (produced, _) => {
            let made = if matches!(produced, ConditionShape::Tokens { .. }) { "text tokens" } else { "text features" };
            let problem = makes(made.to_string(), reads.to_string());
            return vec![problem.accepts("tokens for a backbone with its own text encoder, features for the others")];
        }
    };
    match (length, most) {
        (Some(length), Some(most)) if length > most => {
            let problem = makes(format!("texts of {length} tokens"), format!("at most {most}"));
            vec![problem.accepts(format!("at most {most} tokens"))]
        }
        _ => Problems::new(),
    }
}

/// Compares the dataset with the backbone.
fn data(document: &Document, info: &DatasetInfo) -> Option<Problem> {
    let condition = document.backbone.accepts().condition;
    let (backbone, data) = (document.backbone.typetag_name(), document.data.typetag_name());
    let pair = |what: String| Problem::new("/data", what).and_at("/backbone");
    match condition {
        ConditionShape::Text { .. } | ConditionShape::Tokens { .. } if !info.captions => Some(
            pair(format!("backbone \"{backbone}\" reads a text; dataset \"{data}\" has no captions"))
                .accepts("a dataset with captions"),
        ),
        ConditionShape::None | ConditionShape::Class { .. } if info.captions => Some(
            pair(format!("dataset \"{data}\" has captions; backbone \"{backbone}\" reads {}", reads(condition)))
                .accepts("a dataset without captions, or a backbone that reads a text"),
        ),
        ConditionShape::Class { count } if info.num_classes != Some(count) => {
            let has = info.num_classes.map_or("no classes".to_string(), |n| format!("{n} classes"));
            let what = format!("dataset \"{data}\" has {has}; backbone \"{backbone}\" has {count} classes");
            Some(pair(what).accepts("the same number of classes on both sides"))
        }
        _ => None,
    }
}

//! Checks of the guidance rule against backbone, objective and process.

use super::words::describe;
use crate::document::Document;
use framework::error::{Problem, Problems};
use framework::network::condition::ConditionShape;
use framework::objective::NullPrediction;
use framework::process::Family;
use framework::process::path::Prediction;
use framework::sampling::guidance::HookNeeds;

/// Returns the needs of the rule that the pipeline does not meet.
pub(super) fn needs(document: &Document) -> Problems {
    let (needs, accepts) = (document.guidance.needs(), document.backbone.accepts());
    let (guidance, backbone) = (document.guidance.typetag_name(), document.backbone.typetag_name());
    let mut problems = Problems::new();
    if (needs.null || needs.weak_null) && accepts.condition == ConditionShape::None {
        let what =
            format!("guidance \"{guidance}\" needs the null condition; backbone \"{backbone}\" reads no condition");
        let problem = Problem::new("/guidance", what).and_at("/backbone");
        problems.push(problem.accepts("guidance without a null branch, or a backbone that reads a class or a text"));
    }
    let process = document.backbone.process();
    let path = process.path().or_else(|| process.head()?.process.path());
    let convertible = |space| space == process.prediction() || (path.is_some() && space != Prediction::Logits);
    if !needs.path && needs.space.is_some_and(|space| !convertible(space)) {
        let what = format!(
            "guidance \"{guidance}\" needs another prediction space than backbone \"{backbone}\", which has {}",
            describe(process.family())
        );
        let problem = Problem::new("/guidance", what).and_at("/backbone");
        problems.push(problem.accepts(match needs.space {
            Some(Prediction::Logits) => "guidance in the backbone's own prediction space, or a backbone of tokens",
            _ => "guidance in the backbone's own prediction space, or a continuous process",
        }));
    }
    if path.is_none() && needs.path {
        let what = format!(
            "guidance \"{guidance}\" needs a noise path; backbone \"{backbone}\" has {}",
            describe(process.family())
        );
        let problem = Problem::new("/guidance", what).and_at("/backbone");
        problems.push(problem.accepts("a continuous or masked process, or guidance \"cfg\""));
    }
    if let (Some(path), Some(space @ (Prediction::Eps | Prediction::Score))) = (path, needs.space)
        && space != process.prediction()
        && path.at(path.interval()[1]).alpha < 1e-9
    {
        let name = if space == Prediction::Eps { "eps" } else { "score" };
        let what = format!(
            "guidance \"{guidance}\" works on \"{name}\", from which the prediction of backbone \"{backbone}\" cannot \
             be computed at pure noise"
        );
        let problem = Problem::new("/guidance", what).and_at("/backbone");
        problems.push(problem.accepts("the backbone's own prediction space, \"x\", \"v\" or \"velocity\""));
    }
    let (shape, whole) = (document.backbone.latent_shape(), process.family() == Family::Continuous);
    let side = if whole { shape.grid[0].min(shape.grid[1]) } else { 1 };
    if path.is_some() && needs.grid_side > side {
        let what = format!(
            "guidance \"{guidance}\" filters over a grid of at least {0}x{0} positions; a prediction of backbone \
             \"{backbone}\" has {side}x{side}",
            needs.grid_side
        );
        let problem = Problem::new("/guidance", what).and_at("/backbone");
        problems.push(problem.accepts("fewer frequency levels, or a continuous process with a larger latent"));
    }
    if let Some(class) = needs.class {
        let (what, accepted) = match accepts.condition {
            ConditionShape::Class { count } if class < count => (None, String::new()),
            ConditionShape::Class { count } => (
                Some(format!("guidance \"{guidance}\" names class {class}; backbone \"{backbone}\" has {count}")),
                format!("classes 0 to {}", count.saturating_sub(1)),
            ),
            _ => (
                Some(format!("guidance \"{guidance}\" names a class; backbone \"{backbone}\" reads none")),
                "a backbone that reads a class".to_string(),
            ),
        };
        if let Some(what) = what {
            problems.push(Problem::new("/guidance", what).and_at("/backbone").accepts(accepted));
        }
    }
    match (needs.weak, &document.weak) {
        (true, None) => {
            let what = format!("guidance \"{guidance}\" needs a weak network; the document names none");
            problems.push(
                Problem::new("/guidance/weak", what)
                    .accepts("a run folder, a checkpoint or an official file")
                    .fix("set /guidance/weak to {\"checkpoint\": \"runs/NAME\"}"),
            );
        }
        (false, Some(_)) => {
            let what = format!("the weak network has no effect: guidance \"{guidance}\" uses one network only");
            problems.push(
                Problem::new("/guidance/weak", what)
                    .accepts("null, or a rule that compares two networks")
                    .fix("remove /guidance/weak"),
            );
        }
        _ => {}
    }
    if needs.gradient {
        let what = format!("guidance \"{guidance}\" needs gradients; sampling computes none");
        problems.push(Problem::new("/guidance", what).accepts("a rule that needs only predictions"));
    }
    if needs.renoise && !document.sampler.renoises() {
        let what = format!(
            "guidance \"{guidance}\" hands a second prediction to the sampler; sampler \"{}\" with these settings uses \
             one",
            document.sampler.typetag_name()
        );
        let problem = Problem::new("/guidance", what).and_at("/sampler");
        problems.push(problem.accepts(
            "ddim, dpm_solver_pp of order 1 or 2, or k_diffusion with euler, euler_ancestral, dpmpp2m or \
             dpmpp2s_ancestral",
        ));
    }
    if needs.most_branches == 0 {
        let what = format!("guidance \"{guidance}\" declares that it evaluates no branch");
        problems.push(Problem::new("/guidance", what).accepts("a rule with at least one branch"));
    }
    problems.extend(hooks(document, needs.hooks));
    problems
}

/// Returns the problems with hooks that the network does not support.
fn hooks(document: &Document, needs: HookNeeds) -> Problems {
    let sites = document.backbone.accepts().hooks;
    let (guidance, backbone) = (document.guidance.typetag_name(), document.backbone.typetag_name());
    let mut problems = Problems::new();
    let mut refuse = |what: String, accepts: String| {
        problems.push(Problem::new("/guidance", what).and_at("/backbone").accepts(accepts));
    };
    if (needs.attention || needs.blocks) && sites.blocks == 0 {
        refuse(
            format!("guidance \"{guidance}\" needs hooks in the network's blocks; backbone \"{backbone}\" has none"),
            "a backbone with hooks in its blocks".to_string(),
        );
    } else if needs.blocks_named > sites.blocks {
        refuse(
            format!(
                "guidance \"{guidance}\" names block {}; backbone \"{backbone}\" has {} blocks",
                needs.blocks_named - 1,
                sites.blocks
            ),
            format!("blocks 0 to {}", sites.blocks.saturating_sub(1)),
        );
    }
    if needs.grid && !sites.grid {
        refuse(
            format!(
                "guidance \"{guidance}\" needs the tokens of a block as a square grid; the tokens of backbone \
                 \"{backbone}\" form none"
            ),
            "a backbone whose blocks see the whole image as a grid, such as dit, sit or sd15".to_string(),
        );
    }
    if needs.text_attention && !sites.text_attention {
        refuse(
            format!(
                "guidance \"{guidance}\" changes attention to a text; backbone \"{backbone}\" has no such attention"
            ),
            "a backbone that attends to a text, such as sd15".to_string(),
        );
    }
    if needs.decode_cache && !sites.decode_cache {
        refuse(
            format!("guidance \"{guidance}\" changes cached keys and values; backbone \"{backbone}\" caches none"),
            "a backbone that decodes tokens with a cache, such as llamagen or var".to_string(),
        );
    }
    problems
}

/// Returns the problems with predictions and inputs that the rule uses but the objective does not train.
pub(super) fn training(document: &Document) -> Problems {
    let (guidance, objective) = (document.guidance.typetag_name(), document.objective.typetag_name());
    let mut problems = Problems::new();
    let mut refuse = |what: String, accepts: String| {
        problems.push(Problem::new("/guidance", what).and_at("/objective").accepts(accepts));
    };
    if document.guidance.needs().null
        && let NullPrediction::Untrained(why) = document.objective.null()
    {
        refuse(
            format!(
                "guidance \"{guidance}\" needs the null prediction, which objective \"{objective}\" does not train: \
                 {why}"
            ),
            "guidance \"none\", or an objective that trains the null prediction".to_string(),
        );
    }
    let Some(scales) = document.guidance.input_scales() else { return problems };
    let outside = |[low, high]: [f64; 2]| scales.into_iter().find(|scale| !(low..=high).contains(scale));
    match document.objective.trained_scales() {
        _ if document.objective.guidance_of_scale(1.0).is_none() => refuse(
            format!(
                "guidance \"{guidance}\" sets the scale through the backbone's guidance input; objective \
                 \"{objective}\" trains no guidance input"
            ),
            "guidance by branches, or an objective that trains a guidance input".to_string(),
        ),
        Some([low, high]) => {
            if let Some(scale) = outside([low, high]) {
                refuse(
                    format!(
                        "guidance \"{guidance}\" requests scale {scale}; objective \"{objective}\" does not train it"
                    ),
                    if high.is_finite() { format!("scales from {low} to {high}") } else { format!("scales >= {low}") },
                );
            }
        }
        None => {}
    }
    problems
}

//! What the command `sample` and a server share: a checkpoint loaded for sampling, and the settings and labels of a
//! request.

use crate::{document, frozen, labels, start};
use framework::burn::tensor::Device;
use framework::checkpoint::Checkpoint;
use framework::data::dataset::Label;
use framework::error::{Error, Problem, Result};
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use std::path::Path;

/// The names of a request's settings in messages: options of a command, or pointers into a JSON request.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Name of the classes.
    pub classes: &'static str,
    /// Name of the captions.
    pub captions: &'static str,
    /// Name of the guidance number.
    pub guidance: &'static str,
    /// Name of the scale.
    pub scale: &'static str,
}

/// The names of the command's options.
pub const OPTIONS: Names =
    Names { classes: "--classes", captions: "--caption", guidance: "--guidance", scale: "--scale" };

/// Settings of a request that replace values of the checkpoint's document.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Guidance scale.
    pub scale: Option<f64>,
    /// Number that the network's guidance input reads; sets the scale as well.
    pub guidance: Option<f64>,
    /// Sampler steps.
    pub steps: Option<usize>,
    /// Further overrides, `/POINTER=VALUE`.
    pub set: Vec<String>,
}

impl Settings {
    /// Returns the overrides of `document`, which messages call `name`.
    ///
    /// # Errors
    /// If the objective has no scale for the guidance number.
    pub fn overrides(&self, document: &str, name: &str, names: Names) -> Result<Vec<String>> {
        let mut overrides = self.set.clone();
        overrides.extend(self.scale.map(|scale| format!("/guidance/scale={scale}")));
        overrides.extend(self.steps.map(|steps| format!("/sampler/steps={steps}")));
        if let Some(number) = self.guidance {
            let objective = document::from_text(document, &[], name)?.objective;
            let scale = objective.scale_of_guidance(number).filter(|scale| scale.is_finite() && *scale > 0.0);
            let scale = scale.ok_or_else(|| {
                let at = names.guidance;
                let what = format!("{at} {number} has no meaning for a network trained with this objective");
                let accepts = "an objective with a guidance input (such as gft), and a number whose scale is above 0";
                Problem::new(at, what).accepts(accepts).fix(format!("use {}", names.scale))
            })?;
            overrides.push(format!("/guidance/scale={scale}"));
        }
        Ok(overrides)
    }
}

/// Loads everything that sampling from `checkpoint` needs: tokenizer, conditioner, weak network and network. `from` is
/// the run folder or the checkpoint's file. Messages call the document `name`.
///
/// # Errors
/// If the document with its overrides has problems, or a file is missing or does not fit.
pub fn load(
    from: &Path,
    checkpoint: Checkpoint,
    overrides: &[String],
    name: &str,
    device: &Device,
) -> Result<(Pipeline, BoxBackbone)> {
    let mut pipeline = document::from_text(&checkpoint.document, overrides, name)?;
    pipeline.load(device)?;
    frozen::load_weak(&mut pipeline, device)?;
    start::restore_tokenizer(&mut pipeline, from, device)?;
    let network = pipeline.restore(checkpoint.model, device)?;
    Ok((pipeline, network))
}

/// Returns one label per row of the requested grid. Without classes and captions: every class, or one row without a
/// label; `None` for a network that reads captions, because these come from the dataset.
///
/// # Errors
/// If the network reads no such condition.
pub fn rows(pipeline: &Pipeline, classes: &[usize], captions: &[String], names: Names) -> Result<Option<Vec<Label>>> {
    let accepts = pipeline.backbone.accepts();
    let refuse = |what: &str, at: &str, accepts: &str| Error::from(Problem::new(at, what).accepts(accepts));
    let text = accepts.condition.is_text();
    let known = |none: &str, before: &str| {
        accepts.num_classes().map_or(none.to_string(), |n| format!("{before}classes 0 to {}", n - 1))
    };
    if !captions.is_empty() && !text {
        let accepts = known("no condition option", &format!("{} with ", names.classes));
        return Err(refuse("the network reads no captions", names.captions, &accepts));
    }
    if !classes.is_empty() && text {
        let accepts = format!("{} TEXT", names.captions);
        return Err(refuse("the network reads captions and has no classes", names.classes, &accepts));
    }
    if let Some(class) = classes.iter().find(|class| accepts.num_classes().is_none_or(|n| **class >= n)) {
        let accepts = known("no classes: the network is unconditional", "");
        return Err(refuse(&format!("the network has no class {class}"), names.classes, &accepts));
    }
    Ok(if !captions.is_empty() {
        Some(captions.iter().cloned().map(Label::Caption).collect())
    } else if !classes.is_empty() {
        Some(classes.iter().copied().map(Label::Class).collect())
    } else if text {
        None
    } else {
        Some(labels::classes(pipeline).unwrap_or(vec![Label::None]))
    })
}

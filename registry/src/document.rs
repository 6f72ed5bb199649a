//! The pipeline document: one JSON file that specifies a whole run.

use crate::library;
use framework::pipeline::Pipeline;
use framework::pipeline::train_config::TrainConfig;
use framework::pipeline::weak::WeakConfig;
use framework::plugin::{
    BackbonePlugin, ConditionerPlugin, DatasetPlugin, GuidancePlugin, Kind, MetricPlugin, ObjectivePlugin,
    SamplerPlugin, TokenizerPlugin,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A parsed pipeline document. [`crate::Registry::parse`] creates it from text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Path of the JSON Schema of this document, for editors.
    #[serde(rename = "$schema", default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Version of the document format: 1.
    pub version: u32,
    /// Description of this pipeline for readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Plugin libraries to load, relative to the document.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<PathBuf>,
    /// The dataset.
    pub data: Box<dyn DatasetPlugin>,
    /// The tokenizer, which converts images to latents and back.
    pub tokenizer: Box<dyn TokenizerPlugin>,
    /// The conditioner, which converts captions to features for text-conditional backbones.
    #[serde(default)]
    pub conditioner: Option<Box<dyn ConditionerPlugin>>,
    /// The network.
    pub backbone: Box<dyn BackbonePlugin>,
    /// The training objective.
    pub objective: Box<dyn ObjectivePlugin>,
    /// The training loop.
    pub train: TrainConfig,
    /// The sampler, which converts noise to latents.
    pub sampler: Box<dyn SamplerPlugin>,
    /// The guidance rule of sampling.
    pub guidance: Box<dyn GuidancePlugin>,
    /// The weak network of the guidance rule. In the document it is the field `weak` of `guidance`.
    #[serde(rename = "guidance.weak", default)]
    pub weak: Option<WeakConfig>,
    /// The metrics on samples.
    #[serde(default)]
    pub metrics: Vec<Box<dyn MetricPlugin>>,
}

impl crate::Registry {
    /// Returns the name in messages of the part in each slot.
    fn names(&self, document: &Document) -> BTreeMap<Kind, String> {
        let parts = [
            (Kind::Data, Some(document.data.typetag_name())),
            (Kind::Tokenizer, Some(document.tokenizer.typetag_name())),
            (Kind::Conditioner, document.conditioner.as_ref().map(|conditioner| conditioner.typetag_name())),
            (Kind::Backbone, Some(document.backbone.typetag_name())),
            (Kind::Objective, Some(document.objective.typetag_name())),
            (Kind::Sampler, Some(document.sampler.typetag_name())),
            (Kind::Guidance, Some(document.guidance.typetag_name())),
        ];
        let name = |kind: Kind, name: &str| {
            let from = library::origin(kind, name).map(|path| format!(" of {}", path.display())).unwrap_or_default();
            format!("{} \"{name}\"{from}", kind.name())
        };
        let mut names: BTreeMap<Kind, String> =
            parts.into_iter().filter_map(|(kind, part)| Some((kind, name(kind, part?)))).collect();
        let metrics = document.metrics.iter().map(|metric| name(Kind::Metric, metric.typetag_name()));
        names.insert(Kind::Metric, metrics.collect::<Vec<_>>().join(" or "));
        names
    }

    /// Builds the pipeline that a parsed and checked document describes.
    pub fn build(&self, document: Document) -> Pipeline {
        let names = self.names(&document);
        let resolved = serde_json::to_string_pretty(&self.resolved(&document)).expect("a document can be serialized");
        Pipeline {
            data: document.data,
            tokenizer: document.tokenizer,
            conditioner: document.conditioner.map(|conditioner| conditioner as _),
            backbone: document.backbone,
            objective: document.objective,
            train: document.train,
            sampler: document.sampler,
            guidance: document.guidance,
            weak: None,
            weak_source: document.weak,
            metrics: document.metrics.into_iter().map(|metric| metric as _).collect(),
            document: resolved,
            names,
        }
    }
}

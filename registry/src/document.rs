//! The pipeline document: one JSON file that says everything about a run.

use framework::pipeline::Pipeline;
use framework::plugin::{
    BackbonePlugin, ConditionerPlugin, DatasetPlugin, GuidancePlugin, MetricPlugin, ObjectivePlugin, SamplerPlugin,
    TokenizerPlugin,
};
use framework::train_config::TrainConfig;
use serde::{Deserialize, Serialize};

/// One pipeline. [`crate::Registry::parse`] makes it from text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Where editors find the schema of this document.
    #[serde(rename = "$schema", default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Version of the document format: 1.
    pub version: u32,
    /// What this pipeline is, for a reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// What is learned.
    pub data: Box<dyn DatasetPlugin>,
    /// From images to latents and back.
    pub tokenizer: Box<dyn TokenizerPlugin>,
    /// From captions to features, for text-conditional backbones.
    #[serde(default)]
    pub conditioner: Option<Box<dyn ConditionerPlugin>>,
    /// The network.
    pub backbone: Box<dyn BackbonePlugin>,
    /// The training objective.
    pub objective: Box<dyn ObjectivePlugin>,
    /// The training loop.
    pub train: TrainConfig,
    /// From noise to latents.
    pub sampler: Box<dyn SamplerPlugin>,
    /// The guidance rule of sampling.
    pub guidance: Box<dyn GuidancePlugin>,
    /// What is measured on samples.
    #[serde(default)]
    pub metrics: Vec<Box<dyn MetricPlugin>>,
}

impl crate::Registry {
    /// The pipeline that a parsed and checked document describes.
    pub fn build(&self, document: Document) -> Pipeline {
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
            metrics: document.metrics.into_iter().map(|metric| metric as _).collect(),
            document: resolved,
        }
    }
}

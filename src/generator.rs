//! A trained network with the settings of its samples, as `sample` and `evaluate` open it.

use crate::arguments::SamplingOptions;
use crate::memory;
use framework::burn::tensor::{Device, TensorData};
use framework::checkpoint::{self, Checkpoint};
use framework::data::dataset::Label;
use framework::error::Result;
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use framework::pipeline::images::Request;
use run_folder::sampling::{OPTIONS, Settings};
use run_folder::{document, frozen, start, weights};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A checkpoint, before its network is built.
pub struct Generator {
    from: PathBuf,
    /// File of the checkpoint.
    pub file: PathBuf,
    /// SHA-256 of the checkpoint's content, hexadecimal; empty if the file has none.
    pub sha256: String,
    /// Completed training steps.
    pub step: usize,
    /// Names of the classes, if they have names.
    pub class_names: Option<Vec<String>>,
    document: String,
    /// Weights, until a network is built from them.
    weights: BTreeMap<String, TensorData>,
}

impl Generator {
    /// Loads the checkpoint at a path, or the newest of a run folder.
    ///
    /// # Errors
    /// If there is no checkpoint, or it is damaged.
    pub fn load(from: &Path) -> Result<Self> {
        let (file, Checkpoint { document, model: weights, step, dataset, .. }) = weights::checkpoint(from)?;
        let metadata = checkpoint::metadata(&file)?;
        let sha256 = metadata.and_then(|mut metadata| metadata.remove("sha256")).unwrap_or_default();
        let class_names = dataset.and_then(|facts| facts.class_names);
        Ok(Self { from: from.to_path_buf(), file, sha256, step, class_names, document, weights })
    }

    fn name(&self) -> String {
        format!("{} (its document)", self.from.display())
    }

    /// Returns the overrides of the checkpoint's document that the options request.
    ///
    /// # Errors
    /// If the objective has no scale for the guidance number.
    pub fn overrides(&self, options: &SamplingOptions) -> Result<Vec<String>> {
        let SamplingOptions { scale, guidance, steps, set, .. } = options;
        let settings = Settings { scale: *scale, guidance: *guidance, steps: *steps, set: set.clone() };
        settings.overrides(&self.document, &self.name(), OPTIONS)
    }

    /// Returns the checked pipeline of the checkpoint's document with overrides. Loads no weights.
    ///
    /// # Errors
    /// If the changed document has problems, such as a scale that the network was not trained at.
    pub fn pipeline(&self, overrides: &[String]) -> Result<Pipeline> {
        document::from_text(&self.document, overrides, &self.name())
    }

    /// Loads the tokenizer, the conditioner and the weak network of a pipeline.
    ///
    /// # Errors
    /// If a file is missing or does not fit, or the network does not fit into memory.
    pub fn load_parts(&self, pipeline: &mut Pipeline, device: &Device) -> Result<()> {
        memory::to_sample(pipeline, device)?;
        pipeline.load(device)?;
        frozen::load_weak(pipeline, device)?;
        start::restore_tokenizer(pipeline, &self.from, device)
    }

    /// Builds the network with the checkpoint's weights, which it takes: a second call has none.
    ///
    /// # Errors
    /// If the weights do not fit.
    pub fn network(&mut self, pipeline: &Pipeline, device: &Device) -> Result<BoxBackbone> {
        let network = pipeline.restore(std::mem::take(&mut self.weights), device)?;
        allocator::keep_pages();
        Ok(network)
    }
}

/// Returns a request for samples with these labels.
pub fn request<'a>(pipeline: &'a Pipeline, options: &SamplingOptions, labels: Vec<Label>) -> Request<'a> {
    Request {
        labels,
        seed: options.seed,
        batch_size: options.batch_size.get(),
        sampler: &*pipeline.sampler,
        guidance: &*pipeline.guidance,
        matmul_precision: options.matmul_precision,
    }
}

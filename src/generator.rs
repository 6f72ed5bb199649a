//! A trained network with the settings of its samples, as `sample` and `evaluate` open it.

use crate::sampling_arguments::SamplingOptions;
use framework::burn::tensor::{Device, TensorData};
use framework::checkpoint::Checkpoint;
use framework::data::dataset::Label;
use framework::error::{Error, Problem, Result};
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use framework::pipeline::images::Request;
use run_folder::{document, frozen, start, weights};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A checkpoint, before its network is built.
pub struct Generator {
    from: PathBuf,
    /// File of the checkpoint.
    pub file: PathBuf,
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
        let (file, Checkpoint { document, model: weights, .. }) = weights::checkpoint(from)?;
        Ok(Self { from: from.to_path_buf(), file, document, weights })
    }

    /// Returns the checked pipeline of the checkpoint's document with the options and `more` overrides. Loads no
    /// weights.
    ///
    /// # Errors
    /// If the changed document has problems, such as a scale that the network was not trained at.
    pub fn pipeline(&self, options: &SamplingOptions, more: &[String]) -> Result<Pipeline> {
        let name = format!("{} (its document)", self.from.display());
        let mut overrides = options.set.clone();
        overrides.extend(options.scale.map(|scale| format!("/guidance/scale={scale}")));
        overrides.extend(options.steps.map(|steps| format!("/sampler/steps={steps}")));
        if let Some(number) = options.guidance {
            let objective = document::from_text(&self.document, &[], &name)?.objective;
            let scale = objective
                .scale_of_guidance(number)
                .filter(|scale| scale.is_finite() && *scale > 0.0)
                .ok_or_else(|| {
                    Error::from(
                        Problem::new(
                            "--guidance",
                            format!("--guidance {number} has no meaning for a network trained with this objective"),
                        )
                        .accepts(
                            "an objective with a guidance input (such as gft), and a number whose scale is above 0",
                        )
                        .fix("use --scale"),
                    )
                })?;
            overrides.push(format!("/guidance/scale={scale}"));
        }
        overrides.extend_from_slice(more);
        document::from_text(&self.document, &overrides, &name)
    }

    /// Loads the tokenizer, the conditioner and the weak network of a pipeline.
    ///
    /// # Errors
    /// If a file is missing or does not fit.
    pub fn load_parts(&self, pipeline: &mut Pipeline, device: &Device) -> Result<()> {
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

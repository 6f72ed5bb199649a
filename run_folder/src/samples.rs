//! Sampling with progress reports to a watcher.

use crate::watcher::{Stage, Watcher};
use framework::burn::tensor::Device;
use framework::data::dataset::Label;
use framework::error::Result;
use framework::network::backbone::BoxBackbone;
use framework::nn::precision::MatmulPrecision;
use framework::pipeline::Pipeline;
use framework::pipeline::images::{self, Request, Sampled};

/// Samples `labels` with the document's sampler, guidance and seed.
pub(crate) fn sample(
    pipeline: &Pipeline,
    network: &BoxBackbone,
    labels: Vec<Label>,
    device: &Device,
    watcher: &mut dyn Watcher,
) -> Result<Sampled> {
    let request = Request {
        labels,
        seed: pipeline.train.seed,
        batch_size: 100,
        sampler: &*pipeline.sampler,
        guidance: &*pipeline.guidance,
        matmul_precision: MatmulPrecision::Highest,
    };
    sample_request(pipeline, network, &request, device, watcher)
}

/// Samples a request and reports progress to the watcher.
///
/// # Errors
/// If a plugin panics or a value is not finite.
pub fn sample_request(
    pipeline: &Pipeline,
    network: &BoxBackbone,
    request: &Request<'_>,
    device: &Device,
    watcher: &mut dyn Watcher,
) -> Result<Sampled> {
    sample_request_from(pipeline, network, request, 0, device, watcher)
}

/// Samples like [`sample_request`]. The first sample has the noise of index `first`.
///
/// # Errors
/// Like [`sample_request`].
pub fn sample_request_from(
    pipeline: &Pipeline,
    network: &BoxBackbone,
    request: &Request<'_>,
    first: usize,
    device: &Device,
    watcher: &mut dyn Watcher,
) -> Result<Sampled> {
    let sampled = images::sample_from(pipeline, network, request, first, device, &mut |done, all| {
        watcher.progress(Stage::Sampling, done, all, "");
    });
    watcher.finished(Stage::Sampling);
    sampled
}

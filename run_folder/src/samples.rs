//! Sampling with progress reports to a watcher.

use crate::watcher::{Stage, Watcher};
use framework::burn::tensor::Device;
use framework::data::dataset::Label;
use framework::error::Result;
use framework::evaluation::images::Images;
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

/// Samples a request batch by batch, and gives each batch, with the index of its first sample, to `receive`. No batch
/// stays in memory. Returns the network evaluations per sample, and the duration of the sampling in seconds.
///
/// # Errors
/// If a plugin panics, a value is not finite, or `receive` fails.
pub fn sample_batches(
    pipeline: &Pipeline,
    network: &BoxBackbone,
    request: &Request<'_>,
    device: &Device,
    watcher: &mut dyn Watcher,
    receive: &mut dyn FnMut(usize, Images) -> Result<()>,
) -> Result<(usize, f64)> {
    let batches = request.labels.len().div_ceil(request.batch_size);
    let (mut nfe, mut seconds) = (0, 0.0);
    for (batch, labels) in request.labels.chunks(request.batch_size).enumerate() {
        let part = Request { labels: labels.to_vec(), ..*request };
        let first = batch * request.batch_size;
        let sampled = images::sample_from(pipeline, network, &part, first, device, &mut |step, steps| {
            watcher.progress(Stage::Sampling, batch * steps + step, batches * steps, "");
        })?;
        (nfe, seconds) = (sampled.nfe, seconds + sampled.seconds);
        receive(first, sampled.images)?;
    }
    watcher.finished(Stage::Sampling);
    Ok((nfe, seconds))
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

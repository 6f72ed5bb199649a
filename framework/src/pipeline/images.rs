//! Sampling of labelled images from a pipeline: batches, seeds, and the count of network evaluations.

use crate::blame;
use crate::data::dataset::Label;
use crate::error::{Error, Result};
use crate::evaluation::images::Images;
use crate::interrupt;
use crate::network::backbone::{Backbone, Control};
use crate::network::condition::Condition;
use crate::nn::precision::MatmulPrecision;
use crate::pipeline::Pipeline;
use crate::plugin::Kind;
use crate::process::path::{self, Prediction};
use crate::process::{Input, Latent, LatentShape, Process};
use crate::random::Random;
use crate::sampling::denoiser::{Denoiser, GuidanceNumbers, Weak};
use crate::sampling::guidance::Guidance;
use crate::sampling::sampler::{Sampler, SamplerStep, SeededNoise};
use burn::tensor::{DType, Device, Int, Tensor};
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::time::Instant;

/// A request for samples.
pub struct Request<'a> {
    /// Condition of each sample. The length is the number of samples.
    pub labels: Vec<Label>,
    /// Seed. The noise of sample `i` depends only on (seed, i).
    pub seed: u64,
    /// Samples per batch.
    pub batch_size: usize,
    /// Sampler.
    pub sampler: &'a dyn Sampler,
    /// Guidance rule.
    pub guidance: &'a dyn Guidance,
    /// Precision of the network's matrix products.
    pub matmul_precision: MatmulPrecision,
}

/// The samples, and their cost.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// Images as rows `[C, H, W]`, nominally in [-1, 1].
    pub images: Images,
    /// Network evaluations per sample.
    pub nfe: usize,
    /// Total duration in seconds.
    pub seconds: f64,
}

impl Sampled {
    /// Returns the number of images per second.
    pub fn images_per_second(&self) -> f64 {
        self.images.len() as f64 / self.seconds
    }
}

/// A network for sampling. Its panics carry the backbone's name, and its passes have the requested precision.
#[derive(Debug)]
struct Named<'a> {
    network: &'a dyn Backbone,
    name: &'a str,
    precision: MatmulPrecision,
}

impl Backbone for Named<'_> {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        interrupt::abort_if_asked();
        let pass = || self.network.predict(input, condition, control);
        blame::named(self.name, || self.precision.within(pass))
    }
}

/// The state of a request after a sampler step.
pub struct Step<'a> {
    /// Completed sampler steps of all batches so far.
    pub done: usize,
    /// Total sampler steps of all batches.
    pub all: usize,
    /// Decodes the estimate; `None` if nobody asked for estimates.
    estimate: Option<&'a dyn Fn() -> Result<Option<Images>>>,
}

impl Step<'_> {
    /// Decodes the current estimate of this batch's images: the clean latent that the last prediction implies, or the
    /// tokens so far. Returns `None` where a sampler has no estimate, or nobody asked for estimates.
    ///
    /// # Errors
    /// If the tokenizer panics.
    pub fn estimate(&self) -> Result<Option<Images>> {
        self.estimate.map_or(Ok(None), |estimate| estimate())
    }
}

/// Samples images. Calls `progress` after every sampler step with (completed steps, total steps).
///
/// # Errors
/// If a caption cannot be encoded, a plugin panics, a sample is not finite, or a training that samples is asked to
/// stop.
pub fn sample(
    pipeline: &Pipeline,
    network: &dyn Backbone,
    request: &Request<'_>,
    device: &Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Sampled> {
    sample_from(pipeline, network, request, 0, device, progress)
}

/// Samples images like [`sample`]. The first image has the noise of index `first`, so that a caller can sample part by
/// part. Parts that start at multiples of the batch size have the bits of one request for all images.
///
/// # Errors
/// Like [`sample`].
pub fn sample_from(
    pipeline: &Pipeline,
    network: &dyn Backbone,
    request: &Request<'_>,
    first: usize,
    device: &Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Sampled> {
    run(pipeline, network, request, (first, false), device, &mut |step| {
        progress(step.done, step.all);
        ControlFlow::Continue(())
    })
}

/// Samples images like [`sample`], to the same bits. `report` sees an estimate of the images after every sampler step,
/// and ends the request by returning `Break`.
///
/// # Errors
/// Like [`sample`]; [`Error::Interrupted`] if `report` ends the request.
pub fn stream(
    pipeline: &Pipeline,
    network: &dyn Backbone,
    request: &Request<'_>,
    device: &Device,
    report: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Sampled> {
    run(pipeline, network, request, (0, true), device, report)
}

fn run(
    pipeline: &Pipeline,
    network: &dyn Backbone,
    request: &Request<'_>,
    (first, estimates): (usize, bool),
    device: &Device,
    report: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Sampled> {
    let process = pipeline.process();
    let network = Named { network, name: pipeline.name(Kind::Backbone), precision: request.matmul_precision };
    let drawing = format!("{} under {}", pipeline.name(Kind::Sampler), pipeline.name(Kind::Guidance));
    let (shape, image) = (pipeline.latent_shape(), pipeline.image_shape());
    let of_scale = |scale: f64| pipeline.objective.guidance_of_scale(scale);
    let numbers = GuidanceNumbers { of_scale: &of_scale, null: pipeline.objective.null().number() };
    let weak_of_scale = |scale: f64| pipeline.weak.as_ref()?.objective.as_ref()?.guidance_of_scale(scale);
    let weak_null = pipeline.weak.as_ref().and_then(|weak| weak.objective.as_ref()?.null().number());
    let weak_named = pipeline.weak.as_ref().map(|weak| Named {
        network: &weak.network,
        name: "the weak network",
        precision: request.matmul_precision,
    });
    let weak = weak_named
        .as_ref()
        .map(|network| Weak { network, numbers: GuidanceNumbers { of_scale: &weak_of_scale, null: weak_null } });
    let start = Instant::now();
    let count = request.labels.len();
    let batches = count.div_ceil(request.batch_size);
    let mut images = Images::none(image);
    let mut nfe = 0;
    for (batch, labels) in request.labels.chunks(request.batch_size).enumerate() {
        let condition = pipeline.condition(labels)?;
        let seen: RefCell<Option<(Input, Tensor<3>)>> = RefCell::new(None);
        let listener = |input: &Input, prediction: &Tensor<3>| {
            seen.replace(Some((input.clone(), prediction.clone())));
        };
        let mut model = Denoiser::new(&network, &*process, request.guidance, numbers, &condition, &shape)
            .with_codec(pipeline.tokenizer.codec())
            .with_listener(estimates.then_some(&listener))
            .with_weak(weak);
        let mut noise = SeededNoise {
            random: Random::new(request.seed),
            first: first + batch * request.batch_size,
            count: labels.len(),
            shape: shape.clone(),
            dtype: DType::F32,
            device: device.clone(),
        };
        let mut observer = |at: &SamplerStep<'_>| {
            let estimate = || {
                let latent = seen
                    .borrow()
                    .as_ref()
                    .and_then(|(input, prediction)| estimated(&*process, &shape, input, prediction));
                let Some(latent) = latent.or_else(|| at.state.cloned().map(Latent::Values)) else { return Ok(None) };
                let values = values(pipeline.decode(latent, image)?)?;
                let mut images = Images::none(image);
                images.extend(values, labels);
                Ok(Some(images))
            };
            let (done, all) = (batch * at.steps + at.step, batches * at.steps);
            if report(&Step { done, all, estimate: estimates.then_some(&estimate) }).is_break() {
                interrupt::abort();
            }
        };
        let latent = blame::caught(&drawing, || request.sampler.sample(&mut model, &mut noise, &mut observer))?;
        nfe = model.nfe();
        let values = values(pipeline.decode(latent, image)?)?;
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            let sample = first + batch * request.batch_size + bad / images.width();
            let why = match request.matmul_precision {
                MatmulPrecision::Highest => "the weights have diverged",
                MatmulPrecision::Medium => {
                    "the weights have diverged, or values are too large for matmul precision medium"
                }
            };
            return Err(Error::Run(format!("sample {sample} of seed {} is not finite: {why}", request.seed)));
        }
        images.extend(values, labels);
    }
    Ok(Sampled { images, nfe, seconds: start.elapsed().as_secs_f64() })
}

/// Returns the elements of decoded images as f32.
fn values(decoded: Tensor<4>) -> Result<Vec<f32>> {
    decoded.try_into_vec_as::<f32>().map_err(|e| Error::Run(format!("{e:?}")))
}

/// Returns the latent that a prediction implies: the clean latent of a continuous process, or the tokens that the
/// network has read, with token 0 at all later positions. `None` for the other processes.
fn estimated(process: &dyn Process, shape: &LatentShape, input: &Input, prediction: &Tensor<3>) -> Option<Latent> {
    match (input, process.path()) {
        (Input::Noisy { x_t, t }, Some(path)) => {
            let prediction = prediction.clone().narrow(2, 0, shape.channels);
            let x = path::convert(process.prediction(), Prediction::X, prediction, x_t.clone(), path.at(t[0]));
            Some(Latent::Values(x))
        }
        (Input::Tokens { ids }, _) => {
            let ([batch, known], all) = (ids.dims(), shape.positions());
            if known >= all {
                return Some(Latent::Ids(ids.clone().narrow(1, 0, all)));
            }
            let later = Tensor::<2, Int>::zeros([batch, all - known], &ids.device());
            Some(Latent::Ids(Tensor::cat(vec![ids.clone(), later], 1)))
        }
        _ => None,
    }
}

//! Drawing images from a pipeline: batches, seeds, counting of network evaluations.

use crate::backbone::{Backbone, Control};
use crate::condition::Condition;
use crate::dataset::Label;
use crate::error::{Error, Result};
use crate::guard;
use crate::guidance::{Denoiser, Guidance};
use crate::metric::Images;
use crate::pipeline::Pipeline;
use crate::plugin::Kind;
use crate::precision::MatmulPrecision;
use crate::process::Input;
use crate::random::Random;
use crate::sampler::{Progress, Sampler, SeededNoise};
use burn::tensor::{DType, Device, Tensor};
use std::time::Instant;

/// What to draw.
pub struct Request<'a> {
    /// The condition of each sample; its length is their number.
    pub labels: Vec<Label>,
    /// Seed; sample `i` is a function of (seed, i) alone.
    pub seed: u64,
    /// Samples a batch.
    pub batch_size: usize,
    /// The sampler.
    pub sampler: &'a dyn Sampler,
    /// The guidance rule.
    pub guidance: &'a dyn Guidance,
    /// How the network multiplies matrices.
    pub matmul_precision: MatmulPrecision,
}

/// What was drawn.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Images as rows `[C, H, W]`, nominally in [-1, 1].
    pub images: Images,
    /// Network evaluations of one sample.
    pub nfe: usize,
    /// Seconds in all.
    pub seconds: f64,
}

impl Drawn {
    /// Images a second.
    pub fn images_per_second(&self) -> f64 {
        self.images.len() as f64 / self.seconds
    }
}

/// A network as samples are drawn with it: its panics bear its name.
#[derive(Debug)]
struct Drawing<'a> {
    network: &'a dyn Backbone,
    name: &'a str,
    precision: MatmulPrecision,
}

impl Backbone for Drawing<'_> {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let pass = || self.network.predict(input, condition, control);
        guard::named(self.name, || self.precision.within(pass))
    }
}

/// Draws images. `progress` is called after every sampler step with (steps done, steps in all).
///
/// # Errors
/// If a caption cannot be encoded, a part panics, or a sample is not finite.
pub fn draw(
    pipeline: &Pipeline,
    network: &dyn Backbone,
    request: &Request<'_>,
    device: &Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Drawn> {
    let process = pipeline.process();
    let network = Drawing { network, name: pipeline.name(Kind::Backbone), precision: request.matmul_precision };
    let drawing = format!("{} under {}", pipeline.name(Kind::Sampler), pipeline.name(Kind::Guidance));
    let (shape, image) = (pipeline.latent_shape(), pipeline.image_shape());
    let guidance_of_scale = |scale: f64| pipeline.objective.guidance_of_scale(scale);
    let start = Instant::now();
    let count = request.labels.len();
    let batches = count.div_ceil(request.batch_size);
    let mut images = Images::none(image);
    let mut nfe = 0;
    for (batch, labels) in request.labels.chunks(request.batch_size).enumerate() {
        let condition = pipeline.condition(labels)?;
        let mut model = Denoiser::new(&network, &*process, request.guidance, &guidance_of_scale, &condition, &shape)
            .with_codec(pipeline.tokenizer.codec());
        let mut noise = SeededNoise {
            random: Random::new(request.seed),
            first: batch * request.batch_size,
            count: labels.len(),
            shape: shape.clone(),
            dtype: DType::F32,
            device: device.clone(),
        };
        let mut observer = |at: &Progress<'_>| progress(batch * at.steps + at.step, batches * at.steps);
        let latent = guard::caught(&drawing, || request.sampler.sample(&mut model, &mut noise, &mut observer))?;
        nfe = model.nfe();
        let decoded = pipeline.decode(latent, image)?;
        let values = decoded.try_into_vec_as::<f32>().map_err(|e| Error::Run(format!("{e:?}")))?;
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            let sample = batch * request.batch_size + bad / images.width();
            let why = match request.matmul_precision {
                MatmulPrecision::Highest => "the weights have diverged",
                MatmulPrecision::Medium => {
                    "the weights have diverged, or numbers are too large for matmul precision medium"
                }
            };
            return Err(Error::Run(format!("sample {sample} of seed {} is not finite: {why}", request.seed)));
        }
        images.extend(values, labels);
    }
    Ok(Drawn { images, nfe, seconds: start.elapsed().as_secs_f64() })
}

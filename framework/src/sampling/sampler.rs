//! Samplers: they turn noise into latents and evaluate the network through a [`Denoiser`].

use crate::data::tokenizer::LevelCodec;
use crate::error::Problems;
use crate::process::path::NoisePath;
use crate::process::{Family, Head, Latent, LatentShape, Process};
use crate::random::{Random, tensor};
use crate::sampling::denoiser::Denoiser;
use burn::tensor::{DType, Device, Int, Tensor};
use std::fmt::Debug;

/// The randomness of a sampler. The noise of a sample depends only on the seed, the sample's index and the draw index,
/// so splitting a batch does not change results.
pub trait NoiseSource {
    /// Returns standard normal noise `[B, position, channel]` for draw index `draw`. Draw 0 is the initial noise.
    fn normal(&mut self, draw: usize) -> Tensor<3>;

    /// Returns `n` random numbers per sample, uniform in [0, 1), for draw index `draw`; row-major `[B, n]`.
    fn uniform(&mut self, draw: usize, n: usize) -> Vec<f64>;

    /// Returns the number of samples in the batch.
    fn count(&self) -> usize;

    /// Returns the device of the noise tensors.
    fn device(&self) -> Device;
}

/// Seeded noise for the samples `first..first + count`.
#[derive(Clone, Debug)]
pub struct SeededNoise {
    /// Random streams of the seed.
    pub random: Random,
    /// Index of the batch's first sample.
    pub first: usize,
    /// Number of samples in the batch.
    pub count: usize,
    /// Shape of one latent.
    pub shape: LatentShape,
    /// Data type of the noise.
    pub dtype: DType,
    /// Device of the noise.
    pub device: Device,
}

impl NoiseSource for SeededNoise {
    fn normal(&mut self, draw: usize) -> Tensor<3> {
        let (positions, channels) = (self.shape.positions(), self.shape.channels);
        let values: Vec<f64> = (self.first..self.first + self.count)
            .flat_map(|sample| self.random.normal("sample", sample as u64, draw as u64, positions * channels))
            .map(f64::from)
            .collect();
        tensor(&values, [self.count, positions, channels], self.dtype, &self.device)
    }

    fn uniform(&mut self, draw: usize, n: usize) -> Vec<f64> {
        (self.first..self.first + self.count)
            .flat_map(|sample| self.random.uniform("sample uniform", sample as u64, draw as u64, n))
            .collect()
    }

    fn count(&self) -> usize {
        self.count
    }

    fn device(&self) -> Device {
        self.device.clone()
    }
}

/// The report of a sampler after each step.
#[derive(Debug)]
pub struct SamplerStep<'a> {
    /// Number of completed steps.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// Current time of continuous processes (0 = data, 1 = noise); `1 - progress` for the other processes.
    pub t: f64,
    /// Current state, `[B, position, channel]`, if it is continuous.
    pub state: Option<&'a Tensor<3>>,
}

/// Receives the report of each step: progress bars, recorders of trajectories, counters.
pub trait Observer {
    /// Called after each step.
    fn step(&mut self, progress: &SamplerStep<'_>);
}

impl<F: FnMut(&SamplerStep<'_>)> Observer for F {
    fn step(&mut self, progress: &SamplerStep<'_>) {
        self(progress);
    }
}

/// A sampler. The document entry itself implements this trait.
pub trait Sampler: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns the incompatibilities with the backbone's process. Pointers are relative to the entry.
    fn check_process(&self, process: &dyn Process) -> Problems {
        let _ = process;
        Problems::new()
    }

    /// Returns the incompatibilities with the shape of the latents. Pointers are relative to the entry.
    fn check_shape(&self, shape: &LatentShape) -> Problems {
        let _ = shape;
        Problems::new()
    }

    /// Returns the JSON pointer, within the entry, of the setting that requires a learned variance; `None` if no
    /// setting does.
    fn needs_variance(&self) -> Option<&'static str> {
        None
    }

    /// Returns whether the sampler adds the noise of a rule's second prediction
    /// ([`crate::sampling::guidance::Guided::renoise`]), if there is one.
    fn renoises(&self) -> bool {
        false
    }

    /// Returns whether the sampler uses noise after the initial noise.
    fn is_stochastic(&self) -> bool {
        true
    }

    /// Returns the sampler with the interface of its process family.
    fn sampling(&self) -> Sampling<'_>;

    /// Returns whether the sampler supports processes of this family.
    fn serves(&self, family: Family) -> bool {
        self.sampling().family() == family
    }

    /// Returns the number of guided evaluations per latent. NFE is this number times the branches of the guidance rule.
    fn evaluations(&self, shape: &LatentShape) -> usize;

    /// Samples a batch of latents through the interface that [`Sampler::sampling`] returns.
    ///
    /// # Panics
    /// If the process belongs to another family; the check phase rejects such pairs.
    fn sample(&self, model: &mut Denoiser<'_>, noise: &mut dyn NoiseSource, observer: &mut dyn Observer) -> Latent {
        const REFUSED: &str = "the check phase rejects samplers of other families";
        match self.sampling() {
            Sampling::Continuous(sampler) => {
                let path = model.process().path().expect(REFUSED);
                Latent::Values(sampler.run(model, path, noise, observer))
            }
            Sampling::NextToken(sampler) => {
                let length = model.shape().positions();
                Latent::Ids(sampler.run(model, length, noise, observer))
            }
            Sampling::NextLevel(sampler) => {
                let (sides, codec) = (model.shape().levels.clone(), model.codec());
                Latent::Ids(sampler.run(model, Levels { sides: &sides, codec }, noise, observer))
            }
            Sampling::Masked(sampler) => {
                let head = model.process().head().expect(REFUSED);
                Latent::Values(sampler.run(model, head, noise, observer))
            }
        }
    }
}

/// A sampler with the interface of the process family that it supports.
#[derive(Clone, Copy, Debug)]
pub enum Sampling<'a> {
    /// Diffusion and flows.
    Continuous(&'a dyn ContinuousSampler),
    /// Tokens in raster order.
    NextToken(&'a dyn TokenSampler),
    /// Token maps of growing resolution.
    NextLevel(&'a dyn LevelSampler),
    /// Continuous tokens in random order.
    Masked(&'a dyn MaskedSampler),
}

impl Sampling<'_> {
    /// Returns the process family.
    pub fn family(self) -> Family {
        match self {
            Self::Continuous(_) => Family::Continuous,
            Self::NextToken(_) => Family::NextToken,
            Self::NextLevel(_) => Family::NextLevel,
            Self::Masked(_) => Family::Masked,
        }
    }
}

/// A sampler of diffusions and flows.
pub trait ContinuousSampler: Debug {
    /// Samples a batch along `path`, from noise to data: `[B, position, channel]`.
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        path: &dyn NoisePath,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3>;
}

/// A sampler of tokens in raster order.
pub trait TokenSampler: Debug {
    /// Samples a batch of sequences of `length` tokens, `[B, length]`.
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        length: usize,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<2, Int>;
}

/// The token maps of a pyramid.
#[derive(Clone, Copy)]
pub struct Levels<'a> {
    /// Sides of the square token maps, coarse to fine.
    pub sides: &'a [usize],
    /// Codec that converts the tokens of the previous levels to the features of the next level.
    pub codec: &'a dyn LevelCodec,
}

/// A sampler of token maps of growing resolution.
pub trait LevelSampler: Debug {
    /// Samples a batch of token pyramids, `[B, position]`, level by level.
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        levels: Levels<'_>,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<2, Int>;
}

/// A sampler of continuous tokens in random order.
pub trait MaskedSampler: Debug {
    /// Samples a batch of latents, `[B, position, channel]`, token by token through the process's head.
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        head: Head<'_>,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3>;
}

//! Samplers: from noise to a latent, through a [`Denoiser`].

use crate::error::Problems;
use crate::guidance::Denoiser;
use crate::process::{Family, Latent, LatentShape, Process};
use crate::random::{Random, tensor};
use burn::tensor::{DType, Device, Tensor};
use std::fmt::Debug;

/// Where a sampler's randomness comes from. Noise of a sample depends on nothing but the seed, the sample's
/// index and the draw's index, so a batch may be split without changing results.
pub trait NoiseSource {
    /// Standard normal noise `[B, position, channel]` for draw `draw`; draw 0 is where sampling starts.
    fn normal(&mut self, draw: usize) -> Tensor<3>;

    /// `n` numbers uniform in [0, 1) a sample for draw `draw`, row-major `[B, n]`.
    fn uniform(&mut self, draw: usize, n: usize) -> Vec<f64>;

    /// Samples in the batch.
    fn count(&self) -> usize;

    /// Where its tensors live.
    fn device(&self) -> Device;
}

/// Seeded noise for the samples `first..first + count`.
#[derive(Clone, Debug)]
pub struct SeededNoise {
    /// Streams of the seed.
    pub random: Random,
    /// Index of the batch's first sample.
    pub first: usize,
    /// Samples in the batch.
    pub count: usize,
    /// Shape of one latent.
    pub shape: LatentShape,
    /// Data type of the noise.
    pub dtype: DType,
    /// Where it lives.
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

/// What a sampler reports after every step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// The time now (0 = data); 1 - progress for other families.
    pub t: f64,
    /// The state, `[B, position, channel]`, where it is continuous.
    pub state: Option<&'a Tensor<3>>,
}

/// Called after every step: progress bars, trajectories, counters.
pub trait Observer {
    /// One step is done.
    fn step(&mut self, progress: &Progress<'_>);
}

impl<F: FnMut(&Progress<'_>)> Observer for F {
    fn step(&mut self, progress: &Progress<'_>) {
        self(progress);
    }
}

/// A sampler. The document entry is the sampler.
pub trait Sampler: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Problems of this entry with the backbone's process; pointers are relative to the entry.
    fn check_process(&self, process: &dyn Process) -> Problems {
        let _ = process;
        Problems::new()
    }

    /// Problems of this entry with the latents it is to draw; pointers are relative to the entry.
    fn check_shape(&self, shape: &LatentShape) -> Problems {
        let _ = shape;
        Problems::new()
    }

    /// The field by which it asks for a learned variance beside the prediction, if it does.
    fn needs_variance(&self) -> Option<&'static str> {
        None
    }

    /// Whether it draws noise after where it starts.
    fn is_stochastic(&self) -> bool {
        true
    }

    /// Whether it draws from processes of this family.
    fn serves(&self, family: Family) -> bool;

    /// Guided evaluations of one draw of such a latent. NFE is this times the branches of the guidance rule.
    fn evaluations(&self, shape: &LatentShape) -> usize;

    /// Draws a batch of latents.
    fn sample(&self, model: &mut Denoiser<'_>, noise: &mut dyn NoiseSource, observer: &mut dyn Observer) -> Latent;
}

//! Processes: they turn a clean latent into a training example and score a prediction against it.
//! This file holds the trait and its types. Each other file holds one family, or the mathematics of one
//! family, and can be changed alone.

pub mod diffusion;
pub mod flow;
pub mod learned_variance;
pub mod masked;
pub mod patches;
pub mod path;
mod published_schedule;
pub mod tokens;

use crate::kernels::{self, LogProbability, handle};
use crate::nn::{self, composed};
use crate::process::path::{NoisePath, Prediction};
use crate::random::Random;
use burn::tensor::{Device, Int, Tensor, activation};
use patches::Patches;
use std::fmt::Debug;

/// Families of generative processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `x_t = alpha_t x + sigma_t eps`, with all positions at the same time: diffusion and flows.
    Continuous,
    /// Tokens in raster order. Each token depends on the previous ones.
    NextToken,
    /// Token maps of growing resolution. Each map depends on the coarser ones.
    NextLevel,
    /// Continuous tokens in random order. A small diffusion head samples each token.
    Masked,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 4] = [Self::Continuous, Self::NextToken, Self::NextLevel, Self::Masked];

    /// Returns the family's name in tables and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Continuous => "continuous",
            Self::NextToken => "next token",
            Self::NextLevel => "next level",
            Self::Masked => "masked",
        }
    }

    /// Returns whether the family's predictions are logits.
    pub fn has_logits(self) -> bool {
        matches!(self, Self::NextToken | Self::NextLevel)
    }
}

/// Shape of a clean latent: a grid of positions, and the channels or vocabulary per position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Height and width of the position grid; for a pyramid, of its finest level.
    pub grid: [usize; 2],
    /// Channels of a continuous latent, or of the features that feed the levels of a pyramid; 1 for other
    /// tokens.
    pub channels: usize,
    /// Vocabulary size of tokens; `None` for a continuous latent.
    pub vocabulary: Option<usize>,
    /// Side lengths of the square token maps of a pyramid, coarse to fine; empty if there are no levels.
    pub levels: Vec<usize>,
}

impl LatentShape {
    /// Returns the shape of a continuous latent.
    pub fn values(grid: [usize; 2], channels: usize) -> Self {
        Self { grid, channels, vocabulary: None, levels: Vec::new() }
    }

    /// Returns the shape of tokens in raster order.
    pub fn tokens(grid: [usize; 2], vocabulary: usize) -> Self {
        Self { grid, channels: 1, vocabulary: Some(vocabulary), levels: Vec::new() }
    }

    /// Returns the shape of a token pyramid with the given side lengths and feature channels.
    pub fn pyramid(sides: &[usize], vocabulary: usize, channels: usize) -> Self {
        let side = sides.last().copied().unwrap_or_default();
        Self { grid: [side; 2], channels, vocabulary: Some(vocabulary), levels: sides.to_vec() }
    }

    /// Returns the number of positions, summed over all levels.
    pub fn positions(&self) -> usize {
        if self.levels.is_empty() {
            return self.grid[0] * self.grid[1];
        }
        self.levels.iter().map(|side| side * side).sum()
    }

    /// Returns the width of a prediction that guidance acts on: the vocabulary size, or the channels.
    pub fn width(&self) -> usize {
        self.vocabulary.unwrap_or(self.channels)
    }
}

/// A batch of clean latents.
#[derive(Clone, Debug)]
pub enum Latent {
    /// Continuous `x`, `[B, position, channel]`, positions in raster order.
    Values(Tensor<3>),
    /// Tokens, `[B, position]`, in decoding order (raster order, or level by level).
    Ids(Tensor<2, Int>),
    /// Tokens level by level, with the features from which each level is predicted.
    Levels {
        /// Token ids, `[B, position]`.
        ids: Tensor<2, Int>,
        /// Features, `[B, position, channel]`; the first level's features are not read.
        features: Tensor<3>,
    },
}

impl Latent {
    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Values(x) => x.dims()[0],
            Self::Ids(ids) | Self::Levels { ids, .. } => ids.dims()[0],
        }
    }

    /// Returns whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the token ids, `[B, position]`.
    ///
    /// # Panics
    /// If the latent is continuous. The check phase refuses such pairs.
    pub fn ids(self) -> Tensor<2, Int> {
        match self {
            Self::Ids(ids) | Self::Levels { ids, .. } => ids,
            Self::Values(_) => panic!("a continuous latent has no token ids"),
        }
    }
}

/// The network input of a backbone.
#[derive(Clone, Debug)]
pub enum Input {
    /// A noisy latent and its time. The time stays on the host in f64, so that schedules and sinusoids of
    /// large arguments are computed without rounding it.
    Noisy {
        /// `x_t`, `[B, position, channel]`.
        x_t: Tensor<3>,
        /// Time in [0, 1], where 0 = data and 1 = noise; `[B]`.
        t: Vec<f64>,
    },
    /// Tokens in raster order, `[B, position]`. Each token is predicted from the previous ones, so the last
    /// is not read.
    Tokens {
        /// Token ids.
        ids: Tensor<2, Int>,
    },
    /// Features from which the levels are predicted. The first level's features are not read.
    Levels {
        /// Features level by level, `[B, position, channel]`.
        features: Tensor<3>,
    },
    /// Continuous tokens, a mask of the hidden ones, and the noisy tokens that the head reads.
    Masked {
        /// Continuous tokens, `[B, token, channel]`, as cut by [`crate::process::patches::Patches`]. Hidden
        /// tokens are not read.
        x: Tensor<3>,
        /// Mask of the hidden tokens, row-major `[B, token]`. Every sample has the same number of hidden
        /// tokens.
        hidden: Vec<bool>,
        /// Indices of the tokens that the head predicts, row-major `[B, n]`; a token may appear more than
        /// once.
        places: Vec<usize>,
        /// The head's noisy tokens, `[B, n, channel]`.
        x_t: Tensor<3>,
        /// The head's time for each noisy token, row-major `[B, n]`.
        t: Vec<f64>,
    },
}

impl Input {
    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Noisy { x_t, .. } => x_t.dims()[0],
            Self::Tokens { ids } => ids.dims()[0],
            Self::Levels { features } => features.dims()[0],
            Self::Masked { x, .. } => x.dims()[0],
        }
    }

    /// Returns whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of positions per sample; for a masked process, the number of tokens.
    pub fn positions(&self) -> usize {
        match self {
            Self::Noisy { x_t: x, .. } | Self::Levels { features: x } | Self::Masked { x, .. } => x.dims()[1],
            Self::Tokens { ids } => ids.dims()[1],
        }
    }

    /// Returns the device that holds the input.
    pub fn device(&self) -> Device {
        match self {
            Self::Noisy { x_t: x, .. } | Self::Levels { features: x } | Self::Masked { x, .. } => x.device(),
            Self::Tokens { ids } => ids.device(),
        }
    }

    /// Returns the samples `rows`, in that order.
    pub fn select(&self, rows: &[usize]) -> Self {
        fn of<T: Copy>(all: &[T], batch: usize, rows: &[usize]) -> Vec<T> {
            let each = all.len() / batch;
            rows.iter().flat_map(|row| &all[row * each..][..each]).copied().collect()
        }
        let batch = self.len();
        let values = |x: &Tensor<3>| nn::rows(x.clone(), rows.iter().copied());
        match self {
            Self::Noisy { x_t, t } => Self::Noisy { x_t: values(x_t), t: of(t, batch, rows) },
            Self::Tokens { ids } => Self::Tokens { ids: nn::rows(ids.clone(), rows.iter().copied()) },
            Self::Levels { features } => Self::Levels { features: values(features) },
            Self::Masked { x, hidden, places, x_t, t } => Self::Masked {
                x: values(x),
                hidden: of(hidden, batch, rows),
                places: of(places, batch, rows),
                x_t: values(x_t),
                t: of(t, batch, rows),
            },
        }
    }
}

/// The target that a prediction is scored against.
#[derive(Clone, Debug)]
pub enum Target {
    /// Regression target, `[B, position, channel]`.
    Values(Tensor<3>),
    /// Classification target, `[B, position]`.
    Ids(Tensor<2, Int>),
}

/// Decoding progress in [0, 1] at each prediction: 0 = noise or first token, 1 = data.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// One value per sample, `[B]`; `1 - t` for diffusion.
    PerSample(Vec<f64>),
    /// One value per position, shared by the batch, `[position]`; used by the token families.
    PerPosition(Vec<f64>),
}

/// A batch of training examples, one per sample.
#[derive(Clone, Debug)]
pub struct Example {
    /// The network input.
    pub input: Input,
    /// The target of the prediction.
    pub target: Target,
    /// Decoding progress at each prediction.
    pub progress: Progress,
    /// Mask of the scored positions, `[B, position]` of zeros and ones; `None` scores all positions.
    pub scored: Option<Tensor<2>>,
}

/// The likelihood that a process can compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likelihood {
    /// The exact log-likelihood of the tokens.
    Exact,
    /// A lower bound, up to a constant that does not depend on the model.
    Bound,
}

/// The token head of a masked process, as samplers need it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The process over one token, from which the head samples it.
    pub process: &'a dyn Process,
    /// How a latent is cut into tokens.
    pub patches: Patches,
}

/// Turns a clean latent into a training example and scores predictions. Each backbone has its own process.
pub trait Process: Debug + Send + Sync {
    /// Returns the family, which decides the samplers and input variants that apply.
    fn family(&self) -> Family;

    /// Returns the quantity that the backbone predicts.
    fn prediction(&self) -> Prediction;

    /// Corrupts `x` into training examples. All randomness comes from `random` at `step`.
    fn corrupt(&self, x: &Latent, random: &Random, step: u64) -> Example;

    /// Computes the loss per sample, `[B]`, weighted as in the process's paper.
    fn loss(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        score(prediction, example)
    }

    /// Returns the kind of likelihood that [`Process::log_likelihood`] computes.
    fn likelihood(&self) -> Likelihood;

    /// Computes the log-likelihood (or its bound) per sample in nats, `[B]`.
    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1>;

    /// Returns the noise path `alpha_t`, `sigma_t` of the continuous family.
    fn path(&self) -> Option<&dyn NoisePath> {
        None
    }

    /// Returns the token head of the masked family: how a latent is cut into tokens, and the process over one
    /// token.
    fn head(&self) -> Option<Head<'_>> {
        None
    }
}

/// Computes the mean squared error or mean cross-entropy per sample, `[B]`.
///
/// A prediction may have more channels than the target (a learned variance). The extra channels are not
/// scored.
///
/// # Panics
/// If prediction and target disagree in batch or positions, which is a bug in the backbone.
pub fn score(prediction: Tensor<3>, example: &Example) -> Tensor<1> {
    match &example.target {
        Target::Values(target) => squared_error(prediction, target.clone(), example),
        Target::Ids(ids) => mean_scored(-log_probabilities(prediction, ids), example),
    }
}

/// Computes the mean squared difference of two predictions per sample, `[B]`, over the scored positions and
/// the latent's channels (or the vocabulary).
pub fn squared_error(prediction: Tensor<3>, other: Tensor<3>, example: &Example) -> Tensor<1> {
    let [batch, positions, mut channels] = prediction.dims();
    if let Target::Values(target) = &example.target {
        channels = target.dims()[2];
    }
    let error = prediction.narrow(2, 0, channels) - other.narrow(2, 0, channels);
    mean_scored((error.clone() * error).mean_dim(2).reshape([batch, positions]), example)
}

/// Computes the mean Kullback-Leibler divergence `KL(softmax(teacher) | softmax(student))` per sample in
/// nats, `[B]`, over the scored positions.
pub fn divergence(student: Tensor<3>, teacher: Tensor<3>, example: &Example) -> Tensor<1> {
    let [batch, positions, _] = student.dims();
    let (student, teacher) = (activation::log_softmax(student, 2), activation::log_softmax(teacher, 2));
    let each = (teacher.clone().exp() * (teacher - student)).sum_dim(2);
    mean_scored(each.reshape([batch, positions]), example)
}

/// Averages `each`, `[B, position]`, over the scored positions. Returns `[B]`.
pub(crate) fn mean_scored(each: Tensor<2>, example: &Example) -> Tensor<1> {
    let [batch, _] = each.dims();
    match &example.scored {
        None => each.mean_dim(1).reshape([batch]),
        Some(scored) => {
            let count = scored.clone().sum_dim(1);
            ((each * scored.clone()).sum_dim(1) / count).reshape([batch])
        }
    }
}

/// Computes the log-probability of each token, `[B, position]`, from logits `[B, position, vocabulary]`.
pub fn log_probabilities(logits: Tensor<3>, ids: &Tensor<2, Int>) -> Tensor<2> {
    let [batch, positions, _] = logits.dims();
    let fused =
        kernels::indices(ids).and_then(|ids| kernels::log_probability(LogProbability { ids }, [handle(&logits)]));
    let each = fused.map(Tensor::from_dispatch).unwrap_or_else(|| composed::log_probabilities(logits, ids.clone()));
    each.reshape([batch, positions])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::tensor;
    use burn::tensor::DType;
    use burn::tensor::Device;

    #[test]
    fn inputs_are_selected_sample_by_sample() {
        let x = tensor::<3>(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [3, 2, 1], DType::F64, &Device::flex());
        let input = Input::Masked {
            x_t: x.clone(),
            x,
            hidden: vec![true, false, false, true, true, true],
            places: vec![0, 1, 2, 3, 4, 5],
            t: vec![0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
        };
        let Input::Masked { x, hidden, places, t, .. } = input.select(&[2, 0]) else { panic!("not a masked input") };
        assert_eq!(x.into_data().try_into_vec::<f64>().unwrap(), [4.0, 5.0, 0.0, 1.0]);
        assert_eq!((hidden, places), (vec![true, true, true, false], vec![4, 5, 0, 1]));
        assert_eq!(t, [0.4, 0.5, 0.0, 0.1]);
    }
}

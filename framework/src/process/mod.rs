//! What one training example is, and how a prediction is scored against it.

use crate::kernels::{self, LogProbability, handle};
use crate::masked::Head;
use crate::nn::{self, composed};
use crate::path::{Path, Prediction};
use crate::random::Random;
use burn::tensor::{Device, Int, Tensor, activation};
use std::fmt::Debug;

/// The families of generative process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `x_t = alpha_t x + sigma_t eps`, all positions at one time: diffusion and flows.
    Continuous,
    /// Tokens in raster order, each from those before it.
    NextToken,
    /// Token maps of growing resolution, each from those before it.
    NextLevel,
    /// Continuous tokens in random order, each drawn by a small diffusion head.
    Masked,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Continuous, Self::NextToken, Self::NextLevel, Self::Masked];

    /// Its name in tables and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Continuous => "continuous",
            Self::NextToken => "next token",
            Self::NextLevel => "next level",
            Self::Masked => "masked",
        }
    }

    /// Whether its predictions are logits.
    pub fn has_logits(self) -> bool {
        matches!(self, Self::NextToken | Self::NextLevel)
    }
}

/// Shape of a clean latent: positions on a grid (height, width), and channels or vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Height and width of the position grid; of the finest one, where there are levels.
    pub grid: [usize; 2],
    /// Channels of a continuous latent, or of the features that feed the levels of a token pyramid; 1 for other tokens.
    pub channels: usize,
    /// Vocabulary of tokens; `None` for a continuous latent.
    pub vocabulary: Option<usize>,
    /// Sides of the square token maps of a pyramid, coarse to fine; empty without levels.
    pub levels: Vec<usize>,
}

impl LatentShape {
    /// A continuous latent.
    pub fn values(grid: [usize; 2], channels: usize) -> Self {
        Self { grid, channels, vocabulary: None, levels: Vec::new() }
    }

    /// Tokens in raster order.
    pub fn tokens(grid: [usize; 2], vocabulary: usize) -> Self {
        Self { grid, channels: 1, vocabulary: Some(vocabulary), levels: Vec::new() }
    }

    /// Token maps of the given sides, and the channels of the features that feed them.
    pub fn pyramid(sides: &[usize], vocabulary: usize, channels: usize) -> Self {
        let side = sides.last().copied().unwrap_or_default();
        Self { grid: [side; 2], channels, vocabulary: Some(vocabulary), levels: sides.to_vec() }
    }

    /// Number of positions, of all levels together.
    pub fn positions(&self) -> usize {
        if self.levels.is_empty() {
            return self.grid[0] * self.grid[1];
        }
        self.levels.iter().map(|side| side * side).sum()
    }

    /// Numbers of one prediction that guidance acts on: the vocabulary, or the channels.
    pub fn width(&self) -> usize {
        self.vocabulary.unwrap_or(self.channels)
    }
}

/// A clean latent.
#[derive(Clone, Debug)]
pub enum Latent {
    /// Continuous `x`, `[B, position, channel]`, positions in raster order.
    Values(Tensor<3>),
    /// Tokens, `[B, position]`, in decoding order (raster order, or level by level).
    Ids(Tensor<2, Int>),
    /// Tokens level by level, and what feeds each level's predictions.
    Levels {
        /// Token ids, `[B, position]`.
        ids: Tensor<2, Int>,
        /// Features, `[B, position, channel]`; those of the first level are not read.
        features: Tensor<3>,
    },
}

impl Latent {
    /// Number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Values(x) => x.dims()[0],
            Self::Ids(ids) | Self::Levels { ids, .. } => ids.dims()[0],
        }
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The token ids, `[B, position]`.
    ///
    /// # Panics
    /// If the latent is continuous; the check phase refuses such pairs.
    pub fn ids(self) -> Tensor<2, Int> {
        match self {
            Self::Ids(ids) | Self::Levels { ids, .. } => ids,
            Self::Values(_) => panic!("a continuous latent was taken for tokens"),
        }
    }
}

/// What a backbone reads.
#[derive(Clone, Debug)]
pub enum Input {
    /// A noisy latent and its time. The time is kept on the host in f64: schedules and sinusoids of
    /// large arguments are computed from it without rounding.
    Noisy {
        /// `x_t`, `[B, position, channel]`.
        x_t: Tensor<3>,
        /// Time in [0, 1], 0 = data, 1 = noise; `[B]`.
        t: Vec<f64>,
    },
    /// Tokens from the first on, `[B, position]`; each is predicted from those before it, so the last is not read.
    Tokens {
        /// Token ids.
        ids: Tensor<2, Int>,
    },
    /// What feeds the levels from the first on; those of the first level are not read.
    Levels {
        /// Features, level after level, `[B, position, channel]`.
        features: Tensor<3>,
    },
    /// Continuous tokens, which of them are hidden, and the noisy tokens of the head.
    Masked {
        /// Continuous tokens `[B, token, channel]`, as [`crate::masked::Patches`] cuts them; hidden ones are not read.
        x: Tensor<3>,
        /// Which are hidden, row-major `[B, token]`: as many of each sample.
        hidden: Vec<bool>,
        /// Places of the tokens that the head predicts, row-major `[B, n]`; a token may appear more than once.
        places: Vec<usize>,
        /// The head's noisy tokens, `[B, n, channel]`.
        x_t: Tensor<3>,
        /// The head's time of each, row-major `[B, n]`.
        t: Vec<f64>,
    },
}

impl Input {
    /// Number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Noisy { x_t, .. } => x_t.dims()[0],
            Self::Tokens { ids } => ids.dims()[0],
            Self::Levels { features } => features.dims()[0],
            Self::Masked { x, .. } => x.dims()[0],
        }
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions of a sample: of a masked process, tokens.
    pub fn positions(&self) -> usize {
        match self {
            Self::Noisy { x_t: x, .. } | Self::Levels { features: x } | Self::Masked { x, .. } => x.dims()[1],
            Self::Tokens { ids } => ids.dims()[1],
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Self::Noisy { x_t: x, .. } | Self::Levels { features: x } | Self::Masked { x, .. } => x.device(),
            Self::Tokens { ids } => ids.device(),
        }
    }

    /// The samples `rows`, in that order.
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

/// What a prediction is scored against.
#[derive(Clone, Debug)]
pub enum Target {
    /// Regression on `[B, position, channel]`.
    Values(Tensor<3>),
    /// Classification on `[B, position]`.
    Ids(Tensor<2, Int>),
}

/// How far decoding is, in [0, 1], where a prediction is made.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// One number a sample: 1 - t for diffusion. `[B]`.
    PerSample(Vec<f64>),
    /// One number a position, shared by the batch: the token families. `[position]`.
    PerPosition(Vec<f64>),
}

/// One draw of training examples, one a sample of the batch.
#[derive(Clone, Debug)]
pub struct Example {
    /// What the backbone reads.
    pub input: Input,
    /// What its prediction is scored against.
    pub target: Target,
    /// How far decoding is where each sample is predicted.
    pub progress: Progress,
    /// Which positions are scored, `[B, position]` of zeros and ones; `None` = all of them.
    pub scored: Option<Tensor<2>>,
}

/// The likelihood that a process can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likelihood {
    /// The exact log-likelihood of the tokens.
    Exact,
    /// A lower bound, up to a constant that does not depend on the model.
    Bound,
}

/// Turns a clean latent into a training example and scores predictions. It belongs to the backbone.
pub trait Process: Debug + Send + Sync {
    /// Which samplers and input variants apply.
    fn family(&self) -> Family;

    /// What the backbone's numbers are.
    fn prediction(&self) -> Prediction;

    /// One draw of examples for `x`. All randomness comes from `random` at `step`.
    fn corrupt(&self, x: &Latent, random: &Random, step: u64) -> Example;

    /// Loss of each sample, `[B]`, weighted as in the process's paper.
    fn loss(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        score(prediction, example)
    }

    /// What [`Process::log_likelihood`] returns.
    fn likelihood(&self) -> Likelihood;

    /// Log-likelihood (or its bound) of each sample in nats, `[B]`.
    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1>;

    /// `alpha_t` and `sigma_t`, for the continuous family.
    fn path(&self) -> Option<&dyn Path> {
        None
    }

    /// How a latent is cut into tokens, and the process that draws one of them, for the masked family.
    fn head(&self) -> Option<Head<'_>> {
        None
    }
}

/// Mean squared error or mean cross-entropy of each sample, `[B]`.
///
/// A prediction may carry more channels than the target (a learned variance): they are not scored.
///
/// # Panics
/// If prediction and target disagree in batch or positions: a bug in the backbone.
pub fn score(prediction: Tensor<3>, example: &Example) -> Tensor<1> {
    match &example.target {
        Target::Values(target) => squared_error(prediction, target.clone(), example),
        Target::Ids(ids) => mean_scored(-log_probabilities(prediction, ids), example),
    }
}

/// Mean squared difference of two predictions of each sample, `[B]`, over the scored positions and the latent's
/// channels (or the vocabulary).
pub fn squared_error(prediction: Tensor<3>, other: Tensor<3>, example: &Example) -> Tensor<1> {
    let [batch, positions, mut channels] = prediction.dims();
    if let Target::Values(target) = &example.target {
        channels = target.dims()[2];
    }
    let error = prediction.narrow(2, 0, channels) - other.narrow(2, 0, channels);
    mean_scored((error.clone() * error).mean_dim(2).reshape([batch, positions]), example)
}

/// Mean Kullback-Leibler divergence `KL(softmax(teacher) | softmax(student))` of each sample, `[B]`, nats, over the
/// scored positions.
pub fn divergence(student: Tensor<3>, teacher: Tensor<3>, example: &Example) -> Tensor<1> {
    let [batch, positions, _] = student.dims();
    let (student, teacher) = (activation::log_softmax(student, 2), activation::log_softmax(teacher, 2));
    let each = (teacher.clone().exp() * (teacher - student)).sum_dim(2);
    mean_scored(each.reshape([batch, positions]), example)
}

/// Mean over the scored positions, `[B]`, of one number a position, `[B, position]`.
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

/// Log-probability of each token, `[B, position]`, from logits `[B, position, vocabulary]`.
pub fn log_probabilities(logits: Tensor<3>, ids: &Tensor<2, Int>) -> Tensor<2> {
    let [batch, positions, _] = logits.dims();
    let fused =
        kernels::indices(ids).and_then(|ids| kernels::log_probability(LogProbability { ids }, [handle(&logits)]));
    let each = fused.map(Tensor::from_dispatch).unwrap_or_else(|| composed::log_probabilities(logits, ids.clone()));
    each.reshape([batch, positions])
}

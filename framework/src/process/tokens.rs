//! Token processes: next token in raster order and next level of a pyramid. They use teacher forcing and
//! cross-entropy, and their likelihood is exact.
//!
//!   log p(x | c) = sum_i log softmax(f(x_<i, c))_{x_i}
//!
//! Source: arXiv:2406.06525 eq. 1 (raster order), arXiv:2404.02905 eq. 6 (levels: `x_<i` are the coarser levels).

use crate::process::path::Prediction;
use crate::process::{Example, Family, Input, Latent, Likelihood, Process, Progress, Target, log_probabilities};
use crate::random::Random;
use burn::tensor::Tensor;

/// A process that predicts each token from the previous ones.
#[derive(Clone, Debug)]
pub struct TokenProcess {
    family: Family,
    /// Decoding progress at each position.
    progress: Vec<f64>,
}

impl TokenProcess {
    /// Builds the process of tokens in raster order. The progress at position i of L is i / L.
    pub fn next_token(positions: usize) -> Self {
        let progress = (0..positions).map(|i| i as f64 / positions as f64).collect();
        Self { family: Family::NextToken, progress }
    }

    /// Builds the process of square token maps with the given side lengths. The progress at level k of K is
    /// `k / (K - 1)`.
    pub fn next_level(sides: &[usize]) -> Self {
        Self { family: Family::NextLevel, progress: level_progress(sides) }
    }
}

/// Computes the progress at every position of a pyramid: `k / (K - 1)` at level k of K.
pub fn level_progress(sides: &[usize]) -> Vec<f64> {
    let last = (sides.len().max(2) - 1) as f64;
    sides.iter().enumerate().flat_map(|(k, side)| vec![k as f64 / last; side * side]).collect()
}

impl Process for TokenProcess {
    fn family(&self) -> Family {
        self.family
    }

    fn prediction(&self) -> Prediction {
        Prediction::Logits
    }

    fn corrupt(&self, x: &Latent, _: &Random, _: u64) -> Example {
        let (ids, input) = match (self.family, x.clone()) {
            (Family::NextToken, Latent::Ids(ids)) => (ids.clone(), Input::Tokens { ids }),
            (Family::NextLevel, Latent::Levels { ids, features }) => (ids, Input::Levels { features }),
            (family, _) => panic!("a {} process cannot read this latent; the check phase refuses this", family.name()),
        };
        let progress = Progress::PerPosition(self.progress.clone());
        Example { input, target: Target::Ids(ids), progress, scored: None }
    }

    fn likelihood(&self) -> Likelihood {
        Likelihood::Exact
    }

    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let Target::Ids(ids) = &example.target else { panic!("a token process received a continuous target") };
        let [batch, _] = ids.dims();
        log_probabilities(prediction, ids).sum_dim(1).reshape([batch])
    }
}

//! Samples one token after the other, in raster order.
//!
//!   x_i ~ softmax(guided f(x_<i, c) / temperature), restricted by top_k and top_p
//!
//! Source: arXiv:2406.06525 sec. 2.3.

use crate::categorical::{self, Categorical};
use framework::prelude::*;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{NoiseSource, Observer, Sampler, SamplerStep, Sampling, TokenSampler};

/// Sampling token by token, in raster order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(example = framework::serde_json::json!({ "temperature": 0.9, "top_k": 4, "top_p": 0.9 }))]
#[serde(default, deny_unknown_fields)]
pub struct Autoregressive {
    /// Divisor of the logits, 0 to 100; 0 = always the most likely token.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub temperature: f64,
    /// Top-k: samples only from this many most likely tokens; 0 = all.
    #[schemars(range(max = 10_000_000))]
    pub top_k: usize,
    /// Top-p: samples only from the most likely tokens that together hold this share, above 0; 1 = all.
    #[schemars(range(min = 1e-6, max = 1.0))]
    pub top_p: f64,
    /// Caches the keys and values of earlier tokens instead of recomputing them. The samples are the same.
    pub cache: bool,
}

impl Default for Autoregressive {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, cache: true }
    }
}

framework::register!(sampler "autoregressive" => Autoregressive, "arXiv:2406.06525");

impl Sampler for Autoregressive {
    fn check(&self) -> Vec<Problem> {
        categorical::check(self.temperature, &[self.top_k], &[self.top_p])
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::NextToken(self)
    }

    fn evaluations(&self, shape: &LatentShape) -> usize {
        shape.positions()
    }
}

impl TokenSampler for Autoregressive {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        length: usize,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<2, Int> {
        let (batch, device) = (noise.count(), noise.device());
        let how = Categorical { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p };
        model.keep(self.cache);
        // The position of the next token holds 0, which the network never reads.
        let next = || Tensor::<2, Int>::zeros([batch, 1], &device);
        let mut ids = next();
        for i in 0..length {
            let progress = i as f64 / length as f64;
            let logits = model.evaluate(&Input::Tokens { ids: ids.clone() }, progress).prediction;
            let [_, predicted, vocabulary] = logits.dims();
            let logits = logits.slice([0..batch, predicted - 1..predicted, 0..vocabulary]);
            let drawn = categorical::draw(logits, &noise.uniform(i, 1), how);
            let drawn = Tensor::<1, Int>::from_data(drawn.as_slice(), &device).reshape([batch, 1]);
            ids = if i == 0 { drawn } else { Tensor::cat(vec![ids.narrow(1, 0, i), drawn], 1) };
            if i + 1 < length {
                ids = Tensor::cat(vec![ids, next()], 1);
            }
            observer.step(&SamplerStep { step: i + 1, steps: length, t: 1.0 - progress, state: None });
        }
        ids
    }
}

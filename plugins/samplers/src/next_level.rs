//! Samples one level of a pyramid after the other, all tokens of a level at once.
//!
//!   x_k ~ softmax(guided f(features(x_<k), c) / temperature), independently for each token
//!
//! The paper's `cfg` grows with the level; here that is the schedule of a guidance rule.
//! Source: arXiv:2404.02905 sec. 3.2.

use crate::categorical::{self, Categorical};
use framework::prelude::*;
use framework::sampling::denoiser::Denoiser;
use framework::sampling::sampler::{LevelSampler, Levels, NoiseSource, Observer, Sampler, SamplerStep, Sampling};

/// Sampling of tokens level by level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(example = framework::serde_json::json!({ "temperature": 0.9, "top_k": [4], "top_p": [0.9] }))]
#[serde(default, deny_unknown_fields)]
pub struct NextLevel {
    /// Divisor of the logits, 0 to 100; 0 = always the most likely token.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub temperature: f64,
    /// Top-k: samples only from this many most likely tokens; 0 = all. One value for all levels, or one per level.
    #[schemars(inner(range(max = 10_000_000)))]
    pub top_k: Vec<usize>,
    /// Top-p: samples only from the most likely tokens that together hold this share, above 0; 1 = all. One value for
    /// all levels, or one per level.
    #[schemars(inner(range(min = 1e-6, max = 1.0)))]
    pub top_p: Vec<f64>,
    /// Caches the keys and values of earlier levels instead of recomputing them. The samples are the same.
    pub cache: bool,
}

impl Default for NextLevel {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: vec![0], top_p: vec![1.0], cache: true }
    }
}

framework::register!(sampler "next_level" => NextLevel, "arXiv:2404.02905");

impl NextLevel {
    fn at(&self, level: usize) -> Categorical {
        fn of<T: Copy>(all: &[T], level: usize) -> T {
            all[level.min(all.len() - 1)]
        }
        Categorical { temperature: self.temperature, top_k: of(&self.top_k, level), top_p: of(&self.top_p, level) }
    }
}

impl Sampler for NextLevel {
    fn check(&self) -> Vec<Problem> {
        let mut problems = categorical::check(self.temperature, &self.top_k, &self.top_p);
        for (name, count) in [("top_k", self.top_k.len()), ("top_p", self.top_p.len())] {
            if count == 0 {
                let what = format!("`{name}` is empty");
                problems.push(Problem::new(format!("/{name}"), what).accepts("one value, or one per level"));
            }
        }
        problems
    }

    fn check_shape(&self, shape: &LatentShape) -> Vec<Problem> {
        let levels = shape.levels.len();
        let counts = [("top_k", self.top_k.len()), ("top_p", self.top_p.len())];
        let wrong = counts.into_iter().filter(|(_, count)| ![1, levels].contains(count));
        wrong
            .map(|(name, count)| {
                let what = format!("`{name}` has {count} values, but the latent has {levels} levels");
                Problem::new(format!("/{name}"), what).accepts(format!("1 value, or {levels}"))
            })
            .collect()
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::NextLevel(self)
    }

    fn evaluations(&self, shape: &LatentShape) -> usize {
        shape.levels.len()
    }
}

impl LevelSampler for NextLevel {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        levels: Levels<'_>,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<2, Int> {
        let (batch, device) = (noise.count(), noise.device());
        let Levels { sides, codec } = levels;
        let last = (sides.len().max(2) - 1) as f64;
        model.keep(self.cache);
        let mut ids: Vec<Tensor<2, Int>> = Vec::with_capacity(sides.len());
        for (k, side) in sides.iter().enumerate() {
            let tokens = side * side;
            let features = codec.features(&ids, batch, &device);
            let progress = k as f64 / last;
            let logits = model.evaluate(&Input::Levels { features }, progress).prediction;
            let [_, predicted, vocabulary] = logits.dims();
            let logits = logits.slice([0..batch, predicted - tokens..predicted, 0..vocabulary]);
            let drawn = categorical::draw(logits, &noise.uniform(k, tokens), self.at(k));
            ids.push(Tensor::<1, Int>::from_data(drawn.as_slice(), &device).reshape([batch, tokens]));
            observer.step(&SamplerStep { step: k + 1, steps: sides.len(), t: 1.0 - progress, state: None });
        }
        Tensor::cat(ids, 1)
    }
}

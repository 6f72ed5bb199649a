//! The denoiser, which samplers evaluate: a network, a guidance rule and a condition.

use crate::data::tokenizer::LevelCodec;
use crate::network::backbone::{Backbone, Cache, Control};
use crate::network::condition::Condition;
use crate::network::microbatch;
use crate::process::{Input, LatentShape, Process};
use crate::sampling::guidance::{Asked, Branch, Guidance, Guided, Model, Moment, Setting, Trajectory};
use burn::tensor::{Int, Tensor};
use std::collections::BTreeMap;

/// The guidance numbers on which an objective trained a network.
#[derive(Clone, Copy)]
pub struct GuidanceNumbers<'a> {
    /// Converts a scale to the guidance number of a conditional branch. Returns `None` if the network reads no number.
    pub of_scale: &'a dyn Fn(f64) -> Option<f64>,
    /// Guidance number at which the null prediction was trained.
    pub null: Option<f64>,
}

impl GuidanceNumbers<'_> {
    /// The value for a network that reads no guidance number.
    pub const NONE: GuidanceNumbers<'static> = GuidanceNumbers { of_scale: &|_| None, null: None };

    /// Returns the guidance number of a branch.
    fn of(&self, branch: &Branch) -> Option<f64> {
        match branch.condition {
            Asked::Null => self.null,
            _ => (self.of_scale)(branch.scale.unwrap_or(1.0)),
        }
    }
}

/// The weak network of two-model guidance rules.
#[derive(Clone, Copy)]
pub struct Weak<'a> {
    /// The network.
    pub network: &'a dyn Backbone,
    /// Guidance numbers of this network.
    pub numbers: GuidanceNumbers<'a>,
}

/// A network with a guidance rule and a condition, for a sampler to evaluate. Counts network evaluations.
pub struct Denoiser<'a> {
    main: &'a dyn Backbone,
    weak: Option<Weak<'a>>,
    process: &'a dyn Process,
    rule: &'a dyn Guidance,
    trajectory: Box<dyn Trajectory>,
    numbers: GuidanceNumbers<'a>,
    condition: &'a Condition,
    shape: LatentShape,
    codec: Option<&'a dyn LevelCodec>,
    caches: Option<BTreeMap<Vec<&'static str>, Cache>>,
    progress: Option<f64>,
    evaluations: usize,
    nfe: usize,
}

impl<'a> Denoiser<'a> {
    /// Creates a denoiser for latents of shape `shape`.
    pub fn new(
        main: &'a dyn Backbone,
        process: &'a dyn Process,
        rule: &'a dyn Guidance,
        numbers: GuidanceNumbers<'a>,
        condition: &'a Condition,
        shape: &LatentShape,
    ) -> Self {
        let mut trajectory = rule.start();
        trajectory.begin(&Setting { shape, path: process.path(), samples: condition.len() });
        Self {
            main,
            weak: None,
            process,
            rule,
            trajectory,
            numbers,
            condition,
            shape: shape.clone(),
            codec: None,
            caches: None,
            progress: None,
            evaluations: 0,
            nfe: 0,
        }
    }

    /// Sets the codec that turns the tokens of a pyramid's levels into the features of the next level.
    pub fn with_codec(mut self, codec: Option<&'a dyn LevelCodec>) -> Self {
        self.codec = codec;
        self
    }

    /// Creates a denoiser with the same rule and condition for the head of a masked process.
    ///
    /// Guidance rules see `progress`, the progress of the decoding, instead of the head's own time. The network keeps
    /// its features between the head's steps. All steps of the head together count as one network evaluation per
    /// branch.
    pub fn head<'b>(
        &self,
        head: &'b dyn Backbone,
        process: &'b dyn Process,
        shape: &LatentShape,
        progress: f64,
    ) -> Denoiser<'b>
    where
        'a: 'b,
    {
        let head = Denoiser::new(head, process, self.rule, self.numbers, self.condition, shape);
        Denoiser { progress: Some(progress), caches: Some(BTreeMap::new()), ..head }
    }

    /// Switches caching on or off. With caching, the network keeps the positions it has read between evaluations.
    /// Without, it reads all positions every time.
    pub fn keep(&mut self, keep: bool) {
        self.caches = keep.then(BTreeMap::new);
    }

    /// Returns the main network.
    pub fn network(&self) -> &'a dyn Backbone {
        self.main
    }

    /// Returns the codec that turns the tokens of a pyramid's levels into the features of the next level.
    ///
    /// # Panics
    /// If the tokenizer has no levels; the check phase rejects such pairs.
    pub fn codec(&self) -> &'a dyn LevelCodec {
        self.codec.expect("the check phase requires a tokenizer with levels")
    }

    /// Returns the shape of the latent.
    pub fn shape(&self) -> &LatentShape {
        &self.shape
    }

    /// Returns the weak network of two-model rules, if there is one.
    pub fn weak(&self) -> Option<Weak<'a>> {
        self.weak
    }

    /// Adds the weak network of two-model rules.
    pub fn with_weak(mut self, weak: Option<Weak<'a>>) -> Self {
        self.weak = weak;
        self
    }

    /// Returns the process of the network.
    pub fn process(&self) -> &'a dyn Process {
        self.process
    }

    /// Returns the number of guided channels per prediction: the latent's channels, or the vocabulary size.
    pub fn channels(&self) -> usize {
        self.shape.width()
    }

    /// Adds `nfe` network evaluations, for example from a [`Denoiser::head`].
    pub fn count(&mut self, nfe: usize) {
        self.nfe += nfe;
    }

    /// Returns the number of network evaluations (NFE) per sample so far. It does not depend on the batch size.
    pub fn nfe(&self) -> usize {
        self.nfe
    }

    /// Computes the guided prediction at `input`, in the network's own prediction space. Branches of the main network
    /// run as one batch if possible. With caching ([`Denoiser::keep`]), predicts only the positions not read before.
    pub fn evaluate(&mut self, input: &Input, progress: f64) -> Guided {
        let t = match input {
            Input::Noisy { t, .. } => t[0],
            _ => 1.0 - progress,
        };
        let progress = self.progress.unwrap_or(progress);
        let channels = self.channels();
        let moment = Moment { progress, t, evaluation: self.evaluations, channels };
        self.evaluations += 1;
        let branches = self.trajectory.branches(&moment);
        assert!(!branches.is_empty(), "a guidance rule must ask for at least one branch");
        let predictions = self.predict(input, &branches);
        let Some(space) = self.rule.needs().space.filter(|space| *space != self.process.prediction()) else {
            return self.trajectory.combine(&moment, predictions);
        };
        // The rule works in another prediction space: convert, combine, and convert back.
        let (Input::Noisy { x_t, t }, Some(path)) = (input, self.process.path()) else {
            panic!("only continuous processes can convert predictions to another space")
        };
        let (own, at) = (self.process.prediction(), path.at(t[0]));
        let convert = |from, to, value: Tensor<3>| {
            let total = value.dims()[2];
            let latent = crate::process::path::convert(from, to, value.clone().narrow(2, 0, channels), x_t.clone(), at);
            if total == channels {
                latent
            } else {
                Tensor::cat(vec![latent, value.narrow(2, channels, total - channels)], 2)
            }
        };
        let there = predictions.into_iter().map(|p| convert(own, space, p)).collect();
        let guided = self.trajectory.combine(&moment, there);
        Guided {
            prediction: convert(space, own, guided.prediction),
            renoise: guided.renoise.map(|renoise| convert(space, own, renoise)),
        }
    }

    /// Counts the evaluation of a set of branches and returns the set's cache. Each set has its own cache, so a new set
    /// starts from the first position.
    fn cache(&mut self, branches: &[Branch]) -> Option<Cache> {
        let key: Vec<&str> = branches.iter().map(|branch| branch.name).collect();
        let known = self.caches.as_ref().is_some_and(|caches| caches.contains_key(&key));
        let further_step_of_a_head = known && self.progress.is_some();
        self.nfe += if further_step_of_a_head { 0 } else { branches.len() };
        Some(self.caches.as_mut()?.entry(key).or_default().clone())
    }

    fn predict(&mut self, input: &Input, branches: &[Branch]) -> Vec<Tensor<3>> {
        let samples = self.condition.len();
        let plain = |branch: &Branch| branch.model == Model::Main && !branch.hooks.is_some();
        // Batch all branches into one forward pass if they use the main network without hooks, and either all of them
        // or none have a guidance number.
        let number = |branch: &Branch| match branch.model {
            Model::Main => self.numbers.of(branch),
            Model::Weak => self.weak_network().numbers.of(branch),
        };
        let numbers: Vec<Option<f64>> = branches.iter().map(number).collect();
        let batchable = branches.iter().all(plain) && numbers.iter().all(|n| n.is_some() == numbers[0].is_some());
        if batchable && branches.len() > 1 {
            let mut condition = self.asked(&branches[0]);
            let mut guidance = Vec::new();
            for (i, branch) in branches.iter().enumerate() {
                if i > 0 {
                    condition = condition.cat(&self.asked(branch));
                }
                guidance.extend(numbers[i].map(|n| vec![n; samples]).into_iter().flatten());
            }
            let guidance = (!guidance.is_empty()).then_some(guidance);
            let control = Control { guidance, cache: self.cache(branches), ..Control::default() };
            let all = microbatch::predict(self.main, &repeat(input, branches.len()), &condition, &control);
            return all.split(samples, 0);
        }
        branches
            .iter()
            .zip(numbers)
            .map(|(branch, number)| {
                let model = match branch.model {
                    Model::Main => self.main,
                    Model::Weak => self.weak_network().network,
                };
                let control = Control {
                    guidance: number.map(|n| vec![n; samples]),
                    hooks: branch.hooks.clone(),
                    cache: self.cache(std::slice::from_ref(branch)),
                };
                microbatch::predict(model, input, &self.asked(branch), &control)
            })
            .collect()
    }

    fn weak_network(&self) -> Weak<'a> {
        self.weak.expect("the check phase requires `guidance.weak` if the rule uses a weak network")
    }

    fn asked(&self, branch: &Branch) -> Condition {
        match &branch.condition {
            Asked::Given => self.condition.clone(),
            Asked::Null => self.condition.null(),
            Asked::Other(condition) => condition.clone(),
        }
    }
}

/// Repeats the batch `times` times.
fn repeat(input: &Input, times: usize) -> Input {
    fn again<const D: usize>(x: &Tensor<D>, times: usize) -> Tensor<D> {
        Tensor::cat(vec![x.clone(); times], 0)
    }
    match input {
        Input::Noisy { x_t, t } => Input::Noisy { x_t: again(x_t, times), t: t.repeat(times) },
        Input::Tokens { ids } => Input::Tokens { ids: Tensor::<2, Int>::cat(vec![ids.clone(); times], 0) },
        Input::Levels { features } => Input::Levels { features: again(features, times) },
        Input::Masked { x, hidden, places, x_t, t } => Input::Masked {
            x: again(x, times),
            hidden: hidden.repeat(times),
            places: places.repeat(times),
            x_t: again(x_t, times),
            t: t.repeat(times),
        },
    }
}

//! Guidance rules: which branches of which model are evaluated at a step, and how they are combined.
//!
//! All guidance arithmetic lives behind [`Guidance`]; [`Denoiser`] joins a rule and a network into what
//! samplers call.

use crate::backbone::{Backbone, Cache, Control, Perturbation};
use crate::condition::Condition;
use crate::error::Problems;
use crate::microbatch;
use crate::path::Prediction;
use crate::process::{Input, LatentShape, Process};
use crate::tokenizer::LevelCodec;
use burn::tensor::{Int, Tensor};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Which network a branch asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The network being sampled.
    Main,
    /// The weaker network of two-model rules (autoguidance).
    Weak,
}

/// Which condition a branch is given.
#[derive(Clone, Debug)]
pub enum Asked {
    /// The condition asked for.
    Given,
    /// The null condition.
    Null,
    /// Another condition, one a sample.
    Other(Condition),
}

/// One network evaluation.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Which network.
    pub model: Model,
    /// Which condition.
    pub condition: Asked,
    /// The scale asked of the network's own guidance input; `None` = 1 where the network has one.
    pub scale: Option<f64>,
    /// Changes to the forward pass.
    pub perturb: Vec<Perturbation>,
}

impl Branch {
    /// The main network with the condition asked for.
    pub fn given() -> Self {
        Self { model: Model::Main, condition: Asked::Given, scale: None, perturb: Vec::new() }
    }

    /// The main network with the null condition.
    pub fn null() -> Self {
        Self { condition: Asked::Null, ..Self::given() }
    }
}

/// Where a trajectory is when a rule is asked.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// How far decoding is, in [0, 1].
    pub progress: f64,
    /// Time, for continuous processes; 1 - progress otherwise.
    pub t: f64,
    /// Index of the evaluation, from 0.
    pub evaluation: usize,
    /// Channels that belong to the latent; those beyond (a learned variance) are never guided.
    pub channels: usize,
}

/// What a rule hands to the solver.
#[derive(Clone, Debug)]
pub struct Guided {
    /// The prediction to step with, `[B, position, channel]`.
    pub prediction: Tensor<3>,
    /// The prediction that renoises, where it differs (CFG++).
    pub renoise: Option<Tensor<3>>,
}

impl From<Tensor<3>> for Guided {
    fn from(prediction: Tensor<3>) -> Self {
        Self { prediction, renoise: None }
    }
}

/// A guidance rule's document entry.
pub trait Guidance: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Whether any branch asks for the null condition.
    fn needs_null(&self) -> bool;

    /// The scale asked of the network's own guidance input, if this rule asks for one.
    fn input_scale(&self) -> Option<f64> {
        None
    }

    /// The prediction space that [`Trajectory::combine`] works in; `None` = the network's own.
    fn space(&self) -> Option<Prediction> {
        None
    }

    /// Most branches evaluated at one step.
    fn max_branches(&self) -> usize;

    /// State for one batch of trajectories, fresh.
    fn start(&self) -> Box<dyn Trajectory>;
}

/// A rule at work on one batch of trajectories.
pub trait Trajectory: Send {
    /// The branches to evaluate now: at least one.
    fn branches(&mut self, moment: &Moment) -> Vec<Branch>;

    /// Combines their predictions, in the order of [`Trajectory::branches`].
    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided;
}

/// `uncond + scale (cond - uncond)` on the first `channels`; the others are `cond`'s.
///
/// Source: arXiv:2207.12598 eq. 6, with scale = 1 + w.
pub fn mix(cond: Tensor<3>, uncond: Tensor<3>, scale: f64, channels: usize) -> Tensor<3> {
    let total = cond.dims()[2];
    if channels >= total {
        return uncond.clone() + (cond - uncond) * scale;
    }
    let (guided, null) = (cond.clone().narrow(2, 0, channels), uncond.narrow(2, 0, channels));
    let guided = null.clone() + (guided - null) * scale;
    Tensor::cat(vec![guided, cond.narrow(2, channels, total - channels)], 2)
}

/// Converts the scale a rule asks for into the guidance number the objective trained.
pub type GuidanceOfScale<'a> = &'a dyn Fn(f64) -> Option<f64>;

/// A network, a rule and a condition: what a sampler evaluates. It counts network evaluations.
pub struct Denoiser<'a> {
    main: &'a dyn Backbone,
    weak: Option<&'a dyn Backbone>,
    process: &'a dyn Process,
    rule: &'a dyn Guidance,
    trajectory: Box<dyn Trajectory>,
    guidance_of_scale: GuidanceOfScale<'a>,
    condition: &'a Condition,
    shape: LatentShape,
    codec: Option<&'a dyn LevelCodec>,
    caches: Option<BTreeMap<String, Cache>>,
    progress: Option<f64>,
    evaluations: usize,
    nfe: usize,
}

impl<'a> Denoiser<'a> {
    /// Joins them. `shape` is the latent's.
    pub fn new(
        main: &'a dyn Backbone,
        process: &'a dyn Process,
        rule: &'a dyn Guidance,
        guidance_of_scale: GuidanceOfScale<'a>,
        condition: &'a Condition,
        shape: &LatentShape,
    ) -> Self {
        let trajectory = rule.start();
        Self {
            main,
            weak: None,
            process,
            rule,
            trajectory,
            guidance_of_scale,
            condition,
            shape: shape.clone(),
            codec: None,
            caches: None,
            progress: None,
            evaluations: 0,
            nfe: 0,
        }
    }

    /// With what turns the tokens of a pyramid's levels into the features of the next.
    pub fn with_codec(mut self, codec: Option<&'a dyn LevelCodec>) -> Self {
        self.codec = codec;
        self
    }

    /// The same rule and condition around another network: the head of a masked process. Its own time is not the progress
    /// of the decoding, what it reads is kept between its steps, and those after the first are part of one network evaluation.
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
        let head = Denoiser::new(head, process, self.rule, self.guidance_of_scale, self.condition, shape);
        Denoiser { progress: Some(progress), caches: Some(BTreeMap::new()), ..head }
    }

    /// From now on the network keeps what it has read between evaluations. `false` = it reads everything each time.
    pub fn keep(&mut self, keep: bool) {
        self.caches = keep.then(BTreeMap::new);
    }

    /// The network itself.
    pub fn network(&self) -> &'a dyn Backbone {
        self.main
    }

    /// The weaker network of two-model rules, if there is one.
    pub fn weak(&self) -> Option<&'a dyn Backbone> {
        self.weak
    }

    /// What turns the tokens of a pyramid's levels into the features of the next.
    ///
    /// # Panics
    /// Without levels; the check phase refuses such pairs.
    pub fn codec(&self) -> &'a dyn LevelCodec {
        self.codec.expect("the check phase asks for a tokenizer with levels")
    }

    /// The latent's shape.
    pub fn shape(&self) -> &LatentShape {
        &self.shape
    }

    /// With the weaker network of two-model rules.
    pub fn with_weak(mut self, weak: &'a dyn Backbone) -> Self {
        self.weak = Some(weak);
        self
    }

    /// The process of the network.
    pub fn process(&self) -> &'a dyn Process {
        self.process
    }

    /// Numbers of a prediction that are guided: the latent's channels, or the vocabulary.
    pub fn channels(&self) -> usize {
        self.shape.width()
    }

    /// Counts evaluations that another denoiser made for this one.
    pub fn count(&mut self, nfe: usize) {
        self.nfe += nfe;
    }

    /// Network evaluations so far, counted per sample: a batch counts once.
    pub fn nfe(&self) -> usize {
        self.nfe
    }

    /// The guided prediction at `input`, in the network's own space. Branches of one model run as one batch. After
    /// [`Denoiser::keep`], predictions are those of the positions not read before.
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
        let Some(space) = self.rule.space().filter(|space| *space != self.process.prediction()) else {
            return self.trajectory.combine(&moment, predictions);
        };
        // The rule works in another space: there, combine, and back.
        let (Input::Noisy { x_t, t }, Some(path)) = (input, self.process.path()) else {
            panic!("prediction spaces other than the network's own exist for continuous processes only")
        };
        let (own, at) = (self.process.prediction(), path.at(t[0]));
        let convert = |from, to, value: Tensor<3>| {
            let total = value.dims()[2];
            let latent = crate::path::convert(from, to, value.clone().narrow(2, 0, channels), x_t.clone(), at);
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

    /// Counts the evaluation of a set of branches, and gives its cache: another set reads from the start.
    fn cache(&mut self, branches: &[Branch]) -> Option<Cache> {
        let key = format!("{branches:?}");
        let known = self.caches.as_ref().is_some_and(|caches| caches.contains_key(&key));
        let further_step_of_a_head = known && self.progress.is_some();
        self.nfe += if further_step_of_a_head { 0 } else { branches.len() };
        Some(self.caches.as_mut()?.entry(key).or_default().clone())
    }

    fn predict(&mut self, input: &Input, branches: &[Branch]) -> Vec<Tensor<3>> {
        let samples = self.condition.len();
        let plain = |branch: &Branch| branch.model == Model::Main && branch.perturb.is_empty();
        // One forward for all unperturbed branches of the main network, unless only some carry a guidance number.
        let numbers: Vec<Option<f64>> =
            branches.iter().map(|b| (self.guidance_of_scale)(b.scale.unwrap_or(1.0))).collect();
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
                    Model::Weak => {
                        self.weak.expect("who draws with a rule of two models gives it the weaker one, by `with_weak`")
                    }
                };
                let control = Control {
                    guidance: number.map(|n| vec![n; samples]),
                    perturb: branch.perturb.clone(),
                    cache: self.cache(std::slice::from_ref(branch)),
                };
                microbatch::predict(model, input, &self.asked(branch), &control)
            })
            .collect()
    }

    fn asked(&self, branch: &Branch) -> Condition {
        match &branch.condition {
            Asked::Given => self.condition.clone(),
            Asked::Null => self.condition.null(),
            Asked::Other(condition) => condition.clone(),
        }
    }
}

/// The batch, `times` over.
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

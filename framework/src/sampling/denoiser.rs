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

/// Receives the input and the guided prediction, `[B, position, channel]`, of each evaluation.
pub type Listener<'a> = &'a dyn Fn(&Input, &Tensor<3>);

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
    listener: Option<Listener<'a>>,
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
            listener: None,
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

    /// Sets a listener to every evaluation. It keeps what it receives alive, so a sampler then cannot reuse that memory.
    pub fn with_listener(mut self, listener: Option<Listener<'a>>) -> Self {
        self.listener = listener;
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
    /// without hooks run as one batch if possible. With caching ([`Denoiser::keep`]), predicts only the positions that
    /// no branch has read before.
    pub fn evaluate(&mut self, input: &Input, progress: f64) -> Guided {
        let guided = self.guided(input, progress);
        if let Some(listener) = self.listener {
            listener(input, &guided.prediction);
        }
        guided
    }

    fn guided(&mut self, input: &Input, progress: f64) -> Guided {
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
    fn cache(&mut self, branches: &[&Branch]) -> Option<Cache> {
        let key: Vec<&str> = branches.iter().map(|branch| branch.name).collect();
        let known = self.caches.as_ref().is_some_and(|caches| caches.contains_key(&key));
        let further_step_of_a_head = known && self.progress.is_some();
        self.nfe += if further_step_of_a_head { 0 } else { branches.len() };
        // Within one iteration of masked decoding, the features of a branch stay valid, whatever its hooks choose at
        // random.
        if self.progress.is_none() && branches.iter().any(|branch| branch.reads_all) {
            return None;
        }
        Some(self.caches.as_mut()?.entry(key).or_default().clone())
    }

    fn predict(&mut self, input: &Input, branches: &[Branch]) -> Vec<Tensor<3>> {
        let samples = self.condition.len();
        let number = |branch: &Branch| match branch.model {
            Model::Main => self.numbers.of(branch),
            Model::Weak => self.weak_network().numbers.of(branch),
        };
        let numbers: Vec<Option<f64>> = branches.iter().map(number).collect();
        let mut predictions: Vec<Option<Tensor<3>>> = vec![None; branches.len()];
        // Batch the branches that use the main network without hooks into one forward pass, if either all of them or
        // none have a guidance number.
        let plain = |i: &usize| branches[*i].model == Model::Main && !branches[*i].hooks.is_some();
        let together: Vec<usize> = (0..branches.len()).filter(plain).collect();
        let numbered = together.iter().filter(|i| numbers[**i].is_some()).count();
        if together.len() > 1 && (numbered == 0 || numbered == together.len()) {
            let batched: Vec<&Branch> = together.iter().map(|i| &branches[*i]).collect();
            let condition = batched[1..]
                .iter()
                .fold(self.asked(batched[0]), |condition, branch| condition.cat(&self.asked(branch)));
            let guidance: Vec<f64> =
                together.iter().filter_map(|i| numbers[*i]).flat_map(|n| vec![n; samples]).collect();
            let guidance = (!guidance.is_empty()).then_some(guidance);
            let control = Control { guidance, cache: self.cache(&batched), ..Control::default() };
            let all = microbatch::predict(self.main, &repeat(input, batched.len()), &condition, &control);
            for (i, prediction) in together.into_iter().zip(all.split(samples, 0)) {
                predictions[i] = Some(prediction);
            }
        }
        // Hooks may read what the hooks of an earlier branch recorded, so the other branches run in order.
        let predictions = predictions.into_iter().zip(branches.iter().zip(numbers));
        let all = predictions.map(|(known, (branch, number))| {
            known.unwrap_or_else(|| {
                let model = match branch.model {
                    Model::Main => self.main,
                    Model::Weak => self.weak_network().network,
                };
                let control = Control {
                    guidance: number.map(|n| vec![n; samples]),
                    hooks: branch.hooks.clone(),
                    cache: self.cache(&[branch]),
                    ..Control::default()
                };
                microbatch::predict(model, input, &self.asked(branch), &control)
            })
        });
        newest(all.collect())
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

/// Returns the last positions of each prediction, as many as the shortest prediction has. The predictions of a step
/// differ in length if their caches do: a branch that was not evaluated at every step reads the missed positions.
fn newest(predictions: Vec<Tensor<3>>) -> Vec<Tensor<3>> {
    let shortest = predictions.iter().map(|prediction| prediction.dims()[1]).min().unwrap_or(0);
    let last = |prediction: Tensor<3>| match prediction.dims()[1] {
        length if length == shortest => prediction,
        length => prediction.narrow(1, length - shortest, shortest),
    };
    predictions.into_iter().map(last).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::hooks::Hooks;
    use crate::process::tokens::TokenProcess;
    use crate::random::tensor;
    use crate::sampling::guidance::GuidanceNeeds;
    use burn::tensor::{DType, Device};
    use std::sync::Mutex;

    /// Predicts the position and class of each unread position, plus 100 in a pass with hooks. Records the number of
    /// samples and new positions of each pass.
    #[derive(Debug, Default)]
    struct Positions(Mutex<Vec<(usize, usize)>>);

    impl Backbone for Positions {
        fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
            let Input::Tokens { ids } = input else { panic!("expected tokens") };
            let [batch, length] = ids.dims();
            let read = control.cache.as_ref().map_or(0, Cache::read);
            control.cache.iter().for_each(|cache| cache.advance(length));
            self.0.lock().unwrap().push((batch, length - read));
            let hooked = if control.hooks.is_some() { 100.0 } else { 0.0 };
            let classes = condition.class_rows(7);
            let value =
                |i: usize| classes[i / (length - read)] as f64 + hooked + (read + i % (length - read)) as f64 * 10.0;
            let values: Vec<f64> = (0..batch * (length - read)).map(value).collect();
            tensor(&values, [batch, length - read, 1], DType::F64, &Device::flex())
        }
    }

    #[derive(Clone, Debug)]
    struct Nothing;

    impl Hooks for Nothing {}

    /// From the third evaluation on, evaluates the null condition and a pass with hooks too.
    #[derive(Clone, Debug)]
    struct Late {
        reads_all: bool,
    }

    impl Guidance for Late {
        fn needs(&self) -> GuidanceNeeds {
            GuidanceNeeds::branches(3)
        }
        fn start(&self) -> Box<dyn Trajectory> {
            Box::new(self.clone())
        }
    }

    impl Trajectory for Late {
        fn branches(&mut self, moment: &Moment) -> Vec<Branch> {
            let hooked = Branch { reads_all: self.reads_all, ..Branch::hooked("hooked", Nothing) };
            match moment.evaluation {
                0 | 1 => vec![Branch::given()],
                _ => vec![Branch::given(), hooked, Branch::null()],
            }
        }
        fn combine(&mut self, _: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
            Tensor::cat(predictions, 2).into()
        }
    }

    #[test]
    fn branches_without_hooks_share_a_pass_and_all_predict_the_same_positions() {
        for (reads_all, hooked) in [(false, [(2, 3), (2, 1)]), (true, [(2, 3), (2, 4)])] {
            let (network, rule, process) = (Positions::default(), Late { reads_all }, TokenProcess::next_token(4));
            let (condition, shape) = (Condition::Class(vec![Some(1), Some(2)]), LatentShape::tokens([2, 2], 9));
            let mut denoiser = Denoiser::new(&network, &process, &rule, GuidanceNumbers::NONE, &condition, &shape);
            denoiser.keep(true);
            let mut last = Vec::new();
            for length in 1..=4 {
                let ids = Tensor::<2, Int>::zeros([2, length], &Device::flex());
                let guided = denoiser.evaluate(&Input::Tokens { ids }, 0.0).prediction;
                assert_eq!(guided.dims()[1], if length == 3 { 3 } else { 1 });
                let newest = guided.dims()[1] - 1;
                last = guided.narrow(1, newest, 1).into_data().try_into_vec::<f64>().unwrap();
            }
            // At position 3: class 1 or 2, with hooks 100 more, and the null class 7.
            assert_eq!(last, [31.0, 131.0, 37.0, 32.0, 132.0, 37.0]);
            let passes = network.0.lock().unwrap().clone();
            assert_eq!(passes, [(2, 1), (2, 1), (4, 3), hooked[0], (4, 1), hooked[1]]);
            assert_eq!(denoiser.nfe(), 1 + 1 + 3 + 3);
        }
    }

    #[test]
    fn longer_predictions_are_cut_to_the_last_positions() {
        let of = |values: &[f64]| tensor::<3>(values, [1, values.len(), 1], DType::F64, &Device::flex());
        let cut = newest(vec![of(&[1.0, 2.0, 3.0]), of(&[4.0])]);
        assert_eq!(cut.into_iter().map(|x| x.into_scalar::<f64>()).collect::<Vec<_>>(), [3.0, 4.0]);
    }
}

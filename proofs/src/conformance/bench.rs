//! A small network with one batch, on which plugins are tried.

use super::entry::parse;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};
use framework::network::backbone::{Backbone, BoxBackbone, Cache, Control};
use framework::network::condition::{Condition, ConditionShape};
use framework::nn;
use framework::nn::dropout::Dropout;
use framework::nn::hooks::Hooked;
use framework::nn::parameters::{self, Init};
use framework::nn::precision::MatmulPrecision;
use framework::objective::Objective;
use framework::objective::context::{Context, RandomChoices};
use framework::plugin::BackbonePlugin;
use framework::process::{Example, Input, Latent, Process, Progress, Target};
use framework::random::{Random, tensor};
use framework::training::networks::{Choices, Networks, Reference};
use serde_json::Value;

/// Batch size.
pub(super) const BATCH: usize = 12;

pub(super) fn values<const D: usize, K: burn::tensor::kind::Basic>(tensor: Tensor<D, K>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_into_vec::<f64>().expect("converted above")
}

/// Path and largest absolute gradient of every trained parameter.
pub(super) type Gradients = Vec<(String, f64)>;

/// Returns the parameters that no gradient reaches.
pub(super) fn silent(gradients: &Gradients) -> Vec<&str> {
    gradients.iter().filter(|(_, largest)| *largest == 0.0).map(|(path, _)| path.as_str()).collect()
}

/// A network with random weights, and a batch to test it with.
pub(super) struct Bench {
    pub(super) config: Box<dyn BackbonePlugin>,
    pub(super) process: Box<dyn Process>,
    pub(super) online: BoxBackbone,
    /// A network with different weights, used as EMA and reference.
    pub(super) other: BoxBackbone,
    /// The same weights as a frozen reference.
    pub(super) reference: Reference,
    pub(super) example: Example,
    pub(super) condition: Condition,
}

impl Bench {
    pub(super) fn new(backbone: &Value) -> Self {
        let config: Box<dyn BackbonePlugin> = parse(backbone).unwrap_or_else(|| panic!("not a backbone: {backbone}"));
        let network = |seed: u64, device: &Device| {
            // Published networks initialize some layers to zero, which blocks the gradients of other parameters.
            let init = |path: &str, shape: &[usize]| match config.initializer(path, shape) {
                Init::Constant(values) => Init::Constant(values),
                _ => Init::Normal(0.1),
            };
            parameters::initialize(config.init(device), &Random::new(seed), &init)
        };
        let (random, shape, accepts) = (Random::new(3), config.latent_shape(), config.accepts());
        let positions = shape.positions();
        let latent = match shape.vocabulary {
            None => {
                let normal = random.normal("x", 0, 0, BATCH * positions * shape.channels);
                let normal: Vec<f64> = normal.into_iter().map(f64::from).collect();
                Latent::Values(tensor(&normal, [BATCH, positions, shape.channels], DType::F32, &Device::flex()))
            }
            Some(vocabulary) => {
                let ids: Vec<i64> = random
                    .uniform("ids", 0, 0, BATCH * positions)
                    .into_iter()
                    .map(|u| (u * vocabulary as f64) as i64)
                    .collect();
                let ids = Tensor::from_data(TensorData::new(ids, [BATCH, positions]), &Device::flex());
                if shape.levels.is_empty() {
                    Latent::Ids(ids)
                } else {
                    let normal = random.normal("features", 0, 0, BATCH * positions * shape.channels);
                    let normal: Vec<f64> = normal.into_iter().map(f64::from).collect();
                    let sizes = [BATCH, positions, shape.channels];
                    Latent::Levels { ids, features: tensor(&normal, sizes, DType::F32, &Device::flex()) }
                }
            }
        };
        let condition = match accepts.condition {
            // Random order, so that the negative of a sample usually has a different condition.
            ConditionShape::Class { count: n } => {
                let drawn = random.uniform("class", 0, 0, BATCH);
                Condition::Class(drawn.into_iter().map(|u| Some((u * n as f64) as usize)).collect())
            }
            ConditionShape::Tokens { length, vocabulary: count } => {
                let length = length.unwrap_or(4).min(4);
                let drawn = random.uniform("text", 0, 0, BATCH * length);
                let ids: Vec<usize> = drawn.into_iter().map(|u| (u * count as f64) as usize).collect();
                Condition::Tokens { ids: ids.chunks(length).map(<[usize]>::to_vec).collect(), null: vec![0; length] }
            }
            ConditionShape::Text { width, .. } => {
                let features = |name: &str, count: usize| {
                    let normal: Vec<f64> =
                        random.normal(name, 0, 0, count * 4 * width).into_iter().map(f64::from).collect();
                    tensor(&normal, [count, 4, width], DType::F32, &Device::flex())
                };
                Condition::Text {
                    features: features("text", BATCH),
                    null: features("null", 1),
                    dropped: vec![false; BATCH],
                }
            }
            ConditionShape::None => Condition::None(BATCH),
        };
        let process = config.process();
        let example = process.corrupt(&latent, &random, 0);
        let (online, other) = (network(0, &Device::flex().autodiff()), network(1, &Device::flex()));
        let reference = Reference::plain(other.clone());
        Self { process, online, other, reference, example, condition, config }
    }

    /// Returns whether the pair would pass the check phase.
    pub(super) fn fits(&self, objective: &dyn Objective) -> bool {
        let (needs, accepts) = (objective.needs(), self.config.accepts());
        needs.guidance_input == accepts.guidance_input && objective.check_process(&*self.process).is_empty()
    }

    pub(super) fn predict(&self, condition: &Condition) -> Tensor<3> {
        let guidance = self.config.accepts().guidance_input.then(|| vec![0.5; BATCH]);
        self.online.predict(&self.example.input, condition, &Control::guided(guidance))
    }

    /// Predicts the batch as a training pass does, with the masks of dropout and drop path.
    pub(super) fn predict_training(&self) -> Tensor<3> {
        let guidance = self.config.accepts().guidance_input.then(|| vec![0.5; BATCH]);
        let control = Control { dropout: Dropout::training(Random::new(5), 0), ..Control::guided(guidance) };
        self.online.predict(&self.example.input, &self.condition, &control)
    }

    /// Predicts the batch step by step with a cache.
    pub(super) fn cached(&self, guidance: Option<f64>, hooks: &Hooked) -> Vec<f64> {
        let control = Control {
            guidance: guidance.map(|number| vec![number; BATCH]),
            cache: Some(Cache::default()),
            hooks: hooks.clone(),
            ..Control::default()
        };
        let sides = self.config.latent_shape().levels;
        let network = self.online.valid();
        if let Input::Masked { .. } = &self.example.input {
            // Sampling calls the network once per step of the head. The second call here reads the cache that the first
            // one filled.
            network.predict(&self.example.input, &self.condition, &control);
            return values(network.predict(&self.example.input, &self.condition, &control));
        }
        let mut steps = Vec::new();
        let mut read = 0;
        while read < self.config.latent_shape().positions() {
            read += sides.get(steps.len()).map_or(1, |side| side * side);
            let input = match &self.example.input {
                Input::Tokens { ids } => Input::Tokens { ids: ids.clone().narrow(1, 0, read) },
                Input::Levels { features } => Input::Levels { features: features.clone().narrow(1, 0, read) },
                other => other.clone(),
            };
            steps.push(network.predict(&input, &self.condition, &control));
        }
        values(Tensor::cat(steps, 1))
    }

    /// Computes the losses of the batch in the given order, and the gradients of their mean.
    pub(super) fn losses(
        &self,
        objective: &dyn Objective,
        draw: u64,
        step: usize,
        order: Option<&[usize]>,
    ) -> (Vec<f64>, Gradients) {
        let networks = Networks {
            name: "the backbone",
            online: self.online.clone(),
            stopped: self.online.valid(),
            ema: Some(&self.other),
            reference: Some(&self.reference),
            stopped_precision: MatmulPrecision::Highest,
            dropout: Dropout::default(),
        };
        let random = Random::new(5);
        let all: Vec<usize> = (0..BATCH).collect();
        let order = order.unwrap_or(&all);
        let draws = Permuted { choices: Choices { random: &random, draw_index: draw }, order };
        let (example, condition) = (self.permuted(order), self.condition.select(order));
        let condition = (&condition, self.config.accepts().num_classes());
        let context = Context::new(&example, condition, &*self.process, &networks, &draws, (step, step.max(1)));
        let losses = objective.loss(&context);
        let numbers = values(losses.clone().inner());
        (numbers, self.gradients(losses.mean()))
    }

    pub(super) fn gradients(&self, loss: Tensor<1>) -> Gradients {
        let gradients = GradientsParams::from_grads(loss.backward(), &self.online);
        let largest = |(path, shape, trained): (String, Vec<usize>, bool)| {
            let id = parameters::param_id(&path);
            let found = match shape.len() {
                1 => gradients.get::<1>(id).map(|g| values(g.abs().max())[0]),
                2 => gradients.get::<2>(id).map(|g| values(g.abs().max())[0]),
                3 => gradients.get::<3>(id).map(|g| values(g.abs().max())[0]),
                _ => gradients.get::<4>(id).map(|g| values(g.abs().max())[0]),
            };
            trained.then(|| (path, found.unwrap_or(0.0)))
        };
        parameters::parameters(&self.online).into_iter().filter_map(largest).collect()
    }

    pub(super) fn permuted(&self, order: &[usize]) -> Example {
        let rows = || order.iter().copied();
        Example {
            input: self.example.input.select(order),
            target: match &self.example.target {
                Target::Values(x) => Target::Values(nn::rows(x.clone(), rows())),
                Target::Ids(ids) => Target::Ids(nn::rows(ids.clone(), rows())),
            },
            progress: match &self.example.progress {
                Progress::PerSample(all) => Progress::PerSample(order.iter().map(|i| all[*i]).collect()),
                shared => shared.clone(),
            },
            scored: self.example.scored.clone().map(|scored| nn::rows(scored, rows())),
        }
    }
}

/// The random choices of a batch in another order.
pub(super) struct Permuted<'a> {
    pub(super) choices: Choices<'a>,
    pub(super) order: &'a [usize],
}

impl RandomChoices for Permuted<'_> {
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64> {
        let drawn = self.choices.uniform(purpose, low, high, n);
        self.order.iter().map(|i| drawn[*i]).collect()
    }
    fn choice(&self, purpose: &str, probabilities: &[f64], n: usize) -> Vec<usize> {
        let drawn = self.choices.choice(purpose, probabilities, n);
        self.order.iter().map(|i| drawn[*i]).collect()
    }
    fn negative(&self, purpose: &str, condition: &Condition) -> Condition {
        let mut back = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(to, from)| back[*from] = to);
        self.choices.negative(purpose, &condition.select(&back)).select(self.order)
    }
}

//! Conformance: what every plugin of a kind must hold, whoever wrote it. One line a plugin:
//!
//! ```ignore
//! assert_eq!(conformance::objective(&json!({ "type": "mine" }), &backbone), Vec::<String>::new());
//! ```
//!
//! Every function returns what fails, in words; nothing fails of a plugin that keeps its promises.

use crate::backbone::{Backbone, BoxBackbone, Control};
use crate::condition::{Condition, ConditionKind};
use crate::guidance::Denoiser;
use crate::objective::{Context, Draw, Objective};
use crate::plugin::{self, BackbonePlugin, Kind, ObjectivePlugin, SamplerPlugin};
use crate::process::{Example, Family, Input, Latent, LatentShape, Process, Progress, Target};
use crate::random::{Random, permutation, tensor};
use crate::sampler::SeededNoise;
use crate::tokenizer::LevelCodec;
use crate::trainer::{Choices, Networks};
use crate::weights::{self, Init};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Samples of a batch.
const BATCH: usize = 12;

/// What an objective must hold, on a small backbone that fits it (both as document entries).
pub fn objective(entry: &Value, backbone: &Value) -> Vec<String> {
    let mut failures = round_trip::<Box<dyn ObjectivePlugin>>(entry);
    let Some(objective) = parse::<Box<dyn ObjectivePlugin>>(entry) else { return failures };
    let bench = Bench::new(backbone);
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(what.to_string());
        }
    };
    let (losses, gradients) = bench.losses(&*objective, 0, 0, None);
    // A null condition of its own is trained by what drops conditions, and by nothing else.
    let plain = bench.gradients(bench.process.loss(bench.predict(&bench.condition), &bench.example).mean());
    let untrained = silent(&plain);
    let silent: Vec<&str> = silent(&gradients).into_iter().filter(|path| !untrained.contains(path)).collect();
    must(losses.len() == BATCH, "the loss is one number a sample");
    must(losses.iter().all(|loss| loss.is_finite()), "the loss is finite");
    must(bench.losses(&*objective, 0, 0, None).0 == losses, "the same seed gives the same loss");
    must(silent.is_empty(), &format!("gradients reach every parameter; they do not reach {silent:?}"));
    let order = permutation(&Random::new(1), "order", 0, BATCH);
    let (permuted, _) = bench.losses(&*objective, 0, 0, Some(&order));
    let worst = order.iter().zip(&permuted).map(|(i, loss)| (loss - losses[*i]).abs()).fold(0.0, f64::max);
    let largest = losses.iter().fold(1e-6_f64, |m, loss| m.max(loss.abs()));
    must(worst <= 1e-5 * largest, "permuting the batch permutes the losses");
    let acts = |objective: &dyn ObjectivePlugin| {
        // At the start and late in training, with gradients: some settings change those alone.
        let trials = [(0, 0), (1, 0), (2, 0), (0, usize::MAX / 4)];
        let numbers: Vec<_> = trials.iter().map(|(draw, step)| bench.losses(objective, *draw, *step, None)).collect();
        let families = [Family::Continuous, Family::NextToken];
        let stated = families.map(|family| objective.optimum(family).statement());
        let scales = [objective.guidance_of_scale(2.0), objective.scale_of_guidance(2.0)];
        let refused: Vec<_> =
            objective.check_process(&*bench.process).into_iter().map(|problem| problem.what).collect();
        format!("{numbers:?} {:?} {stated:?} {scales:?} {refused:?}", objective.needs())
    };
    let sound = |objective: &dyn ObjectivePlugin| objective.check().is_empty();
    let fits = |objective: &dyn ObjectivePlugin| bench.fits(objective);
    failures.extend(fields::<Box<dyn ObjectivePlugin>>(entry, Kind::Objective, &|new| {
        // Where another setting needs another backbone, it changes something.
        sound(&**new).then(|| if fits(&**new) { acts(&**new) } else { "another backbone".to_string() })
    }));
    failures
}

/// What a backbone must hold. Choose small sizes.
pub fn backbone(entry: &Value) -> Vec<String> {
    let mut failures = round_trip::<Box<dyn BackbonePlugin>>(entry);
    if !failures.is_empty() {
        return failures;
    }
    let bench = Bench::new(entry);
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(what.to_string());
        }
    };
    let shape = bench.config.latent_shape();
    let accepts = bench.config.accepts();
    let numbers = |input: &Input, condition: &Condition, guidance: Option<f64>| {
        let control = Control::guided(guidance.map(|number| vec![number; input.len()]));
        values(bench.online.valid().predict(input, condition, &control))
    };
    let guidance = accepts.guidance_input.then_some(0.5);
    let [batch, positions, channels] = bench.predict(&bench.condition).dims();
    let asked = match &bench.example.input {
        Input::Masked { places, .. } => places.len() / BATCH,
        _ => shape.positions(),
    };
    must(batch == BATCH && positions == asked, "a prediction is [B, position, channel]");
    must(channels >= shape.vocabulary.unwrap_or(shape.channels), "a prediction has the latent's channels");
    let whole = numbers(&bench.example.input, &bench.condition, guidance);
    must(whole.iter().all(|v| v.is_finite()), "predictions are finite");
    must(
        numbers(&bench.example.input, &bench.condition, guidance) == whole,
        "the same input gives the same prediction",
    );
    let first = numbers(&rows(&bench.example.input, &[0]), &bench.condition.select(&[0]), guidance);
    let apart = first.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let largest = whole.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
    must(apart <= 1e-4 * largest, "a sample's prediction does not depend on its batch");
    if accepts.condition != ConditionKind::None {
        must(numbers(&bench.example.input, &bench.condition.null(), guidance) != whole, "the condition matters");
    }
    if accepts.guidance_input {
        must(numbers(&bench.example.input, &bench.condition, Some(0.9)) != whole, "the guidance number matters");
    }
    let parameters = weights::parameters(&bench.config.init(&Device::flex()));
    let foreign = bench.config.foreign_names();
    let mut names: Vec<String> = parameters.iter().map(|(path, ..)| (foreign.of)(path).name).collect();
    names.sort();
    names.dedup();
    must(names.len() == parameters.len(), "no two parameters have one official name");
    must(bench.config.flops() > 0.0 && bench.config.activations() > 0.0, "the cost is stated");
    let some_dropped: Vec<bool> = (0..BATCH).map(|i| i == 0).collect();
    let prediction = bench.predict(&bench.condition.dropped(&some_dropped));
    let gradients = bench.gradients(bench.process.loss(prediction, &bench.example).mean());
    let silent = silent(&gradients);
    must(silent.is_empty(), &format!("gradients reach every parameter; they do not reach {silent:?}"));
    failures.extend(fields::<Box<dyn BackbonePlugin>>(entry, Kind::Backbone, &|new| {
        if !new.check().is_empty() {
            return None;
        }
        let network = new.init(&Device::flex());
        let shapes = weights::parameters(&network);
        let init: Vec<_> = shapes.iter().map(|(path, shape, _)| new.initializer(path, shape)).collect();
        let bench = Bench::new(&serde_json::to_value(new).expect("plugins can be written"));
        let predicted = values(bench.predict(&bench.condition));
        Some(format!("{shapes:?} {init:?} {predicted:?} {:?} {:?}", new.accepts(), new.process()))
    }));
    failures
}

/// What a sampler must hold, on a small backbone of a family that it serves.
pub fn sampler(entry: &Value, backbone: &Value) -> Vec<String> {
    let mut failures = round_trip::<Box<dyn SamplerPlugin>>(entry);
    let Some(sampler) = parse::<Box<dyn SamplerPlugin>>(entry) else { return failures };
    let bench = Bench::new(backbone);
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(what.to_string());
        }
    };
    must(sampler.serves(bench.process.family()), "it serves the family");
    let network = bench.online.valid();
    let shape = bench.config.latent_shape();
    let rule = OneBranch;
    let codec = AnyCodec(shape.clone());
    let draw = |sampler: &dyn SamplerPlugin, seed: u64, first: usize, count: usize| {
        let condition = bench.condition.select(&(first..first + count).collect::<Vec<_>>());
        let mut model =
            Denoiser::new(&network, &*bench.process, &rule, &|_| None, &condition, &shape).with_codec(Some(&codec));
        let mut noise = SeededNoise {
            random: Random::new(seed),
            first,
            count,
            shape: shape.clone(),
            dtype: DType::F32,
            device: Device::flex(),
        };
        let mut seen = 0;
        let latent = sampler.sample(&mut model, &mut noise, &mut |_: &crate::sampler::Progress<'_>| seen += 1);
        let drawn = match latent {
            Latent::Values(x) => values(x),
            Latent::Ids(ids) | Latent::Levels { ids, .. } => values(ids.float().unsqueeze::<3>()),
        };
        (drawn, model.nfe(), seen)
    };
    let (whole, nfe, seen) = draw(&*sampler, 0, 0, 4);
    must(whole.iter().all(|v| v.is_finite()), "samples are finite");
    must(nfe == sampler.evaluations(&shape), "`evaluations` is what one draw evaluates");
    must(seen > 0, "every step is reported");
    must(draw(&*sampler, 0, 0, 4).0 == whole, "the same seed gives the same samples");
    must(draw(&*sampler, 1, 0, 4).0 != whole, "another seed gives other samples");
    let halves = [draw(&*sampler, 0, 0, 2).0, draw(&*sampler, 0, 2, 2).0].concat();
    let apart = halves.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let largest = whole.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
    must(apart <= 1e-3 * largest, "samples do not depend on how they are batched");
    let fits = |new: &dyn SamplerPlugin| {
        new.check().is_empty()
            && new.check_process(&*bench.process).is_empty()
            && (new.needs_variance().is_none() || bench.config.accepts().variance)
    };
    failures.extend(fields::<Box<dyn SamplerPlugin>>(entry, Kind::Sampler, &|new| {
        fits(&**new).then(|| format!("{:?}", draw(&**new, 0, 0, 2)))
    }));
    failures
}

/// The conditional prediction alone.
#[derive(Debug)]
struct OneBranch;

impl crate::guidance::Guidance for OneBranch {
    fn needs_null(&self) -> bool {
        false
    }
    fn max_branches(&self) -> usize {
        1
    }
    fn start(&self) -> Box<dyn crate::guidance::Trajectory> {
        Box::new(Self)
    }
}

impl crate::guidance::Trajectory for OneBranch {
    fn branches(&mut self, _: &crate::guidance::Moment) -> Vec<crate::guidance::Branch> {
        vec![crate::guidance::Branch::given()]
    }
    fn combine(&mut self, _: &crate::guidance::Moment, mut all: Vec<Tensor<3>>) -> crate::guidance::Guided {
        all.remove(0).into()
    }
}

/// Any function of the coarser levels' tokens.
struct AnyCodec(LatentShape);

impl LevelCodec for AnyCodec {
    fn features(&self, ids: &[Tensor<2, Int>], batch: usize, device: &Device) -> Tensor<3> {
        let channels = self.0.channels;
        let level = |(side, ids): (&usize, Option<&Tensor<2, Int>>)| match ids {
            None => Tensor::zeros([batch, side * side, channels], (device, DType::F32)),
            Some(ids) => {
                let mean = ids.clone().float().mean_dim(1).reshape([batch, 1, 1]) / 10.0;
                mean.expand([batch, side * side, channels])
            }
        };
        let before = [None].into_iter().chain(ids.iter().map(Some));
        Tensor::cat(self.0.levels.iter().zip(before).map(level).collect(), 1)
    }
}

fn parse<T: DeserializeOwned>(entry: &Value) -> Option<T> {
    serde_json::from_value(entry.clone()).ok()
}

/// Written out with every default and read again, an entry is the same.
fn round_trip<T: Serialize + DeserializeOwned>(entry: &Value) -> Vec<String> {
    let plugin: T = match serde_json::from_value(entry.clone()) {
        Ok(plugin) => plugin,
        Err(error) => return vec![format!("the entry is read: {error}")],
    };
    let written = serde_json::to_value(&plugin).expect("plugins can be written");
    match parse::<T>(&written).map(|again| serde_json::to_value(again).expect("plugins can be written")) {
        Some(again) if again == written => Vec::new(),
        _ => vec!["written and read again, it is the same".to_string()],
    }
}

/// Fields of an entry that change nothing, whatever is written there. `acts` says what a plugin does; `None` if it is not
/// sound.
fn fields<T: Serialize + DeserializeOwned>(
    entry: &Value,
    kind: Kind,
    acts: &dyn Fn(&T) -> Option<String>,
) -> Vec<String> {
    let Some(plugin) = parse::<T>(entry) else { return Vec::new() };
    let (Some(before), written) = (acts(&plugin), serde_json::to_value(&plugin).expect("plugins can be written"))
    else {
        return vec!["the entry is sound".to_string()];
    };
    let schema = plugin::entries()
        .into_iter()
        .find(|known| known.kind == kind && Some(known.name) == entry["type"].as_str())
        .map_or(Value::Null, |known| Value::from((known.schema)()));
    let validator = jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("no schema: {error}"));
    let in_range = |entry: &Value| {
        let mut fields = entry.clone();
        fields.as_object_mut().expect("an entry is an object").remove("type");
        validator.is_valid(&fields)
    };
    let mut places = Vec::new();
    leaves(&written, "", &mut places);
    let mut words = Vec::new();
    constants(&schema, &mut words);
    // An entry may hold others, whose schemas name their own values.
    let names: Vec<&str> = places.iter().filter_map(|place| named(&written, place)).collect();
    for known in plugin::entries().into_iter().filter(|known| names.contains(&known.name)) {
        constants(&Value::from((known.schema)()), &mut words);
    }
    places
        .iter()
        .filter(|place| named(&written, place).is_none())
        .filter(|place| {
            let differs = |value: Value| {
                let mut changed = written.clone();
                // A name or a switch that is refused is one that was heard; numbers are refused for being out of range.
                let refusal_counts = !value.is_number();
                // Another type has other fields: they all take their defaults.
                let (place, value) = match place.strip_suffix("/type") {
                    Some(parent) => (parent, serde_json::json!({ "type": value })),
                    None => (place.as_str(), value),
                };
                *changed.pointer_mut(place).expect("a place of it") = value;
                in_range(&changed)
                    && parse::<T>(&changed).is_some_and(|plugin| match acts(&plugin) {
                        Some(after) => after != before,
                        None => refusal_counts,
                    })
            };
            !others(written.pointer(place).expect("a place of it"), &words).into_iter().any(differs)
        })
        .map(|place| format!("field {place} changes something"))
        .collect()
}

/// The name of an entry or of one within it, if that is what stands at `place`.
fn named<'a>(written: &'a Value, place: &str) -> Option<&'a str> {
    let name = written.pointer(place).and_then(Value::as_str).filter(|_| place.ends_with("/type"))?;
    plugin::entries().iter().any(|known| known.name == name).then_some(name)
}

/// Pointers of everything that is neither object nor array.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), found)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| leaves(value, &format!("{at}/{i}"), found));
        }
        _ => found.push(at.to_string()),
    }
}

/// The names a schema allows.
fn constants(schema: &Value, found: &mut Vec<Value>) {
    match schema {
        Value::Object(members) => members.iter().for_each(|(key, value)| match (key.as_str(), value) {
            ("const", Value::String(_)) => found.push(value.clone()),
            ("enum", Value::Array(names)) => found.extend(names.iter().cloned()),
            _ => constants(value, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| constants(item, found)),
        _ => {}
    }
}

/// Values to try in place of one.
fn others(value: &Value, words: &[Value]) -> Vec<Value> {
    let numbers = [0.5, 0.3, 0.0, 1.0, 1.5, 2.0, 3.0].map(Value::from);
    let whole = [0, 1, 2, 3, 4, 6, 8, 16, 20, 50, 200].map(Value::from);
    let mut others: Vec<Value> = match value {
        Value::Bool(is) => vec![Value::Bool(!is)],
        Value::Number(_) => numbers.into_iter().chain(whole).collect(),
        Value::String(_) => words.to_vec(),
        _ => [Value::Bool(true)].into_iter().chain(numbers).chain(whole).chain(words.iter().cloned()).collect(),
    };
    others.retain(|other| other != value);
    others
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_into_vec::<f64>().expect("converted above")
}

/// Some samples of an input.
fn rows(input: &Input, rows: &[usize]) -> Input {
    let index = |device: &Device| {
        let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        Tensor::<1, Int>::from_data(TensorData::new(rows.clone(), [rows.len()]), device)
    };
    let times = |t: &[f64]| rows.iter().map(|row| t[*row]).collect();
    match input {
        Input::Noisy { x_t, t } => Input::Noisy { x_t: x_t.clone().select(0, index(&x_t.device())), t: times(t) },
        Input::Tokens { ids } => Input::Tokens { ids: ids.clone().select(0, index(&ids.device())) },
        Input::Levels { features } => Input::Levels { features: features.clone().select(0, index(&features.device())) },
        Input::Masked { x, hidden, places, x_t, t } => {
            let pick = |x: &Tensor<3>| x.clone().select(0, index(&x.device()));
            let [batch, positions, _] = x.dims();
            let each = places.len() / batch;
            Input::Masked {
                x: pick(x),
                hidden: rows.iter().flat_map(|row| hidden[row * positions..][..positions].to_vec()).collect(),
                places: rows.iter().flat_map(|row| places[row * each..][..each].to_vec()).collect(),
                x_t: pick(x_t),
                t: rows.iter().flat_map(|row| t[row * each..][..each].to_vec()).collect(),
            }
        }
    }
}

/// Path and largest gradient of every trained parameter.
type Gradients = Vec<(String, f64)>;

/// The parameters that no gradient reaches.
fn silent(gradients: &Gradients) -> Vec<&str> {
    gradients.iter().filter(|(_, largest)| *largest == 0.0).map(|(path, _)| path.as_str()).collect()
}

/// A network with random weights and a batch to try it on.
struct Bench {
    config: Box<dyn BackbonePlugin>,
    process: Box<dyn Process>,
    online: BoxBackbone,
    /// Other weights, as average and reference.
    other: BoxBackbone,
    example: Example,
    condition: Condition,
}

impl Bench {
    fn new(backbone: &Value) -> Self {
        let config: Box<dyn BackbonePlugin> =
            parse(backbone).unwrap_or_else(|| panic!("no backbone is described by {backbone}"));
        let network = |seed: u64, device: &Device| {
            // Published networks start with layers at zero, behind which no gradient passes.
            let init = |path: &str, shape: &[usize]| match config.initializer(path, shape) {
                Init::Constant(values) => Init::Constant(values),
                _ => Init::Normal(0.1),
            };
            weights::initialize(config.init(device), &Random::new(seed), &init)
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
        let condition = match (accepts.condition, accepts.num_classes) {
            // In no regular order: conditions of other samples must differ.
            (ConditionKind::Class, Some(n)) => {
                let drawn = random.uniform("class", 0, 0, BATCH);
                Condition::Class(drawn.into_iter().map(|u| Some((u * n as f64) as usize)).collect())
            }
            (ConditionKind::Text, _) => {
                let width = accepts.text_width.unwrap_or(8);
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
            _ => Condition::None(BATCH),
        };
        let process = config.process();
        let example = process.corrupt(&latent, &random, 0);
        let (online, other) = (network(0, &Device::flex().autodiff()), network(1, &Device::flex()));
        Self { process, online, other, example, condition, config }
    }

    /// Whether the pair would pass the check phase.
    fn fits(&self, objective: &dyn Objective) -> bool {
        let (needs, accepts) = (objective.needs(), self.config.accepts());
        needs.guidance_input == accepts.guidance_input && objective.check_process(&*self.process).is_empty()
    }

    fn predict(&self, condition: &Condition) -> Tensor<3> {
        let guidance = self.config.accepts().guidance_input.then(|| vec![0.5; BATCH]);
        self.online.predict(&self.example.input, condition, &Control::guided(guidance))
    }

    /// Losses of the batch in some order, and their mean's gradients.
    fn losses(
        &self,
        objective: &dyn Objective,
        draw: u64,
        step: usize,
        order: Option<&[usize]>,
    ) -> (Vec<f64>, Gradients) {
        let networks = Networks {
            online: self.online.clone(),
            stopped: self.online.valid(),
            ema: Some(&self.other),
            reference: Some(&self.other),
        };
        let random = Random::new(5);
        let all: Vec<usize> = (0..BATCH).collect();
        let order = order.unwrap_or(&all);
        let draws = Permuted { choices: Choices { random: &random, draw }, order };
        let (example, condition) = (self.permuted(order), self.condition.select(order));
        let condition = (&condition, self.config.accepts().num_classes);
        let context = Context::new(&example, condition, &*self.process, &networks, &draws, (step, step.max(1)));
        let losses = objective.loss(&context);
        let numbers = values(losses.clone().inner());
        (numbers, self.gradients(losses.mean()))
    }

    fn gradients(&self, loss: Tensor<1>) -> Gradients {
        let gradients = GradientsParams::from_grads(loss.backward(), &self.online);
        let largest = |(path, shape, trained): (String, Vec<usize>, bool)| {
            let id = weights::param_id(&path);
            let found = match shape.len() {
                1 => gradients.get::<1>(id).map(|g| values(g.abs().max())[0]),
                2 => gradients.get::<2>(id).map(|g| values(g.abs().max())[0]),
                3 => gradients.get::<3>(id).map(|g| values(g.abs().max())[0]),
                _ => gradients.get::<4>(id).map(|g| values(g.abs().max())[0]),
            };
            trained.then(|| (path, found.unwrap_or(0.0)))
        };
        weights::parameters(&self.online).into_iter().filter_map(largest).collect()
    }

    fn permuted(&self, order: &[usize]) -> Example {
        let index: Vec<i64> = order.iter().map(|i| *i as i64).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [order.len()]), &Device::flex());
        Example {
            input: rows(&self.example.input, order),
            target: match &self.example.target {
                Target::Values(x) => Target::Values(x.clone().select(0, index.clone())),
                Target::Ids(ids) => Target::Ids(ids.clone().select(0, index.clone())),
            },
            progress: match &self.example.progress {
                Progress::PerSample(all) => Progress::PerSample(order.iter().map(|i| all[*i]).collect()),
                shared => shared.clone(),
            },
            scored: self.example.scored.clone().map(|scored| scored.select(0, index)),
        }
    }
}

/// The draws of a batch in another order.
struct Permuted<'a> {
    choices: Choices<'a>,
    order: &'a [usize],
}

impl Draw for Permuted<'_> {
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

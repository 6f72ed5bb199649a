//! Conformance: what every plugin of a kind must hold, whoever wrote it. One line a plugin:
//!
//! ```ignore
//! assert_eq!(conformance::objective(&json!({ "type": "mine" }), &backbone), Vec::<String>::new());
//! ```
//!
//! Every function returns what fails, in words; nothing fails of a plugin that keeps its promises.

use crate::backbone::{Backbone, BoxBackbone, Cache, Control};
use crate::condition::{Condition, ConditionKind};
use crate::error::{Problem, Problems};
use crate::guidance::Denoiser;
use crate::nn;
use crate::objective::{Context, Draw, Objective};
use crate::plugin::{self, BackbonePlugin, Kind, ObjectivePlugin, SamplerPlugin, TokenizerPlugin};
use crate::precision::MatmulPrecision;
use crate::process::{Example, Family, Input, Latent, LatentShape, Process, Progress, Target};
use crate::random::{Random, permutation, tensor};
use crate::sampler::SeededNoise;
use crate::tokenizer::{ImageShape, LevelCodec};
use crate::trainer::{Choices, Networks};
use crate::weights::{self, Init};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    let fits = |objective: &dyn ObjectivePlugin| bench.fits(objective);
    failures.extend(fields::<Box<dyn ObjectivePlugin>>(entry, Kind::Objective, &|new| {
        // Where another setting needs another backbone, it changes something.
        let problems = new.check();
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(if fits(&**new) { acts(&**new) } else { "another backbone".to_string() })
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
    if accepts.cache {
        let cached = bench.cached(guidance);
        let apart = cached.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let largest = whole.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
        must(cached.len() == whole.len() && apart <= 1e-5 * largest, "predictions with a cache are those without");
    }
    let first = numbers(&bench.example.input.select(&[0]), &bench.condition.select(&[0]), guidance);
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
    for foreign in bench.config.formats() {
        let mut names: Vec<String> = parameters.iter().map(|(path, ..)| (foreign.of)(path).name).collect();
        names.sort();
        names.dedup();
        must(names.len() == parameters.len(), "no two parameters have one official name");
    }
    must(bench.config.flops() > 0.0 && bench.config.activations() > 0.0, "the cost is stated");
    let some_dropped: Vec<bool> = (0..BATCH).map(|i| i == 0).collect();
    let prediction = bench.predict(&bench.condition.dropped(&some_dropped));
    let gradients = bench.gradients(bench.process.loss(prediction, &bench.example).mean());
    let silent = silent(&gradients);
    must(silent.is_empty(), &format!("gradients reach every parameter; they do not reach {silent:?}"));
    failures.extend(fields::<Box<dyn BackbonePlugin>>(entry, Kind::Backbone, &|new| {
        let problems = new.check();
        if !problems.is_empty() {
            return Err(problems);
        }
        let network = new.init(&Device::flex());
        let shapes = weights::parameters(&network);
        let init: Vec<_> = shapes.iter().map(|(path, shape, _)| new.initializer(path, shape)).collect();
        let bench = Bench::new(&serde_json::to_value(new).expect("plugins can be written"));
        let predicted = values(bench.predict(&bench.condition));
        Ok(format!("{shapes:?} {init:?} {predicted:?} {:?} {:?}", new.accepts(), new.process()))
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
    let network = Counting { network: bench.online.valid(), predicted: AtomicUsize::new(0) };
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
        network.predicted.store(0, Ordering::Relaxed);
        let latent = sampler.sample(&mut model, &mut noise, &mut |_: &crate::sampler::Progress<'_>| seen += 1);
        let drawn = match latent {
            Latent::Values(x) => values(x),
            Latent::Ids(ids) | Latent::Levels { ids, .. } => values(ids.float().unsqueeze::<3>()),
        };
        (drawn, model.nfe(), seen, network.predicted.load(Ordering::Relaxed))
    };
    let (whole, nfe, seen, _) = draw(&*sampler, 0, 0, 4);
    must(whole.iter().all(|v| v.is_finite()), "samples are finite");
    must(nfe == sampler.evaluations(&shape), "`evaluations` is what one draw evaluates");
    must(seen > 0, "every step is reported");
    must(draw(&*sampler, 0, 0, 4).0 == whole, "the same seed gives the same samples");
    must(draw(&*sampler, 1, 0, 4).0 != whole, "another seed gives other samples");
    let halves = [draw(&*sampler, 0, 0, 2).0, draw(&*sampler, 0, 2, 2).0].concat();
    let apart = halves.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let largest = whole.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
    must(apart <= 1e-3 * largest, "samples do not depend on how they are batched");
    failures.extend(fields::<Box<dyn SamplerPlugin>>(entry, Kind::Sampler, &|new| {
        let mut problems = new.check();
        problems.extend(new.check_process(&*bench.process));
        problems.extend(new.check_shape(&shape));
        if let Some(field) = new.needs_variance().filter(|_| !bench.config.accepts().variance) {
            problems.push(Problem::new(field, "the backbone has no variance"));
        }
        if problems.is_empty() { Ok(format!("{:?}", draw(&**new, 0, 0, 2))) } else { Err(problems) }
    }));
    failures
}

/// What a tokenizer must hold, on images of the given shape. The files that the entry names exist.
pub fn tokenizer(entry: &Value, image: ImageShape) -> Vec<String> {
    let mut failures = round_trip::<Box<dyn TokenizerPlugin>>(entry);
    let Some(mut tokenizer) = parse::<Box<dyn TokenizerPlugin>>(entry) else { return failures };
    let device = Device::flex();
    let shape = match tokenizer.latent_shape(image) {
        Ok(shape) => shape,
        Err(problems) => return vec![format!("images {image:?} have a latent: {problems:?}")],
    };
    if let Err(error) = tokenizer.load(&device) {
        return vec![format!("its weights are read: {error}")];
    }
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(what.to_string());
        }
    };
    must(tokenizer.image_shape(shape.clone()) == image, "`image_shape` is the inverse of `latent_shape`");
    let [channels, height, width] = image;
    let pixels = Random::new(6).uniform("image", 0, 0, 3 * image.iter().product::<usize>());
    let pixels: Vec<f64> = pixels.into_iter().map(|u| 2.0 * u - 1.0).collect();
    let images: Tensor<4> = tensor(&pixels, [3, channels, height, width], DType::F32, &device);
    // All numbers of a latent, sample by sample: ids and what feeds them.
    let numbers = |latent: &Latent| match latent.clone() {
        Latent::Values(x) => vec![values(x)],
        Latent::Ids(ids) => vec![values(ids)],
        Latent::Levels { ids, features } => vec![values(ids), values(features)],
    };
    let latent = tokenizer.encode(images.clone());
    let sizes = match &latent {
        Latent::Values(x) => (None, x.dims()),
        Latent::Ids(ids) => (shape.vocabulary, [ids.dims()[0], ids.dims()[1], shape.channels]),
        Latent::Levels { features, .. } => (shape.vocabulary, features.dims()),
    };
    let stated = [3, shape.positions(), shape.channels];
    must(sizes == (shape.vocabulary, stated), "a latent has the stated shape");
    must(numbers(&latent).concat().iter().all(|v| v.is_finite()), "latents are finite");
    if let Some(vocabulary) = shape.vocabulary {
        let ids = values(latent.clone().ids());
        must(ids.iter().all(|id| (0.0..vocabulary as f64).contains(id)), "tokens are below the vocabulary");
    }
    must(tokenizer.codec().is_some() != shape.levels.is_empty(), "levels, and only they, come with a codec");
    if let (Some(codec), Latent::Levels { ids, features }) = (tokenizer.codec(), &latent) {
        let mut firsts = 0;
        let level = |side: &usize| {
            firsts += side * side;
            ids.clone().narrow(1, firsts - side * side, side * side)
        };
        let before: Vec<_> = shape.levels[..shape.levels.len() - 1].iter().map(level).collect();
        let same = values(codec.features(&before, 3, &device)) == values(features.clone());
        must(same, "the codec makes of the tokens the features that `encode` makes");
    }
    let close = |a: &[Vec<f64>], b: &[Vec<f64>]| {
        a.iter().zip(b).all(|(a, b)| {
            let largest = b.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * largest)
        })
    };
    let first = numbers(&tokenizer.encode(images.clone().narrow(0, 0, 1)));
    let of_first: Vec<Vec<f64>> = numbers(&latent).iter().map(|all| all[..all.len() / 3].to_vec()).collect();
    must(close(&first, &of_first), "a latent does not depend on its batch");
    let decoded = tokenizer.decode(latent, image);
    must(decoded.dims() == images.dims(), "a latent decodes to an image of the shape it had");
    must(values(decoded).iter().all(|v| v.is_finite()), "decoded images are finite");
    failures.extend(fields::<Box<dyn TokenizerPlugin>>(entry, Kind::Tokenizer, &|new| {
        let problems = new.check();
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut new = new.clone();
        let shape = match new.latent_shape(image) {
            Ok(shape) => shape,
            Err(problems) => return Ok(format!("{problems:?}")),
        };
        // Weights of another size are refused: that, too, is a change.
        if let Err(error) = new.load(&device) {
            return Ok(error.to_string());
        }
        let latent = new.encode(images.clone());
        Ok(format!("{shape:?} {:?} {:?}", numbers(&latent), values(new.decode(latent, image))))
    }));
    failures
}

/// A network that counts the positions it predicts: what a cache saves.
#[derive(Debug)]
struct Counting {
    network: BoxBackbone,
    predicted: AtomicUsize,
}

impl Backbone for Counting {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let prediction = self.network.predict(input, condition, control);
        self.predicted.fetch_add(prediction.dims()[1], Ordering::Relaxed);
        prediction
    }
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

/// Fields of an entry that change nothing, whatever is written there. `acts` says what a plugin does, or why it is not
/// sound: a refusal that names the field has heard it.
fn fields<T: Serialize + DeserializeOwned>(
    entry: &Value,
    kind: Kind,
    acts: &dyn Fn(&T) -> Result<String, Problems>,
) -> Vec<String> {
    let Some(plugin) = parse::<T>(entry) else { return Vec::new() };
    let (Ok(before), written) = (acts(&plugin), serde_json::to_value(&plugin).expect("plugins can be written")) else {
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
                let heard = place.as_str();
                // A name or a switch that is refused is one that was heard, whatever the refusal names.
                let refusal_counts = !value.is_number();
                // Another type has other fields: they all take their defaults.
                let (place, value) = match place.strip_suffix("/type") {
                    Some(parent) => (parent, serde_json::json!({ "type": value })),
                    None => (place.as_str(), value),
                };
                *changed.pointer_mut(place).expect("a place of it") = value;
                in_range(&changed)
                    && parse::<T>(&changed).is_some_and(|plugin| match acts(&plugin) {
                        Ok(after) => after != before,
                        Err(problems) => {
                            let named = |at: &String| !at.is_empty() && heard.starts_with(at.as_str());
                            refusal_counts || problems.iter().any(|problem| problem.at.first().is_some_and(named))
                        }
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
            // What a setting of several fields may be, where it is none.
            ("examples", Value::Array(whole)) => found.extend(whole.iter().filter(|each| each.is_object()).cloned()),
            _ => constants(value, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| constants(item, found)),
        _ => {}
    }
}

/// Values to try in place of one.
fn others(value: &Value, words: &[Value]) -> Vec<Value> {
    let numbers = [0.5, 0.3, 0.0, 1.0, 1.5, 2.0, 3.0].map(Value::from);
    let whole = [0, 1, 2, 3, 4, 6, 8, 16, 20, 50, 64, 200].map(Value::from);
    let mut others: Vec<Value> = match value {
        Value::Bool(is) => vec![Value::Bool(!is)],
        Value::Number(_) => numbers.into_iter().chain(whole).collect(),
        Value::String(_) => {
            [Value::Null].into_iter().chain(words.iter().cloned()).chain([Value::from("another")]).collect()
        }
        _ => [Value::Bool(true)].into_iter().chain(numbers).chain(whole).chain(words.iter().cloned()).collect(),
    };
    others.retain(|other| other != value);
    others
}

fn values<const D: usize, K: burn::tensor::kind::Basic>(tensor: Tensor<D, K>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_into_vec::<f64>().expect("converted above")
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
            (ConditionKind::Tokens, _) => {
                let count = accepts.text_width.unwrap_or(8);
                let length = accepts.text_length.unwrap_or(4).min(4);
                let drawn = random.uniform("text", 0, 0, BATCH * length);
                let ids: Vec<usize> = drawn.into_iter().map(|u| (u * count as f64) as usize).collect();
                Condition::Tokens { ids: ids.chunks(length).map(<[usize]>::to_vec).collect(), null: vec![0; length] }
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

    /// The predictions of the batch, read step by step through a cache.
    fn cached(&self, guidance: Option<f64>) -> Vec<f64> {
        let control = Control {
            guidance: guidance.map(|number| vec![number; BATCH]),
            cache: Some(Cache::default()),
            ..Control::default()
        };
        let sides = self.config.latent_shape().levels;
        let network = self.online.valid();
        if let Input::Masked { .. } = &self.example.input {
            // The head asks again and again: what it reads was kept by the first time.
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

    /// Losses of the batch in some order, and their mean's gradients.
    fn losses(
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
            reference: Some(&self.other),
            stopped_precision: MatmulPrecision::Highest,
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

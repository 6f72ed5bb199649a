//! The promises of a backbone.

use super::bench::{BATCH, Bench, silent, values};
use super::entry::{fields, round_trip};
use super::hooks::hooks;

use burn::module::Module;
use burn::tensor::Device;
use framework::network::backbone::{Backbone, Control};
use framework::network::condition::{Condition, ConditionShape};
use framework::nn::hooks::Hooked;
use framework::nn::parameters;
use framework::plugin::{BackbonePlugin, Kind};
use framework::process::Input;
use serde_json::Value;

/// Checks a backbone. Choose small sizes.
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
    must(batch == BATCH && positions == asked, "a prediction has shape [B, position, channel]");
    must(channels >= shape.vocabulary.unwrap_or(shape.channels), "a prediction has the latent's channels");
    let whole = numbers(&bench.example.input, &bench.condition, guidance);
    must(whole.iter().all(|v| v.is_finite()), "predictions are finite");
    must(
        numbers(&bench.example.input, &bench.condition, guidance) == whole,
        "the same input gives the same prediction",
    );
    if accepts.cache {
        let cached = bench.cached(guidance, &Hooked::default());
        let apart = cached.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
        let largest = whole.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
        must(cached.len() == whole.len() && apart <= 1e-5 * largest, "predictions with and without a cache are equal");
    }
    let first = numbers(&bench.example.input.select(&[0]), &bench.condition.select(&[0]), guidance);
    let apart = first.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    let largest = whole.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
    must(apart <= 1e-4 * largest, "a sample's prediction does not depend on its batch");
    if accepts.condition != ConditionShape::None {
        must(numbers(&bench.example.input, &bench.condition.null(), guidance) != whole, "the condition has an effect");
    }
    if accepts.guidance_input {
        must(numbers(&bench.example.input, &bench.condition, Some(0.9)) != whole, "the guidance number has an effect");
    }
    let parameters = parameters::parameters(&bench.config.init(&Device::flex()));
    for foreign in bench.config.formats() {
        let mut names: Vec<String> = parameters.iter().map(|(path, ..)| (foreign.of)(path).name).collect();
        names.sort();
        names.dedup();
        must(names.len() == parameters.len(), "no two parameters have the same official name");
    }
    must(bench.config.flops() > 0.0 && bench.config.activations() > 0.0, "the cost is stated");
    let some_dropped: Vec<bool> = (0..BATCH).map(|i| i == 0).collect();
    let prediction = bench.predict(&bench.condition.dropped(&some_dropped));
    let gradients = bench.gradients(bench.process.loss(prediction, &bench.example).mean());
    let silent = silent(&gradients);
    must(silent.is_empty(), &format!("gradients reach every parameter; they do not reach {silent:?}"));
    failures.extend(hooks(&bench, guidance));
    failures.extend(fields::<Box<dyn BackbonePlugin>>(entry, Kind::Backbone, &|new| {
        let problems = new.check();
        if !problems.is_empty() {
            return Err(problems);
        }
        let network = new.init(&Device::flex());
        let shapes = parameters::parameters(&network);
        let init: Vec<_> = shapes.iter().map(|(path, shape, _)| new.initializer(path, shape)).collect();
        let bench = Bench::new(&serde_json::to_value(new).expect("plugins serialize"));
        let predicted = [values(bench.predict(&bench.condition)), values(bench.predict_training())];
        Ok(format!("{shapes:?} {init:?} {predicted:?} {:?} {:?}", new.accepts(), new.process()))
    }));
    failures
}

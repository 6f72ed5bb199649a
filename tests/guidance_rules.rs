//! Guidance rules from the document to the sample: which networks `check` refuses, and what holds through denoiser and
//! sampler, whatever the prediction space of a rule is.

use framework::burn::tensor::{DType, Device, Tensor};
use framework::network::backbone::{Backbone, Control};
use framework::network::condition::Condition;
use framework::plugin::{GuidancePlugin, SamplerPlugin};
use framework::process::diffusion::VpConfig;
use framework::process::flow::InterpolantConfig;
use framework::process::{Input, Latent, LatentShape, Process};
use framework::random::{Random, per_sample};
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::sampler::{SamplerStep, SeededNoise};
use registry::Registry;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use unguided as _;

/// Returns the problems of an example with another guidance rule.
fn problems(example: &str, rule: Value) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pipelines").join(example);
    let mut document: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    document["guidance"] = rule;
    let checked = Registry::linked().parse_and_check(&document.to_string());
    checked.err().unwrap_or_default().into_iter().map(|problem| problem.to_string()).collect()
}

/// Asserts that a rule is refused on an example for one reason, which contains `words`.
fn assert_refused(example: &str, rule: Value, words: &str) {
    let found = problems(example, rule.clone());
    assert!(found.len() == 1 && found[0].contains(words), "{example} with {rule}: {found:?}");
}

/// Returns each rule on whole predictions, with settings that have an effect.
fn rules() -> Vec<Value> {
    vec![
        json!({ "type": "cfg", "scale": 3.0, "rescale": 0.7, "rescale_space": "x" }),
        json!({ "type": "cfg", "scale": 3.0, "sigma_interval": { "low": 0.2, "high": 2.0 } }),
        json!({ "type": "adaptive", "scale": 3.0, "threshold": 0.9 }),
        json!({ "type": "apg", "scale": 3.0, "eta": 0.3, "momentum": -0.5, "norm_threshold": 1.5 }),
        json!({ "type": "apg", "scale": 3.0, "anchor": "unconditional", "space": null }),
        json!({ "type": "tcfg", "scale": 3.0, "space": "v" }),
        json!({ "type": "cfg_zero_star", "scale": 3.0, "zero_evaluations": 1 }),
        json!({ "type": "beta_cfg", "scale": 3.0, "a": 2.0, "b": 2.0, "gamma": 0.5 }),
        json!({ "type": "mambo", "scale": 3.0, "alpha": 1.0 }),
        json!({ "type": "cfg_norm", "scale": 3.0, "over": "sample", "space": "x" }),
        json!({ "type": "perp_neg", "scale": 3.0, "negative": 4, "negative_scale": 0.5 }),
    ]
}

fn fdg() -> Value {
    json!({ "type": "fdg", "scales": [3.0, 2.0, 1.0] })
}

#[test]
fn rules_on_whole_predictions_need_a_noise_path() {
    for rule in rules() {
        for example in ["digits-llamagen-cfg-tiny.json", "digits-var-cfg-tiny.json"] {
            assert_refused(example, rule.clone(), "needs a noise path");
        }
        for example in ["digits-dit-cfg-tiny.json", "digits-sit-cfg-tiny.json", "digits-mar-cfg-tiny.json"] {
            assert_eq!(problems(example, rule.clone()), [""; 0], "{example} with {rule}");
        }
    }
}

#[test]
fn a_second_prediction_needs_a_sampler_that_uses_it() {
    let refused = |sampler: Value| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pipelines/digits-dit-cfg.json");
        let mut document: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        document["guidance"] = json!({ "type": "cfg_pp" });
        document["sampler"] = sampler;
        Registry::linked().parse_and_check(&document.to_string()).err().map(|problems| problems[0].what.clone())
    };
    assert_eq!(refused(json!({ "type": "ddim", "steps": 10 })), None);
    for sampler in [
        json!({ "type": "heun", "steps": 10 }),
        json!({ "type": "pndm", "steps": 10 }),
        json!({ "type": "k_diffusion", "steps": 10, "method": "lms" }),
        json!({ "type": "dpm_solver_pp", "steps": 10, "order": 3 }),
    ] {
        let what = refused(sampler.clone()).unwrap_or_default();
        assert!(what.contains("hands a second prediction to the sampler"), "{sampler}: {what}");
    }
}

#[test]
fn frequency_levels_need_a_grid() {
    assert_eq!(problems("digits-dit-cfg-tiny.json", fdg()), [""; 0]);
    assert_eq!(problems("shapes-sd15-cfg-tiny.json", fdg()), [""; 0]);
    assert_refused("digits-mar-cfg-tiny.json", fdg(), "filters over a grid of at least 4x4 positions");
    let deep = json!({ "type": "fdg", "scales": [3.0, 2.0, 1.0, 1.0, 1.0] });
    assert_refused("digits-dit-cfg-tiny.json", deep, "has 8x8");
}

#[test]
fn a_negative_class_must_exist() {
    let rule = |class: usize| json!({ "type": "perp_neg", "scale": 2.0, "negative": class });
    assert_eq!(problems("digits-dit-cfg-tiny.json", rule(9)), [""; 0]);
    assert_refused("digits-dit-cfg-tiny.json", rule(10), "names class 10; backbone \"dit\" has 10");
    assert_refused("shapes-sd15-cfg-tiny.json", rule(0), "backbone \"sd15\" reads none");
    // Plain guidance away from a class also serves networks that predict logits.
    let cfg = |class: usize| json!({ "type": "cfg", "scale": 2.0, "negative": class });
    for example in ["digits-dit-cfg-tiny.json", "digits-llamagen-cfg-tiny.json", "digits-var-cfg-tiny.json"] {
        assert_eq!(problems(example, cfg(9)), [""; 0], "{example}");
        assert_refused(example, cfg(10), "names class 10");
    }
}

#[test]
fn a_space_that_is_undefined_at_pure_noise_is_refused() {
    // A flow starts at alpha = 0, where the noise prediction does not determine the velocity.
    let rule = |space: &str| json!({ "type": "tcfg", "scale": 2.0, "space": space });
    for space in ["eps", "score"] {
        assert_refused("digits-sit-cfg-tiny.json", rule(space), "at pure noise");
        assert_eq!(problems("digits-dit-cfg-tiny.json", rule(space)), [""; 0]);
    }
    assert_eq!(problems("digits-sit-cfg-tiny.json", rule("x")), [""; 0]);
}

/// A network that predicts a nonlinear function of its input, different for every class. Its slopes are small, so that
/// rounding errors stay small from step to step.
#[derive(Debug)]
struct Toy;

impl Backbone for Toy {
    fn predict(&self, input: &Input, condition: &Condition, _: &Control) -> Tensor<3> {
        let (Input::Noisy { x_t, .. }, Condition::Class(classes)) = (input, condition) else { unreachable!() };
        let frequency: Vec<f64> =
            classes.iter().map(|class| class.map_or(0.2, |class| 0.1 + 0.05 * class as f64)).collect();
        let frequency = per_sample(&frequency, x_t);
        (x_t.clone() * frequency.clone()).sin() + frequency
    }
}

/// Samples the latents `first..first + count`, each with its own class.
fn sample(process: &dyn Process, sampler: &Value, rule: &Value, first: usize, count: usize) -> Vec<f64> {
    let sampler: Box<dyn SamplerPlugin> = serde_json::from_value(sampler.clone()).unwrap();
    let rule: Box<dyn GuidancePlugin> = serde_json::from_value(rule.clone()).unwrap();
    let shape = LatentShape::values([4, 5], 2);
    let condition = Condition::Class((first..first + count).map(Some).collect());
    let mut model = Denoiser::new(&Toy, process, &*rule, GuidanceNumbers::NONE, &condition, &shape);
    let (random, dtype, device) = (Random::new(5), DType::F64, Device::flex());
    let mut noise = SeededNoise { random, first, count, shape: shape.clone(), dtype, device };
    let latent = sampler.sample(&mut model, &mut noise, &mut |_: &SamplerStep<'_>| {});
    let Latent::Values(x) = latent else { unreachable!() };
    x.into_data().try_into_vec::<f64>().unwrap()
}

/// Returns a diffusion and a flow, each with a sampler.
fn worlds() -> Vec<(Box<dyn Process>, Value)> {
    vec![
        (Box::new(VpConfig::default().process()), json!({ "type": "ddim", "steps": 6 })),
        (Box::new(InterpolantConfig::default().process()), json!({ "type": "euler", "steps": 6 })),
    ]
}

fn assert_close(got: &[f64], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (a, b) in got.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-8 * (1.0 + b.abs()), "{what}: {a} against {b}");
    }
}

#[test]
fn a_batch_equals_its_samples_drawn_one_at_a_time() {
    for (process, sampler) in worlds() {
        for rule in rules().into_iter().chain([fdg()]) {
            let together = sample(&*process, &sampler, &rule, 0, 3);
            for (i, expected) in together.chunks(together.len() / 3).enumerate() {
                assert_close(&sample(&*process, &sampler, &rule, i, 1), expected, &rule.to_string());
            }
            assert_eq!(sample(&*process, &sampler, &rule, 0, 3), together, "{rule} starts fresh");
        }
    }
}

#[test]
fn neutral_settings_sample_what_cfg_samples_in_every_space() {
    let cfg = json!({ "type": "cfg", "scale": 2.5 });
    for (process, sampler) in worlds() {
        let expected = sample(&*process, &sampler, &cfg, 0, 2);
        for rule in [
            json!({ "type": "apg", "scale": 2.5, "eta": 1.0 }),
            json!({ "type": "apg", "scale": 2.5, "eta": 1.0, "anchor": "unconditional", "space": "v" }),
            json!({ "type": "fdg", "scales": [2.5, 2.5, 2.5] }),
            json!({ "type": "adaptive", "scale": 2.5, "threshold": 1.1 }),
            json!({ "type": "beta_cfg", "scale": 2.5, "a": 1.0, "b": 1.0, "gamma": 0.0 }),
            json!({ "type": "mambo", "scale": 2.5, "alpha": 0.0, "space": "x" }),
            json!({ "type": "cfg_norm", "scale": 2.5, "limit": 1000.0, "over": "sample" }),
            json!({ "type": "cfg", "scale": 2.5, "sigma_interval": { "low": 0.0, "high": 1e6 } }),
        ] {
            let got = sample(&*process, &sampler, &rule, 0, 2);
            if rule["sigma_interval"].is_null() || process.path().unwrap().at(1.0).alpha > 0.0 {
                assert_close(&got, &expected, &rule.to_string());
            } else {
                // A flow starts at an infinite noise level, which no interval contains.
                assert_ne!(got, expected);
            }
        }
    }
}

#[test]
fn scale_one_samples_the_conditional() {
    for (process, sampler) in worlds() {
        let expected = sample(&*process, &sampler, &json!({ "type": "none" }), 0, 2);
        for mut rule in rules() {
            // Away from `cfg`-like neutral settings, these two are not conditional at scale 1.
            if ["beta_cfg", "perp_neg"].contains(&rule["type"].as_str().unwrap())
                || rule["zero_evaluations"] == 1
                || rule["anchor"] == "unconditional"
            {
                continue;
            }
            rule["scale"] = json!(1.0);
            assert_close(&sample(&*process, &sampler, &rule, 0, 2), &expected, &rule.to_string());
        }
    }
}

#[test]
fn the_result_of_rescale_depends_on_its_space() {
    let rule = |space: &str| json!({ "type": "cfg", "scale": 3.0, "rescale": 1.0, "rescale_space": space });
    for (process, sampler) in worlds() {
        let [x, v] = ["x", "v"].map(|space| sample(&*process, &sampler, &rule(space), 0, 1));
        assert!(x.iter().zip(&v).any(|(x, v)| (x - v).abs() > 1e-3));
    }
}

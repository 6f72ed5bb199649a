//! Guidance rules against the guiders of diffusers, on recorded predictions (`guidance_diffusers.safetensors`; its
//! section of `tests/goldens/data/MANIFEST.md` states the settings of diffusers per case).

use framework::burn::tensor::Tensor;
use framework::nn::hooks::AttentionSite;
use framework::nn::{Span, heads, merge_heads};
use framework::plugin::GuidancePlugin;
use framework::process::LatentShape;
use framework::sampling::guidance::{Branch, Moment, Setting, Trajectory};
use goldens::{Golden, close, values};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use unguided as _;

const FILE: &str = "guidance_diffusers.safetensors";
const TOLERANCE: f64 = 1e-5;
const SAMPLES: usize = 2;
const CHANNELS: usize = 4;
const SIDE: usize = 8;

/// One recorded case: its name, the number of steps of the whole trajectory, and our rule.
type Case = (&'static str, usize, Value);

/// Returns all cases. Two settings of diffusers differ from ours by 1. In the original formulation (`original`), the
/// guider's scale is our scale - 1. If only a perturbed pass guides (`alone`), the guider's scale is our strength + 1,
/// except in the original formulation. No step is at an end of an interval that diffusers excludes.
fn cases() -> Vec<Case> {
    let early = json!({ "type": "interval", "from": 0.01, "to": 0.15 });
    let after_the_first = json!({ "type": "interval", "from": 0.25, "to": 1.0 });
    let middle = json!({ "type": "interval", "from": 0.25, "to": 0.7 });
    let apg = |scale: f64, anchor: &str| json!({ "type": "apg", "scale": scale, "anchor": anchor, "space": null });
    vec![
        ("cfg", 4, json!({ "type": "cfg", "scale": 3.0 })),
        ("cfg_original", 4, json!({ "type": "cfg", "scale": 3.0 })),
        ("cfg_rescale", 4, json!({ "type": "cfg", "scale": 5.0, "rescale": 0.7 })),
        ("cfg_original_rescale", 4, json!({ "type": "cfg", "scale": 3.0, "rescale": 1.0 })),
        ("cfg_interval", 4, json!({ "type": "cfg", "scale": 3.0, "rescale": 0.5, "schedule": middle })),
        ("apg_eta", 4, with(apg(4.0, "unconditional"), json!({ "eta": 0.3 }))),
        ("apg", 4, with(apg(4.0, "unconditional"), json!({ "momentum": -0.5, "norm_threshold": 16.0 }))),
        (
            "apg_original",
            4,
            with(apg(4.0, "conditional"), json!({ "eta": 0.5, "momentum": -0.75, "norm_threshold": 16.0 })),
        ),
        ("tcfg", 4, json!({ "type": "tcfg", "scale": 4.0 })),
        ("tcfg_original", 4, json!({ "type": "tcfg", "scale": 3.5 })),
        ("cfg_zero_star", 4, json!({ "type": "cfg_zero_star", "scale": 4.0, "zero_evaluations": 1, "space": null })),
        ("cfg_zero_star_original", 4, json!({ "type": "cfg_zero_star", "scale": 3.5, "space": null })),
        ("mambo", 4, json!({ "type": "mambo", "scale": 10.0 })),
        ("mambo_original", 4, json!({ "type": "mambo", "scale": 6.0, "alpha": 1.5 })),
        ("auto_guidance", 4, json!({ "type": "weak_model", "scale": 2.5 })),
        ("auto_guidance_original", 4, json!({ "type": "weak_model", "scale": 2.5 })),
        ("slg", 10, json!({ "type": "slg", "scale": 4.0, "blocks": [1], "schedule": early })),
        ("slg_original", 10, json!({ "type": "slg", "scale": 4.0, "blocks": [1], "schedule": early })),
        ("slg_alone", 10, json!({ "type": "slg", "strength": 1.8, "blocks": [1], "schedule": early })),
        ("pag", 4, json!({ "type": "pag", "scale": 4.0, "blocks": [1], "schedule": after_the_first })),
        ("pag_original_alone", 4, json!({ "type": "pag", "blocks": [1], "schedule": after_the_first })),
        ("seg", 4, json!({ "type": "seg", "scale": 4.0, "blocks": [1], "schedule": after_the_first })),
        ("seg_alone", 4, json!({ "type": "seg", "strength": 2.0, "blocks": [1], "schedule": after_the_first })),
    ]
}

/// Returns `rule` with further fields.
fn with(mut rule: Value, fields: Value) -> Value {
    let (Value::Object(rule_fields), Value::Object(fields)) = (&mut rule, fields) else { panic!("two objects") };
    rule_fields.extend(fields);
    rule
}

/// Starts a rule on latents of [`SIDE`] x [`SIDE`] positions. Its settings must pass the check phase.
fn start(rule: &Value) -> Box<dyn Trajectory> {
    let rule: Box<dyn GuidancePlugin> = serde_json::from_value(rule.clone()).expect("the rule is known");
    let problems: Vec<String> = rule.check().iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems:?}");
    let mut trajectory = rule.start();
    let shape = LatentShape::values([SIDE; 2], CHANNELS);
    trajectory.begin(&Setting { shape: &shape, path: None, samples: SAMPLES });
    trajectory
}

fn moment(evaluation: usize, steps: usize) -> Moment {
    let progress = evaluation as f64 / steps as f64;
    Moment { progress, t: 1.0 - progress, evaluation, channels: CHANNELS }
}

/// Returns step `step` of recorded latents, `[step, B, C, H, W]`, as `[B, position, channel]`.
fn at_step(recorded: &Tensor<5>, step: usize) -> Tensor<3> {
    recorded.clone().narrow(0, step, 1).reshape([SAMPLES, CHANNELS, SIDE * SIDE]).swap_dims(1, 2)
}

#[test]
fn rules_return_what_the_guiders_of_diffusers_return() {
    let golden = Golden::open(FILE);
    let inputs = ["cond", "null", "perturbed"].map(|name| golden.tensor::<5>(name));
    for (name, steps, rule) in cases() {
        let expected = golden.tensor::<5>(name);
        let mut trajectory = start(&rule);
        let (mut got, mut recorded) = (Vec::new(), Vec::new());
        for step in 0..expected.dims()[0] {
            let moment = moment(step, steps);
            let prediction = |branch: &Branch| {
                let input = match branch.name {
                    "given" => 0,
                    "null" => 1,
                    _ => 2,
                };
                at_step(&inputs[input], step)
            };
            let predictions = trajectory.branches(&moment).iter().map(prediction).collect();
            got.extend(values(trajectory.combine(&moment, predictions).prediction));
            recorded.extend(values(at_step(&expected, step)));
        }
        assert!(got.iter().all(|v| v.is_finite()), "{name} is finite");
        close(name, &got, &recorded, TOLERANCE);
    }
}

#[test]
fn the_blurs_of_seg_are_the_blurs_of_diffusers() {
    let golden = Golden::open(FILE);
    let site = AttentionSite::own(1);
    for side in [4, 5] {
        let qkv = ["queries", "keys", "values"].map(|part| heads(golden.tensor(&format!("seg_blur.{side}.{part}")), 2));
        for (name, blur) in [
            ("mean", json!({ "type": "diffusers", "sigma": 2.0 })),
            ("mean", json!({ "type": "mean" })),
            ("blur", json!({ "type": "diffusers", "sigma": 10000.0 })),
            ("blur", json!({ "type": "gaussian", "sigma": 10000.0 })),
            ("sigma0.4", json!({ "type": "gaussian", "sigma": 0.4 })),
            ("sigma1.0", json!({ "type": "gaussian", "sigma": 1.0 })),
        ] {
            let mut trajectory = start(&json!({ "type": "seg", "blocks": [1], "blur": blur }));
            let branches = trajectory.branches(&moment(0, 1));
            let perturbed = branches.last().expect("a perturbed pass");
            let got = values(merge_heads(perturbed.hooks.attend(site, qkv.clone(), Span::All, None, None)));
            assert!(got.iter().all(|v| v.is_finite()), "{name} at side {side} is finite");
            close(name, &got, &golden.numbers(&format!("seg_blur.{side}.{name}")), TOLERANCE);
        }
    }
}

#[test]
fn every_recorded_case_is_compared() {
    let golden = Golden::open(FILE);
    let input = |name: &&str| ["cond", "null", "perturbed"].contains(name) || name.starts_with("seg_blur.");
    let recorded: BTreeSet<&str> = golden.names().filter(|name| !input(name)).collect();
    let compared: BTreeSet<&str> = cases().iter().map(|(name, ..)| *name).collect();
    assert_eq!(recorded, compared);
}

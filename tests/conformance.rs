//! Every registered objective, backbone and sampler keeps the promises of its kind. One line a plugin.

use framework::conformance;
use framework::plugin::Kind;
use registry::Registry;
use serde_json::{Value, json};
use unguided as _;

/// A DiT small enough for tests, with or without guidance input.
fn dit(more: Value) -> Value {
    let mut entry = json!({
        "type": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "input_size": 4,
        "in_channels": 2, "num_classes": 4, "mlp_ratio": 2.0, "process": { "timesteps": 50 }
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

/// A MAR small enough for tests: 64 tokens of 2 by 2 positions.
fn mar(more: Value) -> Value {
    let mut entry = json!({
        "type": "mar", "img_size": 32, "vae_stride": 2, "patch_size": 2, "vae_embed_dim": 1, "class_num": 4,
        "encoder_embed_dim": 8, "encoder_depth": 1, "encoder_num_heads": 2, "diffloss_d": 1, "diffloss_w": 8,
        "buffer_size": 2, "mlp_ratio": 2.0, "mask_ratio_min": 0.2, "diffusion_batch_mul": 2, "process": { "timesteps": 50 }
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

#[track_caller]
fn holds(what: &Value, failures: Vec<String>) {
    assert!(failures.is_empty(), "{what} does not hold that\n  {}", failures.join("\n  "));
}

#[test]
fn objectives() {
    let registry = Registry::linked();
    for entry in registry.entries().iter().filter(|entry| entry.kind == Kind::Objective) {
        for variant in registry.variants(entry) {
            let objective = registry.objective(variant.clone()).unwrap();
            let input = if objective.needs().guidance_input { json!({ "guidance_input": "mlp" }) } else { json!({}) };
            // What compares distributions of tokens has no meaning for numbers: the check phase refuses the pair.
            if variant["distance"] != "kullback_leibler" {
                holds(&variant, conformance::objective(&variant, &dit(input)));
            }
        }
    }
}

#[test]
fn objectives_on_masked_tokens() {
    let registry = Registry::linked();
    for entry in registry.entries().iter().filter(|entry| entry.kind == Kind::Objective) {
        // Most tokens are hidden in most batches: what mg teaches below a share of them is taught anywhere here.
        let t_high = json!({ "type": entry.name, "t_high": 1.0 });
        let entry = if entry.name == "mg" { t_high } else { json!({ "type": entry.name }) };
        let input = registry.objective(entry.clone()).unwrap().needs().guidance_input;
        holds(&entry, conformance::objective(&entry, &mar(json!({ "guidance_input": input }))));
    }
}

#[test]
fn backbones() {
    for more in [
        json!({}),
        json!({ "guidance_input": "linear" }),
        json!({ "guidance_input": "mlp", "learn_sigma": true, "process": { "variance_loss": true } }),
    ] {
        let entry = dit(more);
        holds(&entry, conformance::backbone(&entry));
    }
    let untrained = json!({ "guidance_input": true, "process": { "timesteps": 50, "variance_loss": false } });
    for more in [json!({}), untrained] {
        let entry = mar(more);
        holds(&entry, conformance::backbone(&entry));
    }
}

#[test]
fn samplers() {
    for sampler in [
        json!({ "type": "ddim", "steps": 5, "eta": 0.5 }),
        json!({ "type": "ddpm", "steps": 5 }),
        json!({ "type": "dpm_solver_pp", "steps": 5 }),
    ] {
        holds(&sampler, conformance::sampler(&sampler, &dit(json!({ "learn_sigma": true }))));
    }
    let head = json!({ "type": "ddpm", "steps": 3, "variance": "learned_range" });
    let masked = json!({ "type": "masked", "iterations": 4, "head": head });
    holds(&masked, conformance::sampler(&masked, &mar(json!({}))));
}

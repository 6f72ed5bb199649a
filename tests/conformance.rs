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

/// A LlamaGen small enough for tests.
fn llamagen(more: Value) -> Value {
    let mut entry = json!({
        "type": "llamagen", "dim": 16, "n_layer": 2, "n_head": 2, "vocab_size": 7, "block_size": 9, "num_classes": 4,
        "multiple_of": 8
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

/// A VAR small enough for tests.
fn var(more: Value) -> Value {
    let mut entry = json!({
        "type": "var", "depth": 2, "embed_dim": 16, "num_heads": 2, "patch_nums": [1, 2, 3], "V": 7, "Cvae": 3,
        "num_classes": 4
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
            let input = if objective.needs().guidance_input { json!({ "guidance_input": "mlp" }) } else { json!({}) };
            holds(&variant, conformance::objective(&variant, &llamagen(input.clone())));
            holds(&variant, conformance::objective(&variant, &var(input)));
        }
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
    for entry in [
        llamagen(json!({})),
        llamagen(json!({ "guidance_input": "mlp" })),
        var(json!({})),
        var(json!({ "guidance_input": "mlp", "shared_aln": true })),
    ] {
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
    let sampler = json!({ "type": "autoregressive", "top_k": 5, "top_p": 0.9 });
    holds(&sampler, conformance::sampler(&sampler, &llamagen(json!({}))));
    let sampler = json!({ "type": "next_level", "top_k": [5], "top_p": [0.9] });
    holds(&sampler, conformance::sampler(&sampler, &var(json!({}))));
}

//! Every registered objective, backbone, sampler, tokenizer and feature space passes the conformance suite of its kind. One line per
//! plugin.

use framework::plugin::Kind;
use proofs::conformance;
use registry::Registry;
use serde_json::{Value, json};
use unguided as _;

/// Returns a DiT entry small enough for tests, with the fields of `more`.
fn dit(more: Value) -> Value {
    let mut entry = json!({
        "type": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "input_size": 4,
        "in_channels": 2, "num_classes": 4, "mlp_ratio": 2.0, "process": { "timesteps": 50 }
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

/// Returns a SiT entry small enough for tests.
fn sit(process: Value) -> Value {
    let mut entry = dit(json!({ "type": "sit" }));
    entry["process"] = process;
    entry
}

/// Returns an entry of a text-conditional U-Net small enough for tests.
fn sd15(more: Value) -> Value {
    let mut entry = json!({
        "type": "sd15", "sample_size": 4, "in_channels": 2, "block_out_channels": [8, 16], "layers_per_block": 1,
        "attention": [0], "num_heads": 2, "cross_attention_dim": 8, "norm_num_groups": 4, "process": { "timesteps": 50 }
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

/// Returns a LlamaGen entry small enough for tests.
fn llamagen(more: Value) -> Value {
    let mut entry = json!({
        "type": "llamagen", "dim": 16, "n_layer": 2, "n_head": 2, "vocab_size": 7, "block_size": 9, "num_classes": 4,
        "multiple_of": 8
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

/// Returns a VAR entry small enough for tests.
fn var(more: Value) -> Value {
    let mut entry = json!({
        "type": "var", "depth": 2, "embed_dim": 16, "num_heads": 2, "patch_nums": [1, 2, 3], "V": 7, "Cvae": 3,
        "num_classes": 4
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

/// Returns a MAR entry small enough for tests: 64 tokens of 2 by 2 positions.
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
    assert!(failures.is_empty(), "{what} violates\n  {}", failures.join("\n  "));
}

#[test]
fn objectives_conform() {
    let registry = Registry::linked();
    for entry in registry.entries().iter().filter(|entry| entry.kind == Kind::Objective) {
        for variant in registry.variants(entry) {
            let objective = registry.objective(variant.clone()).unwrap();
            let input = if objective.needs().guidance_input { json!({ "guidance_input": "mlp" }) } else { json!({}) };
            // The KL divergence compares token distributions. The check phase refuses it for continuous predictions.
            if variant["distance"] != "kullback_leibler" {
                holds(&variant, conformance::objective(&variant, &dit(input.clone())));
                let mut flow = sit(json!({}));
                flow.as_object_mut().unwrap().extend(input.as_object().unwrap().clone());
                holds(&variant, conformance::objective(&variant, &flow));
            }
            holds(&variant, conformance::objective(&variant, &llamagen(input.clone())));
            holds(&variant, conformance::objective(&variant, &var(input)));
        }
        // Most tokens are hidden in most batches, so few examples are below mg's default `t_high`. With 1, mg teaches
        // guidance everywhere.
        let t_high = json!({ "type": entry.name, "t_high": 1.0 });
        let entry = if entry.name == "mg" { t_high } else { json!({ "type": entry.name }) };
        let needs = registry.objective(entry.clone()).unwrap().needs();
        let input = if needs.guidance_input { json!({ "guidance_input": "mlp" }) } else { json!({}) };
        holds(&entry, conformance::objective(&entry, &mar(input)));
    }
}

#[test]
fn backbones_conform() {
    for more in [
        json!({}),
        json!({ "guidance_input": "linear" }),
        json!({ "guidance_input": "3_layer_mlp" }),
        json!({ "guidance_input": "mlp", "learn_sigma": true, "process": { "variance_loss": true } }),
    ] {
        let entry = dit(more);
        holds(&entry, conformance::backbone(&entry));
    }
    let encoder = json!({ "vocab_size": 9, "length": 4, "layers": 1, "num_heads": 2 });
    for more in [
        json!({}),
        json!({ "guidance_input": "scale_of_beta" }),
        json!({ "guidance_input": "linear", "text_encoder": encoder, "embedding_init": "unit_variance" }),
    ] {
        let entry = sd15(more);
        holds(&entry, conformance::backbone(&entry));
    }
    for process in [
        json!({}),
        json!({ "path": "gvp", "prediction": "eps", "weighting": "velocity" }),
        json!({ "path": "vp", "prediction": "score", "weighting": "likelihood" }),
    ] {
        let entry = sit(process);
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
    let untrained = json!({ "guidance_input": "mlp", "process": { "timesteps": 50, "variance_loss": false } });
    for more in [json!({}), untrained] {
        let entry = mar(more);
        holds(&entry, conformance::backbone(&entry));
    }
}

#[test]
fn samplers_conform() {
    for sampler in [
        json!({ "type": "ddim", "steps": 5, "eta": 0.5 }),
        json!({ "type": "ddpm", "steps": 5 }),
        json!({ "type": "dpm_solver_pp", "steps": 5 }),
        json!({ "type": "euler", "steps": 5 }),
        json!({ "type": "heun", "steps": 5 }),
        json!({ "type": "pndm", "steps": 5 }),
        json!({ "type": "k_diffusion", "steps": 5 }),
        json!({ "type": "k_diffusion", "steps": 5, "method": "euler_ancestral" }),
        json!({ "type": "k_diffusion", "steps": 5, "method": "dpmpp2m", "sigmas": { "type": "exponential" } }),
        json!({ "type": "euler_maruyama", "steps": 5, "last_step": "tweedie" }),
    ] {
        holds(&sampler, conformance::sampler(&sampler, &dit(json!({ "learn_sigma": true }))));
    }
    for sampler in [
        json!({ "type": "ddim", "steps": 5 }),
        json!({ "type": "dpm_solver_pp", "steps": 5 }),
        json!({ "type": "euler", "steps": 5, "shift": 3.0 }),
        json!({ "type": "heun", "steps": 5 }),
        json!({ "type": "euler_maruyama", "steps": 5 }),
    ] {
        holds(&sampler, conformance::sampler(&sampler, &sit(json!({}))));
    }
    let head = json!({ "type": "ddpm", "steps": 3, "variance": "learned_range" });
    let masked = json!({ "type": "masked", "iterations": 4, "head": head });
    holds(&masked, conformance::sampler(&masked, &mar(json!({}))));
    let sampler = json!({ "type": "autoregressive", "top_k": 5, "top_p": 0.9 });
    holds(&sampler, conformance::sampler(&sampler, &llamagen(json!({}))));
    let sampler = json!({ "type": "next_level", "top_k": [5], "top_p": [0.9] });
    holds(&sampler, conformance::sampler(&sampler, &var(json!({}))));
}

/// Tokenizers that load weights read them from official files with random weights.
#[test]
fn tokenizers_conform() {
    use framework::burn::module::Module;
    use framework::burn::tensor::Device;
    use framework::checkpoint::names::OfficialNames;
    use framework::checkpoint::official;
    use framework::nn::parameters::{self, Init};
    use framework::random::Random;
    use tokenizers_builtin::{KlF16, VarVqvae, VqF16};

    fn fill(network: impl Module, names: &OfficialNames, file: &std::path::Path) {
        let draw = |path: &str, _: &[usize]| match path {
            _ if path.contains("norm") => Init::Ones,
            "codebook" => Init::Normal(1.0),
            _ => Init::Normal(0.1),
        };
        official::save(&parameters::initialize(network, &Random::new(0), &draw), names, file).unwrap();
    }
    /// Adds the weight file. Returns the fields alone and the entry with its type.
    fn with(kind: &str, file: &std::path::Path, mut fields: Value) -> (Value, Value) {
        fields["path"] = json!(file);
        let mut entry = json!({ "type": kind });
        entry.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        (fields, entry)
    }
    let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let sizes = json!({ "z_channels": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1 });

    let pixels = json!({ "type": "pixels" });
    holds(&pixels, conformance::tokenizer(&pixels, [3, 8, 12]));
    let levels = json!({ "type": "levels", "values": 5 });
    holds(&levels, conformance::tokenizer(&levels, [1, 4, 6]));
    let pyramid = json!({ "type": "pyramid", "sides": [1, 2, 6], "values": 5 });
    holds(&pyramid, conformance::tokenizer(&pyramid, [1, 6, 6]));

    let file = folder.path().join("kl.safetensors");
    let (fields, entry) = with("kl_f16", &file, sizes.clone());
    let kl: KlF16 = serde_json::from_value(fields).unwrap();
    fill(kl.init(&device), &kl.formats()[0], &file);
    holds(&entry, conformance::tokenizer(&entry, [3, 8, 12]));

    let file = folder.path().join("vq.safetensors");
    let mut fields = sizes.clone();
    (fields["codebook_size"], fields["codebook_embed_dim"]) = (json!(32), json!(4));
    let (fields, entry) = with("vq_f16", &file, fields);
    let vq: VqF16 = serde_json::from_value(fields).unwrap();
    fill(vq.init(&device), &vq.formats()[0], &file);
    holds(&entry, conformance::tokenizer(&entry, [3, 8, 12]));

    let file = folder.path().join("var.safetensors");
    let mut fields = sizes;
    (fields["vocab_size"], fields["v_patch_nums"]) = (json!(32), json!([2, 3, 6]));
    let (fields, entry) = with("var_vqvae", &file, fields);
    let var: VarVqvae = serde_json::from_value(fields).unwrap();
    fill(var.init(&device), &var.formats()[0], &file);
    holds(&entry, conformance::tokenizer(&entry, [3, 12, 12]));
}

/// Feature spaces that load weights read them from official files with random weights.
#[test]
fn feature_spaces_conform() {
    use features::InceptionV3;
    use framework::burn::tensor::Device;
    use framework::checkpoint::official;
    use framework::nn::parameters::{self, Init};
    use framework::random::Random;

    let pixels = json!({ "type": "pixels" });
    holds(&pixels, conformance::features(&pixels, [3, 4, 5]));
    let digits = json!({ "type": "digits" });
    holds(&digits, conformance::features(&digits, [1, 8, 8]));

    let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let file = folder.path().join("inception.safetensors");
    let inception = InceptionV3::default();
    let draw = |path: &str, shape: &[usize]| match path.rsplit('.').next() {
        Some("running_var") => Init::Ones,
        Some("weight") if shape.len() == 4 => Init::Normal((2.0 / shape[1..].iter().product::<usize>() as f64).sqrt()),
        Some("weight") if shape.len() == 1 => Init::Ones,
        _ => Init::Normal(0.1),
    };
    let network = parameters::initialize(inception.init(&device), &Random::new(0), &draw);
    official::save(&network, &inception.formats()[0], &file).unwrap();
    let entry = json!({ "type": "inception_v3", "path": file });
    holds(&entry, conformance::features(&entry, [3, 16, 20]));
}

#[test]
fn every_feature_space_is_held_to_the_conformance_of_its_kind() {
    let registry = Registry::linked();
    let names: Vec<&str> =
        registry.entries().iter().filter(|entry| entry.kind == Kind::Features).map(|entry| entry.name).collect();
    // A new space is added to `feature_spaces_conform` and here.
    assert_eq!(names, ["digits", "inception_v3", "pixels"]);
}

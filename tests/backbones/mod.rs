//! Small backbones of every kind, and documents around them.

use serde_json::{Value, json};
use std::fs;

/// Returns a small backbone of each kind with its tokenizer and sampler.
pub fn backbones() -> [(&'static str, Value, Value, Value); 6] {
    [
        (
            "dit",
            json!({
                "type": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "input_size": 8,
                "in_channels": 1, "num_classes": 10
            }),
            json!({ "type": "pixels" }),
            json!({ "type": "ddim", "steps": 2 }),
        ),
        (
            "sit",
            json!({
                "type": "sit", "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "input_size": 8,
                "in_channels": 1, "num_classes": 10
            }),
            json!({ "type": "pixels" }),
            json!({ "type": "euler", "steps": 2 }),
        ),
        (
            "sd15",
            json!({
                "type": "sd15", "sample_size": 6, "in_channels": 48, "block_out_channels": [16], "layers_per_block": 1,
                "attention": [0], "num_heads": 2, "cross_attention_dim": 8, "norm_num_groups": 4,
                "text_encoder": { "vocab_size": 23, "length": 10, "layers": 1, "num_heads": 2 }
            }),
            json!({ "type": "pixels", "patch": 4 }),
            json!({ "type": "k_diffusion", "steps": 2 }),
        ),
        (
            "llamagen",
            json!({
                "type": "llamagen", "dim": 16, "n_layer": 1, "n_head": 2, "vocab_size": 17, "block_size": 64,
                "num_classes": 10, "multiple_of": 8
            }),
            json!({ "type": "levels", "values": 17 }),
            json!({ "type": "autoregressive" }),
        ),
        (
            "var",
            json!({
                "type": "var", "depth": 1, "embed_dim": 16, "num_heads": 2, "patch_nums": [1, 2, 4, 8], "V": 33,
                "Cvae": 1, "num_classes": 10
            }),
            json!({ "type": "pyramid", "values": 17 }),
            json!({ "type": "next_level" }),
        ),
        (
            "mar",
            json!({
                "type": "mar", "img_size": 8, "vae_stride": 1, "patch_size": 2, "vae_embed_dim": 1, "class_num": 10,
                "encoder_embed_dim": 16, "encoder_depth": 1, "encoder_num_heads": 2, "diffloss_d": 1, "diffloss_w": 16,
                "buffer_size": 2, "learn_sigma": false, "process": { "betas": "linear", "variance_loss": false }
            }),
            json!({ "type": "pixels" }),
            json!({ "type": "masked", "iterations": 3, "head": { "type": "ddim", "steps": 2 } }),
        ),
    ]
}

/// Replaces the data and the conditioner by captioned shapes and the list of their words.
pub fn caption(document: &mut Value) {
    let example = fs::read_to_string("examples/pipelines/shapes-sd15-cfg-tiny.json").unwrap();
    let example: Value = serde_json::from_str(&example).unwrap();
    (document["data"], document["conditioner"]) = (example["data"].clone(), example["conditioner"].clone());
}

//! The network in the layout of a `diffusers` folder: `transformer/` with a complete configuration, and its scheduler.
//!
//! `diffusers` spaces the sinusoids of time as 10000^(-i / 127), the published networks as 10000^(-i / 128). [`SETUP`]
//! sets the published spacing.

use crate::{Clock, Config, official};
use framework::burn::tensor::TensorData;
use framework::checkpoint::component::{Component, DiffusersNetwork};
use framework::checkpoint::official::named;
use framework::error::Problem;
use framework::serde_json::{Map, json};
use std::collections::BTreeMap;

/// Class of the network.
const CLASS: &str = "DiTTransformer2DModel";
/// Python that gives the time the spacing that the network was trained with.
const SETUP: &str = "for block in pipe.transformer.transformer_blocks:\n    \
    block.norm1.emb.time_proj.downscale_freq_shift = 0  # the spacing of the published DiT";

/// Returns the network and its scheduler.
///
/// # Errors
/// If `diffusers` has no such network.
pub fn network<P: Clock>(
    config: &Config<P>,
    weights: &BTreeMap<String, TensorData>,
) -> Result<DiffusersNetwork, Problem> {
    let Some(scheduler) = config.process.scheduler() else {
        return Err(Problem::new("/backbone/type", "diffusers has no pipeline that samples SiT").accepts("dit"));
    };
    if config.guidance_input.is_some() {
        let what = "the DiT of `diffusers` reads no guidance number";
        let fix = "add --scale NUMBER, which folds one guidance scale into the weights";
        return Err(Problem::new("/backbone/guidance_input", what).accepts("null").fix(fix));
    }
    if config.mlp_ratio != 4.0 {
        let what = format!("the DiT of `diffusers` has an MLP of 4 times the width, not {}", config.mlp_ratio);
        return Err(Problem::new("/backbone/mlp_ratio", what).accepts("4"));
    }
    // A network with a guidance input is refused above, so the form of its embedder does not matter.
    let names = official::names(config.checked().patch_size, false);
    let transformer = Component {
        folder: "transformer",
        library: "diffusers",
        class: CLASS,
        config_file: "config.json",
        config: configuration(config),
        weights_file: "diffusion_pytorch_model.safetensors",
        tensors: tensors(named(weights.clone(), &names), config.checked().depth),
        ..Component::default()
    };
    Ok(DiffusersNetwork {
        pipeline: "DiTPipeline",
        needs: &["vae"],
        components: vec![transformer, scheduler],
        index: Map::new(),
        setup: SETUP,
        guidance_input: false,
    })
}

/// Renames the official tensors. Every block of `diffusers` has its own copy of the time and class embedders, and
/// separate queries, keys and values. It computes the positions.
fn tensors(official: Vec<(String, TensorData)>, depth: usize) -> Vec<(String, TensorData)> {
    let mut all = Vec::new();
    for (name, data) in official {
        let ending = name.rsplit('.').next().unwrap_or_default().to_string();
        let mut blocks = |part: &str| {
            let copies = (0..depth).map(|i| (format!("transformer_blocks.{i}.norm1.emb.{part}"), data.clone()));
            all.extend(copies);
        };
        match name.split('.').collect::<Vec<_>>()[..] {
            ["pos_embed"] => {}
            ["t_embedder", "mlp", "0", _] => blocks(&format!("timestep_embedder.linear_1.{ending}")),
            ["t_embedder", "mlp", ..] => blocks(&format!("timestep_embedder.linear_2.{ending}")),
            ["y_embedder", ..] => blocks("class_embedder.embedding_table.weight"),
            ["x_embedder", ..] => all.push((format!("pos_embed.proj.{ending}"), data)),
            ["final_layer", "adaLN_modulation", ..] => all.push((format!("proj_out_1.{ending}"), data)),
            ["final_layer", ..] => all.push((format!("proj_out_2.{ending}"), data)),
            ["blocks", i, "attn", "qkv", _] => {
                for (part, third) in ["to_q", "to_k", "to_v"].into_iter().zip(thirds(&data)) {
                    all.push((format!("transformer_blocks.{i}.attn1.{part}.{ending}"), third));
                }
            }
            ["blocks", i, "attn", ..] => all.push((format!("transformer_blocks.{i}.attn1.to_out.0.{ending}"), data)),
            ["blocks", i, "mlp", "fc1", _] => {
                all.push((format!("transformer_blocks.{i}.ff.net.0.proj.{ending}"), data))
            }
            ["blocks", i, "mlp", ..] => all.push((format!("transformer_blocks.{i}.ff.net.2.{ending}"), data)),
            ["blocks", i, ..] => all.push((format!("transformer_blocks.{i}.norm1.linear.{ending}"), data)),
            _ => all.push((name.clone(), data)),
        }
    }
    all
}

/// Cuts a tensor into three equal parts along its first dimension.
fn thirds(data: &TensorData) -> [TensorData; 3] {
    let mut shape = data.shape().to_vec();
    shape[0] /= 3;
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = data.iter::<f32>().collect();
    [0, 1, 2].map(|i| TensorData::new(values[i * count..(i + 1) * count].to_vec(), shape.clone()))
}

/// Returns every entry of the network's configuration.
fn configuration<P: Clock>(config: &Config<P>) -> Map<String, framework::serde_json::Value> {
    let numbers = config.checked();
    let entries = [
        ("num_attention_heads", json!(numbers.num_heads)),
        ("attention_head_dim", json!(numbers.hidden_size / numbers.num_heads)),
        ("in_channels", json!(config.in_channels)),
        ("out_channels", json!(config.out_channels())),
        ("num_layers", json!(numbers.depth)),
        ("dropout", json!(0.0)),
        ("norm_num_groups", json!(32)),
        ("attention_bias", json!(true)),
        ("sample_size", json!(config.input_size)),
        ("patch_size", json!(numbers.patch_size)),
        ("activation_fn", json!("gelu-approximate")),
        ("num_embeds_ada_norm", json!(config.num_classes)),
        ("upcast_attention", json!(false)),
        ("norm_type", json!("ada_norm_zero")),
        ("norm_elementwise_affine", json!(false)),
        // The published network computes every norm with this epsilon; the default of `diffusers` is 1e-5.
        ("norm_eps", json!(crate::EPSILON)),
    ];
    let mut all = Component::diffusers_config(CLASS);
    all.extend(entries.map(|(key, value)| (key.to_string(), value)));
    all
}

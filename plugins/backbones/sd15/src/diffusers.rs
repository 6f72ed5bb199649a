//! The network in the layout of a `diffusers` folder: `unet/` with a complete configuration, and its scheduler.

use crate::guidance_input::{GUIDANCE_FREQUENCIES, GuidanceInput};
use crate::{Sd15Config, official};
use framework::burn::tensor::TensorData;
use framework::checkpoint::component::{Component, DiffusersNetwork};
use framework::checkpoint::official::named;
use framework::error::Problem;
use framework::serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Class of the network.
const CLASS: &str = "UNet2DConditionModel";

/// Returns the network and its scheduler.
///
/// # Errors
/// If `diffusers` has no such network.
pub fn network(config: &Sd15Config, weights: &BTreeMap<String, TensorData>) -> Result<DiffusersNetwork, Problem> {
    if config.text_encoder.is_some() {
        let what = "the network trains its own text encoder, whose vocabulary is not one of `diffusers`";
        return Err(Problem::new("/backbone/text_encoder", what).accepts("null, and a conditioner such as clip_text"));
    }
    if config.guidance_input == Some(GuidanceInput::Linear) {
        let what = "`diffusers` embeds 1000 (scale - 1), not 1000 times the guidance number";
        return Err(Problem::new("/backbone/guidance_input", what)
            .accepts("scale_of_beta, scale or null")
            .fix("add --scale NUMBER, which folds one guidance scale into the weights"));
    }
    let formats = official::formats(config.levels(), config.layers_per_block, config.attention.clone());
    let unet = Component {
        folder: "unet",
        library: "diffusers",
        class: CLASS,
        config_file: "config.json",
        config: configuration(config),
        weights_file: "diffusion_pytorch_model.safetensors",
        tensors: named(weights.clone(), &formats[0]),
        ..Component::default()
    };
    // The checker and its extractor are optional, and the index must say that they are absent.
    let index = [
        ("safety_checker", json!([null, null])),
        ("feature_extractor", json!([null, null])),
        ("image_encoder", json!([null, null])),
        ("requires_safety_checker", json!(false)),
    ];
    Ok(DiffusersNetwork {
        pipeline: "StableDiffusionPipeline",
        needs: &["vae", "text_encoder", "tokenizer"],
        components: vec![unet, config.process.scheduler()],
        index: index.map(|(key, value)| (key.to_string(), value)).into_iter().collect(),
        setup: "",
        guidance_input: config.guidance_input.is_some(),
    })
}

/// Returns every entry of the network's configuration.
fn configuration(config: &Sd15Config) -> Map<String, Value> {
    let block = |level: usize, way: &str| match config.attended(level) {
        true => format!("CrossAttn{way}Block2D"),
        false => format!("{way}Block2D"),
    };
    let down: Vec<String> = (0..config.levels()).map(|level| block(level, "Down")).collect();
    let up: Vec<String> = (0..config.levels()).rev().map(|level| block(level, "Up")).collect();
    let guidance = config.guidance_input.map(|_| GUIDANCE_FREQUENCIES);
    let entries = [
        ("sample_size", json!(config.sample_size)),
        ("in_channels", json!(config.in_channels)),
        ("out_channels", json!(config.in_channels)),
        ("center_input_sample", json!(false)),
        ("flip_sin_to_cos", json!(true)),
        ("freq_shift", json!(0)),
        ("down_block_types", json!(down)),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("up_block_types", json!(up)),
        ("only_cross_attention", json!(false)),
        ("block_out_channels", json!(config.block_out_channels)),
        ("layers_per_block", json!(config.layers_per_block)),
        ("downsample_padding", json!(1)),
        ("mid_block_scale_factor", json!(1)),
        ("dropout", json!(0.0)),
        ("act_fn", json!("silu")),
        ("norm_num_groups", json!(config.norm_num_groups)),
        ("norm_eps", json!(1e-5)),
        ("cross_attention_dim", json!(config.cross_attention_dim)),
        ("transformer_layers_per_block", json!(1)),
        ("reverse_transformer_layers_per_block", Value::Null),
        ("encoder_hid_dim", Value::Null),
        ("encoder_hid_dim_type", Value::Null),
        // The number of heads: `diffusers` reads this entry under a name from before it was split.
        ("attention_head_dim", json!(config.num_heads)),
        ("num_attention_heads", Value::Null),
        ("dual_cross_attention", json!(false)),
        ("use_linear_projection", json!(false)),
        ("class_embed_type", Value::Null),
        ("addition_embed_type", Value::Null),
        ("addition_time_embed_dim", Value::Null),
        ("num_class_embeds", Value::Null),
        ("upcast_attention", json!(false)),
        ("resnet_time_scale_shift", json!("default")),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_out_scale_factor", json!(1.0)),
        ("time_embedding_type", json!("positional")),
        ("time_embedding_dim", Value::Null),
        ("time_embedding_act_fn", Value::Null),
        ("timestep_post_act", Value::Null),
        ("time_cond_proj_dim", json!(guidance)),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("projection_class_embeddings_input_dim", Value::Null),
        ("attention_type", json!("default")),
        ("class_embeddings_concat", json!(false)),
        ("mid_block_only_cross_attention", Value::Null),
        ("cross_attention_norm", Value::Null),
        ("addition_embed_type_num_heads", json!(64)),
    ];
    let mut all = Component::diffusers_config(CLASS);
    all.extend(entries.map(|(key, value)| (key.to_string(), value)));
    all
}

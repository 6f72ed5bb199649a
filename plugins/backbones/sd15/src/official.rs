//! Parameter names and layouts of the official checkpoints: `diffusers` folders (`unet/`) and CompVis containers
//! (prefix `model.diffusion_model.`).

use crate::Sd15Config;
use framework::checkpoint::names::{BESIDE_LATENT_DIFFUSION, Fresh, Layout, OfficialName, OfficialNames};
use framework::checkpoint::published_config::PublishedConfig;
use framework::error::Problems;
use framework::serde_json::{Value, json};
use std::sync::Arc;

/// Returns both formats, for a network with this number of levels, this number of residual blocks per level, and
/// transformers at the levels in `attention`.
pub fn formats(levels: usize, layers: usize, attention: Vec<usize>) -> Vec<OfficialNames> {
    let compvis =
        move |path: &str| OfficialName { name: compvis(path, levels, layers, &attention), layout: layout(path) };
    vec![
        OfficialNames {
            format: "diffusers",
            folder: "unet",
            of: Arc::new(|path| OfficialName { name: diffusers(path), layout: layout(path) }),
            nesting: &[],
            ignored: &[],
            optional: OPTIONAL,
        },
        OfficialNames {
            format: "compvis",
            folder: "",
            of: Arc::new(compvis),
            nesting: &["state_dict.model.diffusion_model.", "model.diffusion_model."],
            ignored: BESIDE_LATENT_DIFFUSION,
            optional: OPTIONAL,
        },
    ]
}

/// Returns the contradictions of the entry to `config.json` and `scheduler_config.json` of a `diffusers` folder. The
/// size of the latent is not compared: the network is convolutional, and reads any size.
pub fn contradictions(config: &Sd15Config, published: &PublishedConfig) -> Problems {
    let mut problems = Problems::new();
    if let Some(unet) = &published.network {
        // The published configuration calls the number of heads `attention_head_dim`.
        let heads =
            if unet.get("num_attention_heads").is_some() { "num_attention_heads" } else { "attention_head_dim" };
        let own = [
            ("in_channels", "/in_channels", json!(config.in_channels)),
            ("out_channels", "/in_channels", json!(config.in_channels)),
            ("block_out_channels", "/block_out_channels", json!(config.block_out_channels)),
            ("layers_per_block", "/layers_per_block", json!(config.layers_per_block)),
            (heads, "/num_heads", json!(config.num_heads)),
            ("cross_attention_dim", "/cross_attention_dim", json!(config.cross_attention_dim)),
            ("norm_num_groups", "/norm_num_groups", json!(config.norm_num_groups)),
        ];
        problems.extend(own.iter().filter_map(|(key, pointer, own)| unet.differs(key, pointer, own)));
        if let Some(blocks) = unet.get("down_block_types").and_then(Value::as_array) {
            let attends = |(_, kind): &(usize, &Value)| kind.as_str().is_some_and(|kind| kind.contains("CrossAttn"));
            let theirs: Vec<usize> = blocks.iter().enumerate().filter(attends).map(|(level, _)| level).collect();
            let mut own = config.attention.clone();
            own.sort_unstable();
            if own != theirs {
                let says = format!("`down_block_types`: attention at the levels {theirs:?}");
                problems.push(unet.contradicts(&says, "/attention", &json!(own), Some(&json!(theirs))));
            }
        }
        let fixed = [
            ("act_fn", json!("silu")),
            ("flip_sin_to_cos", json!(true)),
            ("freq_shift", json!(0)),
            ("center_input_sample", json!(false)),
            ("norm_eps", json!(1e-5)),
        ];
        problems.extend(unet.fixed("", &fixed));
    }
    if let Some(scheduler) = &published.scheduler {
        problems.extend(config.process.contradictions(scheduler));
    }
    problems
}

/// Parameters that a checkpoint may lack. The new guidance term starts at zero, so a guidance-free network starts
/// as the published network for every guidance number. A jointly trained text encoder keeps its initialization.
const OPTIONAL: &[(&str, Fresh)] =
    &[("time_embedding.cond_proj.weight", Fresh::Zero), ("text_encoder.", Fresh::Initialized)];

fn layout(path: &str) -> Layout {
    let convolution = path.contains("conv") || path.contains("nin_shortcut") || path.contains("sampler");
    match path {
        _ if !path.ends_with(".weight") || path.contains("norm") || convolution => Layout::Same,
        _ if path.contains("_embedding.weight") => Layout::Same,
        // The official networks use 1x1 convolutions. Ours uses linear layers.
        _ if path.ends_with("proj_in.weight") || path.ends_with("proj_out.weight") => Layout::PatchConv { patch: 1 },
        _ => Layout::Transposed,
    }
}

fn diffusers(path: &str) -> String {
    within(path)
        .replace("time_embedding.mlp_0", "time_embedding.linear_1")
        .replace("time_embedding.mlp_2", "time_embedding.linear_2")
        .replace(".block.nin_shortcut", ".conv_shortcut")
        .replace(".block.", ".")
        .replace("downsampler.conv", "downsamplers.0.conv")
        .replace("upsampler.conv", "upsamplers.0.conv")
}

/// Renames the parts of a transformer. Both formats use the same names for them.
fn within(path: &str) -> String {
    path.replace(".to_out.", ".to_out.0.").replace(".ff.proj.", ".ff.net.0.proj.").replace(".ff.out.", ".ff.net.2.")
}

/// Returns the CompVis name. CompVis numbers all steps of the downsampling path consecutively, and all steps of the
/// upsampling path likewise.
fn compvis(path: &str, levels: usize, layers: usize, attention: &[usize]) -> String {
    let path = within(path);
    let parts: Vec<&str> = path.split('.').collect();
    let number = |i: usize| parts[i].parse::<usize>().expect("an index");
    match parts[..] {
        ["time_embedding", "mlp_0", rest] => format!("time_embed.0.{rest}"),
        ["time_embedding", "mlp_2", rest] => format!("time_embed.2.{rest}"),
        ["time_embedding", "cond_proj", rest] => format!("time_embed.cond_proj.{rest}"),
        ["conv_in", rest] => format!("input_blocks.0.0.{rest}"),
        ["conv_norm_out", rest] => format!("out.0.{rest}"),
        ["conv_out", rest] => format!("out.2.{rest}"),
        ["mid_block", "resnets", ..] => format!("middle_block.{}.{}", 2 * number(2), residual(&parts[3..])),
        ["mid_block", "attentions", ..] => format!("middle_block.1.{}", parts[3..].join(".")),
        ["down_blocks", _, "downsampler", "conv", rest] => {
            format!("input_blocks.{}.0.op.{rest}", (number(1) + 1) * (layers + 1))
        }
        ["down_blocks", _, part, ..] => {
            let step = 1 + number(1) * (layers + 1) + number(3);
            format!("input_blocks.{step}.{}", step_part(part, &parts[4..]))
        }
        ["up_blocks", _, "upsampler", "conv", rest] => {
            // The upsampler comes after the last residual block and, at a level with transformers, after the last
            // transformer.
            let place = 1 + usize::from(attention.contains(&(levels - 1 - number(1))));
            format!("output_blocks.{}.{place}.conv.{rest}", number(1) * (layers + 1) + layers)
        }
        ["up_blocks", _, part, ..] => {
            let step = number(1) * (layers + 1) + number(3);
            format!("output_blocks.{step}.{}", step_part(part, &parts[4..]))
        }
        _ => path,
    }
}

fn step_part(part: &str, rest: &[&str]) -> String {
    match part {
        "resnets" => format!("0.{}", residual(rest)),
        _ => format!("1.{}", rest.join(".")),
    }
}

fn residual(parts: &[&str]) -> String {
    match parts {
        ["time_emb_proj", rest] => format!("emb_layers.1.{rest}"),
        ["block", "norm1", rest] => format!("in_layers.0.{rest}"),
        ["block", "conv1", rest] => format!("in_layers.2.{rest}"),
        ["block", "norm2", rest] => format!("out_layers.0.{rest}"),
        ["block", "conv2", rest] => format!("out_layers.3.{rest}"),
        ["block", "nin_shortcut", rest] => format!("skip_connection.{rest}"),
        other => other.join("."),
    }
}

//! The official files: `diffusers` folders (unet/) and the CompVis container, whose prefix is `model.diffusion_model.`.

use framework::foreign::{BESIDE_LATENT_DIFFUSION, ForeignName, ForeignNames, Fresh, Layout};
use std::sync::Arc;

/// Both formats of a network with so many levels, residual blocks of a level, and attended levels.
pub fn formats(levels: usize, layers: usize, attention: Vec<usize>) -> Vec<ForeignNames> {
    let compvis =
        move |path: &str| ForeignName { name: compvis(path, levels, layers, &attention), layout: layout(path) };
    vec![
        ForeignNames {
            format: "diffusers",
            folder: "unet",
            of: Arc::new(|path| ForeignName { name: diffusers(path), layout: layout(path) }),
            nesting: &[],
            ignored: &[],
            optional: OPTIONAL,
        },
        ForeignNames {
            format: "compvis",
            folder: "",
            of: Arc::new(compvis),
            nesting: &["state_dict.model.diffusion_model.", "model.diffusion_model."],
            ignored: BESIDE_LATENT_DIFFUSION,
            optional: OPTIONAL,
        },
    ]
}

/// The new term of a guidance-free network starts at zero, so it starts as the published network for every number.
const OPTIONAL: &[(&str, Fresh)] = &[("time_embedding.cond_proj.weight", Fresh::Zero), ("text_encoder.", Fresh::Drawn)];

fn layout(path: &str) -> Layout {
    let convolution = path.contains("conv") || path.contains("nin_shortcut") || path.contains("sampler");
    match path {
        _ if !path.ends_with(".weight") || path.contains("norm") || convolution => Layout::Same,
        _ if path.contains("_embedding.weight") => Layout::Same,
        // 1x1 convolutions there, maps of positions here.
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

/// What both formats call alike within a transformer.
fn within(path: &str) -> String {
    path.replace(".to_out.", ".to_out.0.").replace(".ff.proj.", ".ff.net.0.proj.").replace(".ff.out.", ".ff.net.2.")
}

/// The CompVis code numbers all steps of one way one after another.
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
            // It stands behind the last block's transformer, where there is one.
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

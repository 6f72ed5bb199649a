//! Parameter names and layouts of the official checkpoints: FoundationVision/VAR and thu-ml/CCA.

use crate::Numbers;
use framework::burn::tensor::TensorData;
use framework::checkpoint::names::{Fresh, Layout, OFFICIAL, OfficialName, OfficialNames};
use std::sync::Arc;

/// Returns the official names. A file is a flat state dict, or a trainer's checkpoint that holds one.
pub fn names() -> OfficialNames {
    OfficialNames {
        format: OFFICIAL,
        folder: "",
        of: Arc::new(name),
        nesting: &["trainer.var_wo_ddp.", "var_wo_ddp."],
        ignored: &[
            ("lvl_1L", "the level of each position, which is computed"),
            ("attn_bias_for_masking", "the attention mask of the levels, which is computed"),
            ("zero_k_bias", "zeros, because keys have no bias"),
            ("args", "command-line arguments of the training script"),
            ("epoch", "progress of the training script"),
            ("iter", "progress of the training script"),
            ("trainer.", "other state of the training script"),
        ],
        // A plain checkpoint can initialize a guidance-free network. The last layer of the new guidance term starts
        // at zero, so the network starts as the published model for every guidance number.
        optional: &[("beta_embedder.mlp_2.", Fresh::Zero), ("beta_embedder.", Fresh::Initialized)],
    }
}

/// Returns the tensors of the official network that are not parameters: its code refuses a file without them. `levels`
/// is the level of each position.
pub fn buffers(numbers: Numbers, levels: &[usize]) -> Vec<(String, TensorData)> {
    let length = levels.len();
    // A position attends to its own level and to the coarser ones.
    let bias = |row: usize, column: usize| if levels[row] >= levels[column] { 0.0 } else { f32::NEG_INFINITY };
    let mask = (0..length).flat_map(|row| (0..length).map(move |column| bias(row, column))).collect::<Vec<f32>>();
    let level: Vec<i64> = levels.iter().map(|level| *level as i64).collect();
    let mut buffers = vec![
        ("lvl_1L".to_string(), TensorData::new(level, [1, length])),
        ("attn_bias_for_masking".to_string(), TensorData::new(mask, [1, 1, length, length])),
    ];
    let zeros = || TensorData::new(vec![0.0_f32; numbers.embed_dim], [numbers.embed_dim]);
    buffers.extend((0..numbers.depth).map(|block| (format!("blocks.{block}.attn.zero_k_bias"), zeros())));
    buffers
}

fn name(path: &str) -> OfficialName {
    let name = path
        .replace("embedder.mlp_", "embedder.mlp.")
        .replace("shared_ada_lin.", "shared_ada_lin.1.")
        .replace("ada_lin.", if path.starts_with("shared_ada_lin") { "ada_lin." } else { "ada_lin.1." });
    let table = ["class_emb", "lvl_embed", "pos_", "scale_mul", "ada_gss"].iter().any(|t| path.contains(t));
    let linear = name.ends_with(".weight") && !table;
    OfficialName { name, layout: if linear { Layout::Transposed } else { Layout::Same } }
}

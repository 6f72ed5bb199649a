//! Parameter names and layouts of the official checkpoints: facebookresearch/DiT, willisma/SiT and thu-ml/GFT.

use framework::checkpoint::names::{Fresh, Layout, OFFICIAL, OfficialName, OfficialNames};
use std::sync::Arc;

/// Returns the official names. A file is a flat state dict, or a training checkpoint that holds one under `ema` or
/// `model`. `three_layers` states whether the embedder of the guidance number has three layers instead of two.
pub fn names(patch: usize, three_layers: bool) -> OfficialNames {
    OfficialNames {
        format: OFFICIAL,
        folder: "",
        of: Arc::new(move |path| name(path, patch)),
        nesting: &["ema.", "model."],
        ignored: &[("opt.", "optimizer state"), ("args", "command-line arguments of the training script")],
        // A plain checkpoint can initialize a guidance-free network. The last layer of the new guidance term starts
        // at zero, so the network starts as the published model for every guidance number.
        optional: if three_layers {
            &[("beta_embedder.mlp_4.", Fresh::Zero), ("beta_embedder.", Fresh::Initialized)]
        } else {
            &[
                ("t_embedder.cond_proj.weight", Fresh::Zero),
                ("beta_embedder.mlp_2.", Fresh::Zero),
                ("beta_embedder.", Fresh::Initialized),
            ]
        },
    }
}

fn name(path: &str, patch: usize) -> OfficialName {
    let name = path
        .replace("embedder.mlp_", "embedder.mlp.")
        .replace("ada_ln.", "adaLN_modulation.1.")
        .replace("embedding_table", "embedding_table.weight");
    let layout = if path.starts_with("x_embedder.proj.weight") {
        Layout::PatchConv { patch }
    } else if path.ends_with(".weight") {
        Layout::Transposed
    } else {
        Layout::Same
    };
    OfficialName { name, layout }
}

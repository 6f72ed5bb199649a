//! The official DiT files: facebookresearch/DiT and thu-ml/GFT.

use framework::foreign::{self, ForeignName, ForeignNames, Fresh, Layout};
use std::sync::Arc;

/// A flat state dict, or `ema` / `model` inside the training container.
pub fn names(patch: usize) -> ForeignNames {
    ForeignNames {
        format: foreign::OFFICIAL,
        folder: "",
        of: Arc::new(move |path| name(path, patch)),
        nesting: &["ema.", "model."],
        ignored: &[("opt.", "optimizer state"), ("args", "command-line arguments of the training script")],
        // A plain DiT file starts a guidance-free network: the new term starts at zero, so the network starts
        // at the published model for every guidance number.
        optional: &[
            ("t_embedder.cond_proj.weight", Fresh::Zero),
            ("beta_embedder.mlp_2.", Fresh::Zero),
            ("beta_embedder.", Fresh::Drawn),
        ],
    }
}

fn name(path: &str, patch: usize) -> ForeignName {
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
    ForeignName { name, layout }
}

//! Parameter names and layouts of the official checkpoints: LTH14/mar.

use framework::checkpoint::names::{Fresh, Layout, OFFICIAL, OfficialName, OfficialNames};
use std::sync::Arc;

/// Returns the official names. A file is a training checkpoint that holds the weights under `model_ema` or
/// `model`, or a flat state dict.
pub fn names() -> OfficialNames {
    OfficialNames {
        format: OFFICIAL,
        folder: "",
        of: Arc::new(name),
        nesting: &["model_ema.", "model."],
        ignored: &[
            ("optimizer", "optimizer state"),
            ("scaler", "loss scaler of the training script"),
            ("args", "command-line arguments of the training script"),
        ],
        // An official checkpoint can initialize a guidance-free network. The last layer of the new guidance term
        // starts at zero, so the network starts as the published model for every guidance number.
        optional: &[("beta_embedder.mlp_2.", Fresh::Zero), ("beta_embedder.", Fresh::Initialized)],
    }
}

fn name(path: &str) -> OfficialName {
    let name = path
        .replace("diffloss.", "diffloss.net.")
        .replace("mlp_", "mlp.")
        .replace("ada_ln.", "adaLN_modulation.1.")
        .replace("class_emb", "class_emb.weight");
    let norm = ["norm.weight", "norm1.weight", "norm2.weight", "z_proj_ln.weight", "in_ln.weight"];
    let matrix = path.ends_with(".weight") && !norm.iter().any(|norm| path.ends_with(norm));
    OfficialName { name, layout: if matrix { Layout::Transposed } else { Layout::Same } }
}

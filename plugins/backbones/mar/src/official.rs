//! The official MAR files: LTH14/mar.

use framework::foreign::{self, ForeignName, ForeignNames, Fresh, Layout};
use std::sync::Arc;

/// `model_ema` / `model` inside the training container, or a flat state dict.
pub fn names() -> ForeignNames {
    ForeignNames {
        format: foreign::OFFICIAL,
        folder: "",
        of: Arc::new(name),
        nesting: &["model_ema.", "model."],
        ignored: &[
            ("optimizer", "optimizer state"),
            ("scaler", "loss scaling of the training script"),
            ("args", "command-line arguments of the training script"),
        ],
        // An official file starts a guidance-free network: the new term starts at zero, so the network starts at the
        // published model for every guidance number.
        optional: &[("beta_embedder.mlp_2.", Fresh::Zero), ("beta_embedder.", Fresh::Drawn)],
    }
}

fn name(path: &str) -> ForeignName {
    let name = path
        .replace("diffloss.", "diffloss.net.")
        .replace("mlp_", "mlp.")
        .replace("ada_ln.", "adaLN_modulation.1.")
        .replace("class_emb", "class_emb.weight");
    let norm = ["norm.weight", "norm1.weight", "norm2.weight", "z_proj_ln.weight", "in_ln.weight"];
    let matrix = path.ends_with(".weight") && !norm.iter().any(|norm| path.ends_with(norm));
    ForeignName { name, layout: if matrix { Layout::Transposed } else { Layout::Same } }
}

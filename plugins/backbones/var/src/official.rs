//! The official VAR files: FoundationVision/VAR and thu-ml/CCA.

use framework::foreign::{self, ForeignName, ForeignNames, Fresh, Layout};
use std::sync::Arc;

/// A flat state dict, or nested in the trainer's container.
pub fn names() -> ForeignNames {
    ForeignNames {
        format: foreign::OFFICIAL,
        folder: "",
        of: Arc::new(name),
        nesting: &["trainer.var_wo_ddp.", "var_wo_ddp."],
        ignored: &[
            ("lvl_1L", "the level of each position, which is computed"),
            ("attn_bias_for_masking", "the mask of levels, which is computed"),
            ("zero_k_bias", "zeros: keys have no bias"),
            ("args", "command-line arguments of the training script"),
            ("epoch", "where the training script was"),
            ("iter", "where the training script was"),
            ("trainer.", "the training script's other state"),
        ],
        // A plain file starts a guidance-free network at the published model for every guidance number.
        optional: &[("beta_embedder.mlp_2.", Fresh::Zero), ("beta_embedder.", Fresh::Drawn)],
    }
}

fn name(path: &str) -> ForeignName {
    let name = path
        .replace("embedder.mlp_", "embedder.mlp.")
        .replace("shared_ada_lin.", "shared_ada_lin.1.")
        .replace("ada_lin.", if path.starts_with("shared_ada_lin") { "ada_lin." } else { "ada_lin.1." });
    let table = ["class_emb", "lvl_embed", "pos_", "scale_mul", "ada_gss"].iter().any(|t| path.contains(t));
    let linear = name.ends_with(".weight") && !table;
    ForeignName { name, layout: if linear { Layout::Transposed } else { Layout::Same } }
}

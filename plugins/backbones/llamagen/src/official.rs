//! The official LlamaGen files: FoundationVision/LlamaGen, thu-ml/GFT and thu-ml/CCA.

use framework::foreign::{self, ForeignName, ForeignNames, Fresh, Layout};
use std::sync::Arc;

/// `model` inside the training container, or a flat state dict (the FSDP releases).
pub fn names() -> ForeignNames {
    ForeignNames {
        format: foreign::OFFICIAL,
        folder: "",
        of: Arc::new(name),
        nesting: &["ema.", "model."],
        ignored: &[
            ("freqs_cis", "the table of rotations, which is computed"),
            ("optimizer.", "optimizer state"),
            ("steps", "steps trained"),
            ("args", "command-line arguments of the training script"),
        ],
        // A plain file starts a guidance-free network at the published model for every guidance number.
        optional: &[("t_embedder.mlp_2.", Fresh::Zero), ("t_embedder.", Fresh::Drawn)],
    }
}

fn name(path: &str) -> ForeignName {
    let name = path.replace("embedder.mlp_", "embedder.mlp.");
    let table = name.contains("embedding_table") || name.starts_with("tok_embeddings") || name.contains("norm");
    let linear = name.ends_with(".weight") && !table;
    ForeignName { name, layout: if linear { Layout::Transposed } else { Layout::Same } }
}

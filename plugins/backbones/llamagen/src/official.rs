//! Parameter names and layouts of the official checkpoints: FoundationVision/LlamaGen, thu-ml/GFT and thu-ml/CCA.

use framework::checkpoint::names::{Fresh, Layout, OFFICIAL, OfficialName, OfficialNames};
use std::sync::Arc;

/// Returns the official names. A file is a training checkpoint that holds the weights under `ema` or `model`, or
/// a flat state dict (the FSDP releases).
pub fn names() -> OfficialNames {
    OfficialNames {
        format: OFFICIAL,
        folder: "",
        of: Arc::new(name),
        nesting: &["ema.", "model."],
        ignored: &[
            ("freqs_cis", "the rotation table, which is computed"),
            ("optimizer.", "optimizer state"),
            ("steps", "number of training steps"),
            ("args", "command-line arguments of the training script"),
        ],
        // A plain checkpoint can initialize a guidance-free network. The last layer of the new guidance term starts
        // at zero, so the network starts as the published model for every guidance number.
        optional: &[("t_embedder.mlp_2.", Fresh::Zero), ("t_embedder.", Fresh::Initialized)],
    }
}

fn name(path: &str) -> OfficialName {
    let name = path.replace("embedder.mlp_", "embedder.mlp.");
    let table = name.contains("embedding_table") || name.starts_with("tok_embeddings") || name.contains("norm");
    let linear = name.ends_with(".weight") && !table;
    OfficialName { name, layout: if linear { Layout::Transposed } else { Layout::Same } }
}

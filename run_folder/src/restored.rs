//! The network of a run or of a checkpoint, with its pipeline, ready to sample.

use crate::{document, frozen, start};
use framework::burn::tensor::Device;
use framework::checkpoint::Checkpoint;
use framework::error::Result;
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use std::path::Path;

/// Restores pipeline and network of `checkpoint`, which was found at `from`: a run folder or a file. `overrides` change
/// values of its document, as `/POINTER=VALUE`.
///
/// # Errors
/// If the document has problems, or a file that it names does not fit.
pub fn restore(
    from: &Path,
    checkpoint: Checkpoint,
    overrides: &[String],
    device: &Device,
) -> Result<(Pipeline, BoxBackbone)> {
    let name = format!("{} (its document)", from.display());
    let mut pipeline = document::from_text(&checkpoint.document, overrides, &name)?;
    pipeline.load(device)?;
    frozen::load_weak(&mut pipeline, device)?;
    start::restore_tokenizer(&mut pipeline, from, device)?;
    let network = pipeline.restore(checkpoint.model, device)?;
    allocator::keep_pages();
    Ok((pipeline, network))
}

//! Weights from a run folder, a native checkpoint or an official file.

use crate::document;
use crate::folder::RunFolder;
use crate::nearest_file::nearest_file;
use framework::burn::tensor::Device;
use framework::checkpoint::official::{self, CheckpointSource, Report};
use framework::checkpoint::published_config::PublishedConfig;
use framework::checkpoint::refit::Refit;
use framework::checkpoint::{self, Checkpoint};
use framework::error::{Error, Problem, Result};
use framework::network::backbone::{BackboneConfig, BoxBackbone};
use framework::nn::parameters::{self, Initialization};
use framework::random::Random;
use std::path::{Path, PathBuf};

/// Loads the weights of a run folder, a native checkpoint or an official file into a new network of this backbone.
/// Returns the network and a report of the tensors used.
///
/// # Errors
/// If the source cannot be read, or its weights do not fit the network.
pub fn weights(
    backbone: &dyn BackboneConfig,
    seed: u64,
    source: &CheckpointSource,
    device: &Device,
) -> Result<(BoxBackbone, Report)> {
    load(backbone, seed, source, device, &|_| None)
}

/// Reads weights like [`weights`], for a network that is trained further. The network may have other classes and
/// another size. The report has a note for each parameter that is initialized, recomputed or interpolated.
///
/// # Errors
/// Like [`weights`].
pub fn weights_to_train(
    backbone: &dyn BackboneConfig,
    seed: u64,
    source: &CheckpointSource,
    device: &Device,
) -> Result<(BoxBackbone, Report)> {
    load(backbone, seed, source, device, &|path| backbone.refit(path))
}

fn load(
    backbone: &dyn BackboneConfig,
    seed: u64,
    source: &CheckpointSource,
    device: &Device,
    refit: &dyn Fn(&str) -> Option<Refit>,
) -> Result<(BoxBackbone, Report)> {
    let (network, formats) = (backbone.init(device), backbone.formats());
    let init = |path: &str, shape: &[usize]| backbone.initializer(path, shape);
    let random = Random::new(seed);
    let initialization: Initialization<'_> = (&random, &init);
    if let Some((path, Checkpoint { document, model: mut values, .. })) = native(&source.checkpoint)? {
        if values.keys().any(|name| name.ends_with(".lora.a")) {
            // Merge the low-rank adapters of the earlier run into its weights.
            let theirs = document::from_text(&document, &[], &format!("{} (its document)", path.display()))?;
            values = parameters::export(&theirs.restore(values, &Device::flex())?);
        }
        return official::adopt(network, &formats[0], values, &path, initialization, refit);
    }
    let folder = formats.first().map_or("", |names| names.folder);
    let published = PublishedConfig::of(&source.checkpoint, folder)?;
    let problems = backbone.contradictions(&published);
    if !problems.is_empty() {
        return Err(Error::Input(problems.into_iter().map(|problem| problem.under("/backbone")).collect()));
    }
    official::load_refitted(network, &formats, source, initialization, refit)
}

/// Loads the native checkpoint at `path` (see [`checkpoint()`]), or returns `None` for a file or folder of an official
/// format.
pub(crate) fn native(path: &Path) -> Result<Option<(PathBuf, Checkpoint)>> {
    let official = match path.is_dir() {
        true => !RunFolder { path: path.to_path_buf() }.checkpoints().exists(),
        false => path.exists() && checkpoint::metadata(path)?.is_none(),
    };
    if official { Ok(None) } else { checkpoint(path).map(Some) }
}

/// Loads the checkpoint at `path` for sampling, and returns its file as well. For a run folder, loads the newest
/// checkpoint.
///
/// # Errors
/// If the path does not exist, contains no checkpoint, or the checkpoint is damaged.
pub fn checkpoint(path: &Path) -> Result<(PathBuf, Checkpoint)> {
    checkpoint_with(path, Checkpoint::load_for_sampling)
}

/// Loads a checkpoint like [`checkpoint()`], with `load`.
///
/// # Errors
/// Like [`checkpoint()`].
pub fn checkpoint_with(path: &Path, load: fn(&Path) -> Result<Checkpoint>) -> Result<(PathBuf, Checkpoint)> {
    if !path.exists() {
        return Err(Error::from(
            Problem::new("", format!("{} does not exist", path.display()))
                .accepts("a run folder, a checkpoint, or an official file")
                .nearest(nearest_file(path)),
        ));
    }
    if !path.is_dir() {
        return Ok((path.to_path_buf(), load(path)?));
    }
    let offer = |path: &Path| path.display().to_string();
    RunFolder { path: path.to_path_buf() }.newest(load, &offer)?.ok_or_else(|| {
        Error::from(
            Problem::new("", format!("{} contains no checkpoint", path.display()))
                .accepts("a run folder, or a checkpoint file"),
        )
    })
}

//! What a run starts with: its networks, and the codebook of a learned tokenizer.

use crate::folder::RunFolder;
use crate::frozen;
use crate::watcher::{Stage, Watcher};
use crate::weights::weights_to_train;
use framework::burn::tensor::{Device, Tensor, TensorData};
use framework::checkpoint::Checkpoint;
use framework::data::dataset::{Dataset, ItemKind};
use framework::data::loader::{readable, spread};
use framework::error::{Error, Problem, Result};
use framework::pipeline::{MOST_VALUES, Pipeline};
use framework::random::Random;
use framework::training::trainer::{Start, tracking};
use std::path::{Path, PathBuf};

/// Returns the path of the file in which the run in `folder` stores its learned codebook.
fn learned(folder: &Path) -> PathBuf {
    folder.join("tokenizer.safetensors")
}

/// Fits the tokenizer's codebook on the dataset, unless the run folder already contains it. Does nothing for a
/// tokenizer that needs no fitting.
///
/// # Errors
/// If the dataset holds latents, its items cannot be read, or the codebook cannot be read or written.
pub fn learn_tokenizer(
    pipeline: &mut Pipeline,
    run: &RunFolder,
    dataset: &dyn Dataset,
    device: &Device,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let (path, seed) = (learned(&run.path), pipeline.train.seed);
    let Some(learner) = pipeline.tokenizer.learner() else { return Ok(()) };
    if path.exists() {
        return learner.restore(&path, device);
    }
    let ItemKind::Images([channels, height, width]) = dataset.info().items else {
        return Err(Error::from(
            Problem::new("/tokenizer and /data", "the tokenizer learns from images, but the dataset holds latents")
                .accepts("a dataset of images, or a tokenizer with its file"),
        ));
    };
    let some = spread(dataset.len(), MOST_VALUES / (channels * height * width));
    let batch = readable(dataset, &some)?;
    let shape = [batch.labels.len(), channels, height, width];
    let images = Tensor::<4>::from_data(TensorData::new(batch.values, shape), device);
    let mut last = (0, 0.0);
    learner.learn(images, &Random::new(seed), &mut |done, all, error| {
        watcher.progress(Stage::Tokenizer, done, all, &format!("error {error:.5}"));
        last = (done, error);
    })?;
    watcher.finished(Stage::Tokenizer);
    learner.save(&path)?;
    let (rounds, error) = last;
    watcher.say(&format!(
        "tokenizer learned in {rounds} rounds, mean squared error {error:.5}; saved to {}",
        path.display()
    ));
    Ok(())
}

/// Restores the codebook that the tokenizer learned in a run. `from` is the run folder or a checkpoint in it.
///
/// # Errors
/// If the run has no codebook file, or the file does not fit.
pub fn restore_tokenizer(pipeline: &mut Pipeline, from: &Path, device: &Device) -> Result<()> {
    let Some(learner) = pipeline.tokenizer.learner() else { return Ok(()) };
    // A checkpoint is in the run's `checkpoints` folder, or in a set-aside folder within it.
    let among = |folder: &&Path| folder.file_name().is_some_and(|name| name == "checkpoints");
    let run = if from.is_dir() { Some(from) } else { from.ancestors().find(among).and_then(Path::parent) };
    if let Some(path) = run.map(learned).filter(|path| path.exists()) {
        return learner.restore(&path, device);
    }
    Err(Error::from(
        Problem::new(
            "",
            format!("the file with the tokenizer's learned codebook was not found for {}", from.display()),
        )
        .accepts("a run folder, or a checkpoint within it")
        .fix("name the file: --set /tokenizer/path=FILE"),
    ))
}

/// Returns the networks of a run that starts, or resumes from `resume`.
///
/// # Errors
/// If the weights to start from, or the reference, cannot be loaded.
pub fn start(
    pipeline: &Pipeline,
    run: &RunFolder,
    device: &Device,
    resume: Option<Checkpoint>,
    watcher: &mut dyn Watcher,
) -> Result<Start> {
    let tracked = tracking(&pipeline.train, device);
    let online = match (&pipeline.train.from, &resume) {
        (Some(source), None) => {
            let (network, report) = weights_to_train(&*pipeline.backbone, pipeline.train.seed, source, &tracked)?;
            watcher.say(&format!("starting from {}: {report}", source.checkpoint.display()));
            pipeline.adapt(network)
        }
        _ => pipeline.init_backbone(&tracked),
    };
    let reference = match pipeline.objective.needs().reference {
        true => Some(frozen::reference(pipeline, run, device, &online, resume.is_some(), watcher)?),
        false => None,
    };
    Ok(Start { online, reference, resume })
}

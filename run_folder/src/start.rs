//! The networks a run begins with: fresh, from a file, from where it stopped; and the frozen reference beside them.

use crate::run::{self, Run};
use crate::train::bar;
use crate::{Failure, document};
use framework::backbone::BoxBackbone;
use framework::burn::module::Module;
use framework::burn::tensor::{Device, Tensor, TensorData};
use framework::checkpoint::{self, Checkpoint};
use framework::dataset::{Dataset, ItemKind};
use framework::error::Error;
use framework::foreign::{self, Report, Source};
use framework::loader::{readable, spread};
use framework::pipeline::{MOST_VALUES, Pipeline};
use framework::random::Random;
use framework::trainer::{Start, tracking};
use framework::weights::{self, Drawing};
use std::path::{Path, PathBuf};

/// The weights of a run's folder, a native checkpoint or an official file, in a network of this pipeline.
pub fn weights(pipeline: &Pipeline, source: &Source, device: &Device) -> Result<(BoxBackbone, Report), Failure> {
    let (network, formats) = (pipeline.backbone.init(device), pipeline.backbone.formats());
    let init = |path: &str, shape: &[usize]| pipeline.backbone.initializer(path, shape);
    let random = Random::new(pipeline.train.seed);
    let drawing: Drawing<'_> = (&random, &init);
    if let Some((path, Checkpoint { document, model: mut values, .. })) = native(&source.checkpoint)? {
        if values.keys().any(|name| name.ends_with(".lora.a")) {
            // Adapters of an earlier run become part of the weights that this one starts from.
            let theirs = document::from_text(&document, &[], &format!("{} (its document)", path.display()))?;
            values = weights::export(&theirs.restore(values, &Device::flex())?);
        }
        return Ok(foreign::adopt(network, &formats[0], values, &path, drawing)?);
    }
    Ok(foreign::load(network, &formats, source, drawing)?)
}

/// The [`checkpoint`] that a path stands for, if it is not a file or a folder of an official format.
fn native(path: &Path) -> Result<Option<(PathBuf, Checkpoint)>, Failure> {
    let official = match path.is_dir() {
        true => !Run { folder: path.to_path_buf() }.checkpoints().exists(),
        false => path.exists() && checkpoint::metadata(path)?.is_none(),
    };
    if official { Ok(None) } else { checkpoint(path).map(Some) }
}

/// The checkpoint that a path stands for, as a sampler needs it, and its file: a folder stands for its run's newest one.
pub fn checkpoint(path: &Path) -> Result<(PathBuf, Checkpoint), Failure> {
    if !path.exists() {
        return Err(Failure::Input(format!(
            "error: {} does not exist\n  accepts  a run's folder, a checkpoint, or an official file",
            path.display()
        )));
    }
    if !path.is_dir() {
        return Ok((path.to_path_buf(), Checkpoint::load_for_sampling(path)?));
    }
    let offer = |path: &Path| path.display().to_string();
    let checkpoints = Run { folder: path.to_path_buf() }.checkpoints();
    run::newest(&checkpoints, Checkpoint::load_for_sampling, &offer)?.ok_or_else(|| {
        Failure::Input(format!(
            "error: {} holds no checkpoint\n  accepts  a run's folder, or a checkpoint file",
            path.display()
        ))
    })
}

/// Where the run in `folder` keeps what its tokenizer learned.
fn learned(folder: &Path) -> PathBuf {
    folder.join("tokenizer.safetensors")
}

/// Has the tokenizer of a run learn from the dataset, if it must and has not.
pub fn learn_tokenizer(
    pipeline: &mut Pipeline,
    run: &Run,
    dataset: &dyn Dataset,
    device: &Device,
) -> Result<(), Failure> {
    let (path, seed) = (learned(&run.folder), pipeline.train.seed);
    let Some(learner) = pipeline.tokenizer.learner() else { return Ok(()) };
    if path.exists() {
        return Ok(learner.restore(&path, device)?);
    }
    let ItemKind::Images([channels, height, width]) = dataset.info().items else {
        return Err(Failure::Input("error: a tokenizer learns from images; the dataset holds latents\n  at       /tokenizer and /data\n  accepts  a dataset of images, or a tokenizer with its file".into()));
    };
    let some = spread(dataset.len(), MOST_VALUES / (channels * height * width));
    let batch = readable(dataset, &some)?;
    let shape = [batch.labels.len(), channels, height, width];
    let images = Tensor::<4>::from_data(TensorData::new(batch.values, shape), device);
    let bar = bar("tokenizer", 0);
    let mut last = (0, 0.0);
    learner.learn(images, &Random::new(seed), &mut |done, all, error| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("error {error:.5}"));
        last = (done, error);
    })?;
    bar.finish_and_clear();
    learner.save(&path)?;
    let (rounds, error) = last;
    eprintln!("tokenizer learned in {rounds} rounds, mean squared error {error:.5}; kept in {}", path.display());
    Ok(())
}

/// Gives the tokenizer what it learned in the run that `from` (its folder, or a checkpoint in it) belongs to.
pub fn restore_tokenizer(pipeline: &mut Pipeline, from: &Path, device: &Device) -> Result<(), Failure> {
    let Some(learner) = pipeline.tokenizer.learner() else { return Ok(()) };
    // A folder is a run's. A checkpoint lies in one's `checkpoints`, or set aside in there.
    let among = |folder: &&Path| folder.file_name().is_some_and(|name| name == "checkpoints");
    let run = if from.is_dir() { Some(from) } else { from.ancestors().find(among).and_then(Path::parent) };
    if let Some(path) = run.map(learned).filter(|path| path.exists()) {
        return Ok(learner.restore(&path, device)?);
    }
    Err(Failure::Input(format!(
        "error: the tokenizer learned from its run's dataset, and its file is not with {}\n  accepts  a run's folder, or a checkpoint within it\n  fix      name the file: --set /tokenizer/path=FILE",
        from.display()
    )))
}

/// The networks of a run that begins, or goes on from `resume`.
pub fn start(pipeline: &Pipeline, run: &Run, device: &Device, resume: Option<Checkpoint>) -> Result<Start, Failure> {
    let tracked = tracking(&pipeline.train, device);
    let online = match (&pipeline.train.from, &resume) {
        (Some(source), None) => {
            let (network, report) = weights(pipeline, source, &tracked)?;
            eprintln!("starting from {}: {report}", source.checkpoint.display());
            pipeline.adapt(network)
        }
        _ => pipeline.init_backbone(&tracked),
    };
    let reference = match pipeline.objective.needs().reference {
        true => Some(reference(pipeline, run, device, &online, resume.is_some())?),
        false => None,
    };
    Ok(Start { online, reference, resume })
}

/// The frozen reference. The run keeps its own copy, so it goes on after the original is gone.
fn reference(
    pipeline: &Pipeline,
    run: &Run,
    device: &Device,
    online: &BoxBackbone,
    resumed: bool,
) -> Result<BoxBackbone, Failure> {
    let kept = run.folder.join("reference.safetensors");
    if resumed || kept.exists() {
        let checkpoint = Checkpoint::load_for_sampling(&kept)?;
        return own(pipeline, &kept, checkpoint, device);
    }
    let Some(source) = &pipeline.train.reference else {
        let network = online.valid();
        let (document, model) = (pipeline.document.clone(), weights::export(&network));
        Checkpoint { document, model, ..Checkpoint::default() }.save(&kept)?;
        return Ok(network);
    };
    let path = &source.checkpoint;
    let checkpoint = match native(path)? {
        Some((_, found)) => Checkpoint { document: found.document, model: found.model, ..Checkpoint::default() },
        None => {
            let (network, report) = weights(pipeline, source, device)?;
            eprintln!("reference {}: {report}", path.display());
            let (document, model) = (pipeline.document.clone(), weights::export(&network));
            Checkpoint { document, model, ..Checkpoint::default() }
        }
    };
    checkpoint.save(&kept)?;
    own(pipeline, path, checkpoint, device)
}

/// A network of the checkpoint's own document, which must speak of the same latents, noise and conditions.
fn own(pipeline: &Pipeline, path: &Path, checkpoint: Checkpoint, device: &Device) -> Result<BoxBackbone, Failure> {
    let theirs = document::from_text(&checkpoint.document, &[], &format!("{} (its document)", path.display()))?;
    let (a, b) = (&pipeline.backbone, &theirs.backbone);
    let differs = [
        ("latents", a.latent_shape() != b.latent_shape()),
        ("process", format!("{:?}", a.process()) != format!("{:?}", b.process())),
        (
            "conditions",
            (a.accepts().condition, a.accepts().num_classes) != (b.accepts().condition, b.accepts().num_classes),
        ),
    ];
    if let Some((what, _)) = differs.iter().find(|(_, differs)| *differs) {
        return Err(Failure::Input(format!(
            "error: the reference {} has other {what} than the network in training\n  at       /train/reference and /backbone\n  accepts  a reference of the same latents, process and conditions",
            path.display()
        )));
    }
    Ok(theirs.restore(checkpoint.model, device).map_err(|e| Error::file(path, e.to_string()))?)
}

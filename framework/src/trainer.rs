//! The training loop, read top to bottom: batch, corruption, loss, gradient, step, average, checkpoint.

use crate::backbone::{Backbone, BoxBackbone, Control};
use crate::checkpoint::{self, Checkpoint};
use crate::condition::Condition;
use crate::dataset::Dataset;
use crate::error::{Error, Problem, Problems, Result};
use crate::loader::Loader;
use crate::objective::{Context, Draw, Models, Role};
use crate::optimizer::{LearningRateDecay, OptimizerConfig, WeightDecayGroup, clip_global_norm, learning_rate};
use crate::pipeline::Pipeline;
use crate::process::Input;
use crate::random::Random;
use crate::weights;
use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bytes, DType, Device, Tensor};
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The data type of the forward and backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit brain floats; weights, optimizer and average stay in f32.
    Bf16,
}

/// An exponential moving average of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Decay a step, in [0, 1).
    #[schemars(range(min = 0.0, max = 0.999_999_999))]
    pub decay: f64,
    /// Smaller decays at first: `min(decay, (1 + s) / (10 + s))` after `s` steps.
    #[serde(default)]
    pub warmup: bool,
}

impl EmaConfig {
    /// The decay of the update after `step` earlier ones.
    pub fn decay_at(&self, step: usize) -> f64 {
        let s = step as f64;
        if self.warmup { self.decay.min((1.0 + s) / (10.0 + s)) } else { self.decay }
    }
}

/// How training goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: usize,
    /// Samples of one forward pass.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch_size: usize,
    /// Forward passes of one optimizer step; their gradients are averaged.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub accumulate: usize,
    /// Seed of weights, data order, noise and dropping.
    #[serde(default)]
    pub seed: u64,
    /// Optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Parameters with another weight decay; the last match counts.
    #[serde(default)]
    pub weight_decay_groups: Vec<WeightDecayGroup>,
    /// Learning rate after the warm-up, > 0.
    #[schemars(range(min = 1e-12, max = 100.0))]
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from 0.
    #[serde(default)]
    #[schemars(range(max = 1_000_000_000))]
    pub warmup_steps: usize,
    /// What follows the warm-up.
    #[serde(default)]
    pub learning_rate_decay: LearningRateDecay,
    /// Largest L2 norm of all gradients together, > 0; null = no clipping.
    #[serde(default)]
    #[schemars(range(min = 1e-12))]
    pub clip_norm: Option<f64>,
    /// Average of the weights that samples are drawn from; null = none.
    #[serde(default)]
    pub ema: Option<EmaConfig>,
    /// Data type of the forward and backward pass.
    #[serde(default)]
    pub precision: Precision,
    /// Recompute cheap activations in the backward pass instead of keeping them.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Steps between lines of metrics.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub log_every: usize,
    /// Steps between checkpoints; there is always one at the end.
    #[serde(default = "five_hundred")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub save_every: usize,
    /// Checkpoints kept.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub keep_last: usize,
    /// Steps between sample grids; null = only at the end.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub sample_every: Option<usize>,
    /// Columns of the sample grid; its rows are classes (or 8 rows without classes).
    #[serde(default = "eight")]
    #[schemars(range(min = 1, max = 1000))]
    pub sample_columns: usize,
    /// Samples drawn at the end for the metrics; 0 = as many as the grid holds.
    #[serde(default)]
    #[schemars(range(max = 10_000_000))]
    pub metric_samples: usize,
}

fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn eight() -> usize {
    8
}
fn fifty() -> usize {
    50
}
fn five_hundred() -> usize {
    500
}

impl TrainConfig {
    /// Problems within the entry; pointers are relative to it.
    pub fn check(&self) -> Problems {
        let mut problems: Problems = self.optimizer.check().into_iter().map(|p| p.under("/optimizer")).collect();
        if self.warmup_steps > self.steps {
            let what = format!("`warmup_steps` = {} is more than `steps` = {}", self.warmup_steps, self.steps);
            problems.push(Problem::new("/warmup_steps", what).and_at("/steps").accepts("warmup_steps <= steps"));
        }
        if let Err(what) = self.optimizer.init(&self.weight_decay_groups) {
            problems.push(Problem::new("/weight_decay_groups", format!("no regular expression: {what}")));
        }
        problems
    }
}

/// What the trainer tells about one step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Steps done, from 1.
    pub step: usize,
    /// Mean loss.
    pub loss: f64,
    /// L2 norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Samples seen by the step.
    pub samples: usize,
    /// Seconds the step took.
    pub seconds: f64,
    /// What the objective logged: means.
    pub logged: BTreeMap<String, f64>,
}

/// Called by the trainer; the command line draws, prints and samples here.
pub trait Events {
    /// One step is done.
    ///
    /// # Errors
    /// Ends the run.
    fn step(&mut self, report: &StepReport) -> Result<()>;

    /// The averaged (or plain) weights after `step` steps, every [`TrainConfig::sample_every`] steps.
    ///
    /// # Errors
    /// Ends the run.
    fn sample(&mut self, network: &BoxBackbone, step: usize) -> Result<()>;

    /// A checkpoint was written.
    fn saved(&mut self, path: &Path, step: usize);
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Done,
    /// It was asked to stop and saved first.
    Interrupted(usize),
}

/// The state of a run: weights, average, optimizer, step.
pub struct Trainer {
    pipeline: Arc<Pipeline>,
    folder: PathBuf,
    device: Device,
    online: BoxBackbone,
    ema: Option<BoxBackbone>,
    reference: Option<BoxBackbone>,
    optimizer: ModuleOptimizer,
    step: usize,
}

impl Trainer {
    /// A fresh run, or one that goes on from `from`. Checkpoints go to `folder`.
    ///
    /// # Errors
    /// If the checkpoint does not belong to this pipeline.
    pub fn new(pipeline: Arc<Pipeline>, folder: &Path, device: &Device, from: Option<Checkpoint>) -> Result<Self> {
        let train = &pipeline.train;
        let tracked = device.clone().autodiff();
        let tracked = if train.gradient_checkpointing { tracked.gradient_checkpointing() } else { tracked };
        let mut online = pipeline.init_backbone(&tracked);
        let needs = pipeline.objective.needs();
        let mut optimizer = train.optimizer.init(&train.weight_decay_groups).map_err(Error::Run)?;
        let mut step = 0;
        let mut ema = (train.ema.is_some() || needs.ema).then(|| online.valid());
        let mut reference = needs.reference.then(|| online.valid());
        if let Some(from) = from {
            step = from.step;
            online = restore(online, from.model)?;
            if let (Some(network), Some(values)) = (ema.take(), from.ema) {
                ema = Some(restore(network, values)?);
            }
            if let (Some(network), Some(values)) = (reference.take(), from.reference) {
                reference = Some(restore(network, values)?);
            }
            if !from.optimizer.is_empty() {
                optimizer = optimizer
                    .from_bytes(Bytes::from_bytes_vec(from.optimizer))
                    .map_err(|e| Error::Run(format!("the checkpoint's optimizer state cannot be read: {e}")))?;
            }
        }
        Ok(Self {
            pipeline,
            folder: folder.to_path_buf(),
            device: device.clone(),
            online,
            ema,
            reference,
            optimizer,
            step,
        })
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The weights to sample from: the average where there is one.
    pub fn sampling_network(&self) -> BoxBackbone {
        self.ema.clone().unwrap_or_else(|| self.online.valid())
    }

    /// Trains until all steps are done, or until `stop` is set.
    ///
    /// # Errors
    /// If an item cannot be read, a number is not finite, or a file cannot be written. The last checkpoint stays.
    pub fn run(&mut self, dataset: Arc<dyn Dataset>, stop: &AtomicBool, events: &mut dyn Events) -> Result<End> {
        let pipeline = self.pipeline.clone();
        let train = &pipeline.train;
        let random = Random::new(train.seed);
        let micro = train.accumulate as u64;
        let (from, to) = (self.step as u64 * micro, train.steps as u64 * micro);
        let info = dataset.info();
        let loader = Loader::new(dataset, random, train.batch_size, from, to);
        while self.step < train.steps {
            let start = Instant::now();
            let mut report = StepReport {
                step: self.step + 1,
                loss: 0.0,
                grad_norm: 0.0,
                learning_rate: learning_rate(
                    train.learning_rate,
                    train.warmup_steps,
                    &train.learning_rate_decay,
                    self.step,
                    train.steps,
                ),
                samples: train.batch_size * train.accumulate,
                seconds: 0.0,
                logged: BTreeMap::new(),
            };
            let mut gradients = GradientsAccumulator::new();
            for pass in 0..micro {
                let batch = loader.next_batch()?;
                let latents = pipeline.latents(&batch, &info, &self.device);
                let condition = pipeline.condition(&batch.labels)?;
                let draw = self.step as u64 * micro + pass;
                let gradient = self.gradient(&latents, &condition, &random, draw, &mut report)?;
                gradients.accumulate(&self.online, gradient);
            }
            let (gradients, norm) = clip_global_norm(&self.online, gradients.grads(), train.clip_norm);
            report.grad_norm = norm;
            if !norm.is_finite() {
                return Err(self.not_finite("the gradient"));
            }
            self.online = self.optimizer.step(report.learning_rate, self.online.clone(), gradients);
            if let Some(ema) = self.ema.take() {
                let decay = train.ema.as_ref().map_or(0.9999, |ema| ema.decay_at(self.step));
                self.ema = Some(weights::average(ema, &self.online, decay));
            }
            self.step += 1;
            report.seconds = start.elapsed().as_secs_f64();
            events.step(&report)?;
            let stopping = stop.load(Ordering::SeqCst) && self.step < train.steps;
            if stopping || self.step == train.steps || self.step.is_multiple_of(train.save_every) {
                let path = self.save()?;
                events.saved(&path, self.step);
            }
            if train.sample_every.is_some_and(|every| self.step.is_multiple_of(every)) {
                events.sample(&self.sampling_network(), self.step)?;
            }
            if stopping {
                return Ok(End::Interrupted(self.step));
            }
        }
        Ok(End::Done)
    }

    /// Loss and gradient of one forward pass; draw `draw` of the run's randomness.
    fn gradient(
        &self,
        latents: &crate::process::Latent,
        condition: &Condition,
        random: &Random,
        draw: u64,
        report: &mut StepReport,
    ) -> Result<GradientsParams> {
        let train = &self.pipeline.train;
        let process = self.pipeline.process();
        let example = process.corrupt(latents, random, draw);
        let online = match train.precision {
            Precision::F32 => self.online.clone(),
            Precision::Bf16 => self.online.clone().apply_reparameterization(CastAll),
        };
        let models =
            Networks { stopped: online.valid(), online, ema: self.ema.as_ref(), reference: self.reference.as_ref() };
        let choices = Choices { random, draw };
        let context = Context::new(&example, condition, &*process, &models, &choices, (self.step, train.steps));
        let loss = self.pipeline.objective.loss(&context).mean() / train.accumulate as f64;
        let value = f64::from(loss.clone().into_scalar::<f32>());
        if !value.is_finite() {
            return Err(self.not_finite("the loss"));
        }
        report.loss += value;
        for (name, value) in context.into_log() {
            *report.logged.entry(name).or_default() += f64::from(value.into_scalar::<f32>()) / train.accumulate as f64;
        }
        Ok(GradientsParams::from_grads(loss.backward(), &self.online))
    }

    fn not_finite(&self, what: &str) -> Error {
        let last =
            checkpoint::list(&self.folder).ok().and_then(|all| all.last().map(|path| path.display().to_string()));
        Error::Run(format!(
            "{what} of step {} is not finite (seed {}). The last good checkpoint is {}. A smaller learning rate, a longer warm-up or `clip_norm` helps.",
            self.step + 1,
            self.pipeline.train.seed,
            last.unwrap_or_else(|| "none".into()),
        ))
    }

    /// Writes a checkpoint and removes those beyond `keep_last`.
    fn save(&self) -> Result<PathBuf> {
        let path = self.folder.join(checkpoint::file_name(self.step));
        let optimizer = self.optimizer.into_bytes().map_err(|e| Error::Run(format!("optimizer state: {e}")))?;
        Checkpoint {
            step: self.step,
            document: self.pipeline.document.clone(),
            model: weights::export(&self.online),
            ema: self.ema.as_ref().map(weights::export),
            reference: self.reference.as_ref().map(weights::export),
            optimizer: optimizer.to_vec(),
        }
        .save(&path)?;
        let all = checkpoint::list(&self.folder)?;
        for old in &all[..all.len().saturating_sub(self.pipeline.train.keep_last)] {
            std::fs::remove_file(old).map_err(|e| Error::io(old, e))?;
        }
        Ok(path)
    }
}

/// Puts a checkpoint's numbers into a network.
///
/// # Errors
/// If names or shapes are not the network's.
pub fn restore(network: BoxBackbone, mut values: BTreeMap<String, burn::tensor::TensorData>) -> Result<BoxBackbone> {
    for (path, shape, _) in weights::parameters(&network) {
        let Some(data) = values.get(&path) else {
            return Err(Error::Run(format!(
                "the checkpoint has no weights for `{path}`: it belongs to another backbone"
            )));
        };
        if data.shape().to_vec() != shape {
            return Err(Error::Run(format!(
                "`{path}` is {:?} in the checkpoint and {shape:?} in the backbone",
                data.shape()
            )));
        }
    }
    let network = weights::import(network, &mut values);
    match values.keys().next() {
        None => Ok(network),
        Some(path) => Err(Error::Run(format!("the checkpoint holds `{path}`, which the backbone does not have"))),
    }
}

/// The networks of one step.
struct Networks<'a> {
    online: BoxBackbone,
    stopped: BoxBackbone,
    ema: Option<&'a BoxBackbone>,
    reference: Option<&'a BoxBackbone>,
}

impl Models for Networks<'_> {
    fn predict(&self, role: Role, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let network = match role {
            Role::Online => &self.online,
            Role::Stopped => &self.stopped,
            Role::Ema => self.ema.expect("an objective that reads the EMA says so in `needs`"),
            Role::Reference => self.reference.expect("an objective that reads the reference says so in `needs`"),
        };
        network.predict(input, condition, control)
    }
}

/// Random choices as a function of (seed, purpose, draw).
struct Choices<'a> {
    random: &'a Random,
    draw: u64,
}

impl Draw for Choices<'_> {
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64> {
        self.random.uniform(purpose, 0, self.draw, n).into_iter().map(|u| low + (high - low) * u).collect()
    }

    fn bernoulli(&self, purpose: &str, p: f64, n: usize) -> Vec<bool> {
        self.random.uniform(purpose, 0, self.draw, n).into_iter().map(|u| u < p).collect()
    }

    fn index(&self, purpose: &str, choices: usize, n: usize) -> Vec<usize> {
        let mut stream = self.random.stream(purpose, 0, self.draw);
        (0..n).map(|_| stream.random_range(0..choices)).collect()
    }
}

/// Reads every parameter as bf16; the stored one stays f32 and receives the gradient.
#[derive(Module, Debug)]
struct CastToBf16 {}

impl Reparameterization for CastToBf16 {
    const NAME: &'static str = "bf16";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        base.cast(DType::BF16)
    }
}

struct CastAll;

impl Reparameterizer for CastAll {
    type Reparam = CastToBf16;

    fn reparameterize<const D: usize>(
        &mut self,
        _: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<CastToBf16>) {
        (param, Some(CastToBf16 {}))
    }
}

//! The training loop, read top to bottom: batch, corruption, loss, gradient, step, average, checkpoint.

use crate::backbone::{Backbone, BoxBackbone, Control};
use crate::checkpoint::{self, Checkpoint};
use crate::condition::Condition;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::guard;
use crate::loader::{Batch, Loader};
use crate::microbatch;
use crate::objective::{Context, Draw, Memory, Models, Partial, Role};
use crate::optimizer::{clip_global_norm, learning_rate};
use crate::pipeline::Pipeline;
use crate::plugin::Kind;
use crate::precision::{CastAll, MatmulPrecision};
use crate::process::{Input, Latent};
use crate::random::Random;
use crate::train_config::{Precision, TrainConfig};
use crate::weights;
use crate::workers::{Pass, Workers, workers};
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bytes, DType, Device, Tensor};
use rand::RngExt;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What the trainer tells about one step.
#[derive(Clone, Debug, Default)]
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
    /// Why items could not be read; others stood in for them.
    pub skipped: Vec<String>,
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

    /// The averaged (or plain) weights after `step` steps, every `sample_every` steps. Answers with the document's
    /// metrics on samples of them, where `measure` asks for it.
    ///
    /// # Errors
    /// Ends the run.
    fn sample(&mut self, network: &BoxBackbone, step: usize, measure: bool) -> Result<BTreeMap<String, f64>>;

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

/// The networks a run begins with.
pub struct Start {
    /// The weights to train, on [`tracking`]'s device.
    pub online: BoxBackbone,
    /// The frozen reference or teacher, for objectives that need one.
    pub reference: Option<BoxBackbone>,
    /// Where an interrupted run goes on.
    pub resume: Option<Checkpoint>,
}

/// The device that records gradients as the document asks.
pub fn tracking(train: &TrainConfig, device: &Device) -> Device {
    let tracked = device.clone().autodiff();
    if train.gradient_checkpointing { tracked.gradient_checkpointing() } else { tracked }
}

/// The state of a run: weights, average, optimizer, step.
pub struct Trainer {
    pipeline: Arc<Pipeline>,
    folder: PathBuf,
    device: Device,
    /// Absent only while the optimizer writes it in place.
    online: Option<BoxBackbone>,
    ema: Option<BoxBackbone>,
    reference: Option<BoxBackbone>,
    optimizer: ModuleOptimizer,
    workers: Box<dyn Workers>,
    memory: Memory,
    step: usize,
    /// Sum of the losses since the last regular checkpoint, and their number.
    since_saved: (f64, usize),
}

impl Trainer {
    /// A fresh run, or one that goes on. Checkpoints go to `folder`.
    ///
    /// # Errors
    /// If the checkpoint does not belong to this pipeline.
    pub fn new(pipeline: Arc<Pipeline>, folder: &Path, device: &Device, start: Start) -> Result<Self> {
        let train = &pipeline.train;
        let mut online = start.online;
        let mut optimizer = train.optimizer.init(&train.weight_decay_groups).map_err(Error::Run)?;
        let mut ema = train.ema.is_some().then(|| online.valid());
        let (mut step, mut memory, mut since_saved) = (0, Memory::new(), (0.0, 0));
        if let Some(from) = start.resume {
            (step, memory) = (from.step, from.memory);
            if !train.saves_at(step) {
                since_saved = from.losses;
            }
            online = weights::restore(online, from.model)?;
            if let (Some(network), Some(values)) = (ema.take(), from.ema) {
                ema = Some(weights::restore(network, values)?);
            }
            if !from.optimizer.is_empty() {
                optimizer = optimizer
                    .from_bytes(Bytes::from_bytes_vec(from.optimizer))
                    .map_err(|e| Error::Run(format!("the checkpoint's optimizer state cannot be read: {e}")))?;
            }
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            device: device.clone(),
            online: Some(online),
            ema,
            reference: start.reference,
            optimizer,
            workers: workers(train.workers),
            memory,
            step,
            since_saved,
            pipeline,
        })
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The weights to sample from: the average where there is one.
    pub fn sampling_network(&self) -> BoxBackbone {
        self.ema.clone().unwrap_or_else(|| self.online().valid())
    }

    fn online(&self) -> &BoxBackbone {
        self.online.as_ref().expect("there between two steps of the optimizer")
    }

    /// Trains until all steps are done, or until `stop` is set.
    ///
    /// # Errors
    /// If most items of a batch cannot be read, a number is not finite, or a file cannot be written. The last checkpoint stays.
    pub fn run(&mut self, dataset: Arc<dyn Dataset>, stop: &AtomicBool, events: &mut dyn Events) -> Result<End> {
        let pipeline = self.pipeline.clone();
        let train = &pipeline.train;
        let passes = train.accumulate;
        let random = Random::new(train.seed);
        let info = dataset.info();
        let all = (self.step * passes) as u64..(train.steps * passes) as u64;
        let loader = Loader::new(dataset, random, train.batch_size, all.start, all.end);
        let newest = self.folder.join(checkpoint::file_name(self.step));
        if train.saves_at(self.step) && newest.exists() {
            // A run that was killed may have ended right behind it.
            self.settle(&newest)?;
        }
        while self.step < train.steps {
            let start = Instant::now();
            let (warmup, decay) = (train.warmup_steps, &train.learning_rate_decay);
            let mut report = StepReport {
                step: self.step + 1,
                learning_rate: learning_rate(train.learning_rate, warmup, decay, self.step, train.steps),
                samples: train.batch_size * passes,
                ..StepReport::default()
            };
            let batches = (0..passes).map(|_| loader.next_batch()).collect::<Result<Vec<Batch>>>()?;
            report.skipped = batches.iter().flat_map(|batch| batch.skipped.iter().cloned()).collect();
            let mut gradients = GradientsAccumulator::new();
            let pass = |i: usize| -> Result<Pass> {
                let latents = pipeline.latents(&batches[i], &info, &self.device)?;
                let condition = pipeline.condition(&batches[i].labels)?;
                self.pass(&latents, &condition, &random, (self.step * passes + i) as u64)
            };
            self.workers.run(passes, &pass, &mut |(loss, gradient, logged)| {
                gradients.accumulate(self.online(), gradient);
                report.loss += loss;
                for (name, value) in logged {
                    *report.logged.entry(name).or_default() += value / passes as f64;
                }
            })?;
            let (gradients, norm) = clip_global_norm(self.online(), gradients.grads(), train.clip_norm);
            report.grad_norm = norm;
            if !norm.is_finite() {
                return Err(self.not_finite("the gradient"));
            }
            let online = self.online.take().expect("there between two steps of the optimizer");
            self.online = Some(self.optimizer.step(report.learning_rate, online, gradients));
            if let (Some(ema), Some(config)) = (self.ema.take(), &train.ema) {
                self.ema = Some(weights::average(ema, self.online(), config.decay_at(self.step)));
            }
            self.step += 1;
            self.since_saved = (self.since_saved.0 + report.loss, self.since_saved.1 + 1);
            report.seconds = start.elapsed().as_secs_f64();
            events.step(&report)?;
            if train.sample_every.is_some_and(|every| self.step.is_multiple_of(every)) {
                let measure = pipeline.objective.needs().measurements;
                let measured = events.sample(&self.sampling_network(), self.step, measure)?;
                pipeline.objective.measured(&mut self.memory, &measured).map_err(Error::Run)?;
            }
            let stopping = stop.load(Ordering::SeqCst) && self.step < train.steps;
            if stopping || train.saves_at(self.step) {
                let path = self.save()?;
                events.saved(&path, self.step);
            }
            if stopping {
                return Ok(End::Interrupted(self.step));
            }
        }
        Ok(End::Done)
    }

    /// Loss and gradient of one forward pass; draw `draw` of the run's randomness.
    ///
    /// # Errors
    /// If a plugin panics or the loss is not finite.
    pub fn pass(&self, latents: &Latent, condition: &Condition, random: &Random, draw: u64) -> Result<Pass> {
        let train = &self.pipeline.train;
        let process = self.pipeline.process();
        let example = process.corrupt(latents, random, draw);
        // Threads that share leaves of one gradient graph lock each other out: each has leaves of its own.
        let online = match train.workers {
            1 => self.online().clone(),
            _ => self.online().clone().fork(&tracking(train, &self.device)),
        };
        let online = match train.precision {
            Precision::F32 => online,
            Precision::Bf16 => online.apply_reparameterization(CastAll),
        };
        let leaves = online.clone();
        let models = Networks {
            name: self.pipeline.name(Kind::Backbone),
            stopped: online.valid(),
            online,
            ema: self.ema.as_ref(),
            reference: self.reference.as_ref(),
            stopped_precision: train.stopped_matmul_precision,
        };
        let choices = Choices { random, draw };
        let condition = (condition, self.pipeline.backbone.accepts().num_classes);
        let context = Context::new(&example, condition, &*process, &models, &choices, (self.step, train.steps))
            .with_memory(&self.memory);
        let objective = self.pipeline.name(Kind::Objective);
        let losses = guard::caught(objective, || self.pipeline.objective.loss(&context))
            .map_err(|error| self.failed(&error.to_string()))?;
        let [count] = losses.dims();
        if count != condition.0.len() {
            let what = format!("{objective} gave {count} losses for a batch of {}", condition.0.len());
            return Err(self.failed(&what));
        }
        let loss = losses.mean() / train.accumulate as f64;
        let value = f64::from(loss.clone().into_scalar::<f32>());
        if !value.is_finite() {
            return Err(self.not_finite(&format!("the loss of {objective}")));
        }
        let mean = |(name, value): (String, Tensor<1>)| (name, f64::from(value.into_scalar::<f32>()));
        let logged = context.into_log().into_iter().map(mean).collect();
        let gradients =
            guard::caught(objective, || loss.backward()).map_err(|error| self.failed(&error.to_string()))?;
        Ok((value, GradientsParams::from_grads(gradients, &leaves), logged))
    }

    fn not_finite(&self, what: &str) -> Error {
        let help = "A smaller learning rate, a longer warm-up or `clip_norm` helps.";
        Error::Run(format!("{} {help}", self.failed(&format!("{what} is not finite"))))
    }

    /// What ended the run, when, and what is left of it.
    fn failed(&self, what: &str) -> Error {
        let last =
            checkpoint::list(&self.folder).ok().and_then(|all| all.last().map(|path| path.display().to_string()));
        Error::Run(format!(
            "{what}, at step {} (seed {}). The last good checkpoint is {}.",
            self.step + 1,
            self.pipeline.train.seed,
            last.unwrap_or_else(|| "none".into()),
        ))
    }

    /// Writes a checkpoint. Those of an interruption are there until the next regular one, remove none, and take no part in
    /// the choice of the best: their mean loss is of fewer steps.
    fn save(&mut self) -> Result<PathBuf> {
        let path = self.folder.join(checkpoint::file_name(self.step));
        let optimizer = self.optimizer.into_bytes().map_err(|e| Error::Run(format!("optimizer state: {e}")))?;
        Checkpoint {
            step: self.step,
            document: self.pipeline.document.clone(),
            model: weights::export(self.online()),
            ema: self.ema.as_ref().map(weights::export),
            memory: self.memory.clone(),
            losses: self.since_saved,
            optimizer: optimizer.try_into_vec().unwrap_or_else(|bytes| bytes.to_vec()),
        }
        .save(&path)?;
        if self.pipeline.train.saves_at(self.step) {
            self.since_saved = (0.0, 0);
            self.settle(&path)?;
        }
        Ok(path)
    }

    /// Makes the newest checkpoint the best if it is, and removes those beyond `keep_last` and those of interruptions.
    fn settle(&self, newest: &Path) -> Result<()> {
        let train = &self.pipeline.train;
        if train.keep_best {
            checkpoint::keep_best(newest)?;
        }
        let is_regular = |path: &PathBuf| checkpoint::step_of(path).is_some_and(|step| train.saves_at(step));
        let (kept, interrupted): (Vec<_>, Vec<_>) = checkpoint::list(&self.folder)?.into_iter().partition(is_regular);
        for old in kept[..kept.len().saturating_sub(train.keep_last)].iter().chain(&interrupted) {
            std::fs::remove_file(old).map_err(|e| Error::io(old, e))?;
        }
        Ok(())
    }
}

/// The networks of one step.
pub(crate) struct Networks<'a> {
    pub(crate) name: &'a str,
    pub(crate) online: BoxBackbone,
    pub(crate) stopped: BoxBackbone,
    pub(crate) ema: Option<&'a BoxBackbone>,
    pub(crate) reference: Option<&'a BoxBackbone>,
    pub(crate) stopped_precision: MatmulPrecision,
}

impl Models for Networks<'_> {
    fn predict(&self, role: Role, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let network = match role {
            Role::Online => &self.online,
            Role::Stopped => &self.stopped,
            Role::Ema => self.ema.expect("an objective that reads the EMA says so in `needs`"),
            Role::Reference => self.reference.expect("an objective that reads the reference says so in `needs`"),
        };
        let prediction = guard::named(self.name, || match role {
            Role::Online => network.predict(input, condition, control),
            _ => self.stopped_precision.within(|| microbatch::predict(network, input, condition, control)),
        });
        // What objectives compute with predictions is f32, also where the network in training computes in bf16.
        if prediction.dtype() == DType::BF16 { prediction.cast(DType::F32) } else { prediction }
    }

    fn predict_where(
        &self,
        wanted: &[bool],
        role: Role,
        input: &Input,
        condition: &Condition,
        control: &Control,
    ) -> Partial {
        let rows: Vec<usize> = (0..wanted.len()).filter(|row| wanted[*row]).collect();
        let found = match rows.len() {
            0 => None,
            all if all == wanted.len() => Some(self.predict(role, input, condition, control)),
            _ => Some(self.predict(role, &input.select(&rows), &condition.select(&rows), &control.select(&rows))),
        };
        Partial { found, rows }
    }
}

/// Random choices as a function of (seed, purpose, draw).
pub(crate) struct Choices<'a> {
    pub(crate) random: &'a Random,
    pub(crate) draw: u64,
}

impl Draw for Choices<'_> {
    fn uniform(&self, purpose: &str, low: f64, high: f64, n: usize) -> Vec<f64> {
        self.random.uniform(purpose, 0, self.draw, n).into_iter().map(|u| low + (high - low) * u).collect()
    }

    fn choice(&self, purpose: &str, probabilities: &[f64], n: usize) -> Vec<usize> {
        let choose = |u: f64| {
            let mut rest = u;
            let found = probabilities.iter().position(|p| {
                rest -= p;
                rest < 0.0
            });
            // Probabilities may sum to a little less than one: the last that is possible takes what is left.
            found.unwrap_or_else(|| probabilities.iter().rposition(|p| *p > 0.0).unwrap_or_default())
        };
        self.random.uniform(purpose, 0, self.draw, n).into_iter().map(choose).collect()
    }

    /// The condition of the next sample of the batch, or of one further on for another purpose's draw.
    fn negative(&self, purpose: &str, condition: &Condition) -> Condition {
        let n = condition.len();
        // Batches are drawn in random order, so the next sample is any other; purposes differ in how far they look.
        let ahead = 1 + self.random.stream(purpose, 0, 0).random_range(0..n.max(2) - 1);
        condition.select(&(0..n).map(|i| (i + ahead) % n).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::tensor;
    use burn::tensor::DType;

    #[test]
    fn inputs_are_selected_sample_by_sample() {
        let x = tensor::<3>(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [3, 2, 1], DType::F64, &Device::flex());
        let input = Input::Masked {
            x_t: x.clone(),
            x,
            hidden: vec![true, false, false, true, true, true],
            places: vec![0, 1, 2, 3, 4, 5],
            t: vec![0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
        };
        let Input::Masked { x, hidden, places, t, .. } = input.select(&[2, 0]) else { panic!("of another kind") };
        assert_eq!(x.into_data().try_into_vec::<f64>().unwrap(), [4.0, 5.0, 0.0, 1.0]);
        assert_eq!((hidden, places), (vec![true, true, true, false], vec![4, 5, 0, 1]));
        assert_eq!(t, [0.4, 0.5, 0.0, 0.1]);
    }
}

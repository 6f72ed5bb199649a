//! The training loop: batch, corruption, loss, gradient, optimizer step, weight average, checkpoint.

use crate::blame;
use crate::checkpoint::facts::DatasetFacts;
use crate::checkpoint::{self, Checkpoint};
use crate::data::dataset::{Dataset, facts};
use crate::data::loader::{Batch, Loader};
use crate::error::{Error, Problem, Result};
use crate::interrupt::{self, Counted};
use crate::network::backbone::BoxBackbone;
use crate::network::condition::Condition;
use crate::nn::dropout::Dropout;
use crate::nn::parameters;
use crate::nn::precision::CastAll;
use crate::nn::readings::Readings;
use crate::objective::context::{Context, Memory};
use crate::optimization::optimizer::{clip, learning_rate, square_sums};
use crate::optimization::record;
use crate::pipeline::Pipeline;
use crate::pipeline::train_config::{Precision, TrainConfig};
use crate::plugin::Kind;
use crate::process::Latent;
use crate::random::Random;
use crate::ranks::collective::Collective;
use crate::ranks::job::Job;
use crate::ranks::messages::{self, PassValues};
use crate::ranks::shards::Shards;
use crate::ranks::tree::{TreeSum, passes_of};
use crate::ranks::watchdog::Watchdog;
use crate::training::events::{End, Evaluator, Events, StepReport};
use crate::training::networks::{Choices, Networks, Reference};
use crate::training::workers::{Pass, Workers, workers};
use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Bytes, Device};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Key in a checkpoint's memory: an interruption ended the sampling and measuring of the checkpoint's step.
const UNSAMPLED: &str = "trainer.unsampled";

/// The networks and the checkpoint with which a run starts.
pub struct Start {
    /// Weights to train, on the device that [`tracking`] returns.
    pub online: BoxBackbone,
    /// Frozen reference or teacher, for objectives that need one.
    pub reference: Option<Reference>,
    /// Checkpoint from which an interrupted run continues.
    pub resume: Option<Checkpoint>,
}

/// Returns the autodiff device, with gradient checkpointing if the document enables it.
pub fn tracking(train: &TrainConfig, device: &Device) -> Device {
    let tracked = device.clone().autodiff();
    if train.gradient_checkpointing { tracked.gradient_checkpointing() } else { tracked }
}

/// Refuses more ranks than passes: a rank without a pass would only wait.
fn enough_passes(train: &TrainConfig, ranks: usize) -> Result<()> {
    let (passes, batch) = (train.accumulate, train.batch_size * train.accumulate);
    if ranks <= passes {
        return Ok(());
    }
    let problem = Problem::new("/train/accumulate", format!("{ranks} ranks share {passes} passes per step"))
        .accepts(format!("at most {passes} ranks: each computes at least one pass"));
    let fix = match (ranks..=batch).find(|more| batch.is_multiple_of(*more)) {
        Some(more) => format!(
            "start fewer ranks, or set accumulate to {more} and batch_size to {}: the global batch stays {batch}",
            batch / more
        ),
        None => format!("start at most {passes} ranks: the global batch has {batch} samples"),
    };
    Err(problem.fix(fix).into())
}

/// The state of a run: weights, their average, optimizer state, step.
pub struct Trainer {
    pipeline: Arc<Pipeline>,
    job: Job,
    /// Division of the optimizer state among the ranks; `None` = this process is alone.
    shards: Option<Shards>,
    folder: PathBuf,
    device: Device,
    /// `None` only while the optimizer updates the weights in place.
    online: Option<BoxBackbone>,
    /// Facts of the dataset, once it is read.
    dataset: Option<DatasetFacts>,
    ema: Option<BoxBackbone>,
    reference: Option<Reference>,
    optimizer: ModuleOptimizer,
    workers: Box<dyn Workers>,
    memory: Memory,
    step: usize,
    /// Whether the samples and measurements of the current step are due but incomplete.
    unsampled: bool,
    /// Sum and number of the losses since the last regular checkpoint.
    since_saved: (f64, usize),
}

impl Trainer {
    /// Creates the trainer of a new or a resumed run. Checkpoints are written to `folder`.
    ///
    /// # Errors
    /// If the checkpoint does not belong to this pipeline, or the optimizer's settings are invalid.
    pub fn new(pipeline: Arc<Pipeline>, folder: &Path, device: &Device, start: Start) -> Result<Self> {
        Self::in_job(pipeline, folder, device, start, Job::alone())
    }

    /// Creates the trainer of one rank of a job. All ranks start from the same state.
    ///
    /// # Errors
    /// As [`Trainer::new`], and if there are more ranks than passes per step.
    pub fn in_job(pipeline: Arc<Pipeline>, folder: &Path, device: &Device, start: Start, job: Job) -> Result<Self> {
        let train = &pipeline.train;
        enough_passes(train, job.ranks.size())?;
        let mut online = start.online;
        let mut optimizer = train.optimizer.init(&train.weight_decay_groups).map_err(Error::Run)?;
        let mut ema = train.ema.is_some().then(|| online.valid());
        let (mut step, mut memory, mut since_saved, mut unsampled) = (0, Memory::new(), (0.0, 0), false);
        let mut optimizer_state = Vec::new();
        if let Some(from) = start.resume {
            (step, memory) = (from.step, from.memory);
            unsampled = memory.remove(UNSAMPLED).is_some();
            if unsampled || !train.saves_at(step) {
                since_saved = from.losses;
            }
            online = parameters::restore(online, from.model)?;
            if let Some(network) = ema.take() {
                // Without an average in the checkpoint, the average starts from the weights.
                ema = Some(match from.ema {
                    Some(values) => parameters::restore(network, values)?,
                    None => online.valid(),
                });
            }
            optimizer_state = from.optimizer;
        }
        let shards = (!job.is_alone()).then(|| Shards::new(&online, &*job.ranks));
        if let Some(shards) = &shards {
            if !pipeline.objective.needs().ema {
                ema = ema.map(|ema| shards.own(ema));
            }
            if !optimizer_state.is_empty() {
                optimizer_state = record::part(optimizer_state, &|id| shards.owns(id))?;
            }
        }
        if !optimizer_state.is_empty() {
            optimizer = optimizer
                .from_bytes(Bytes::from_bytes_vec(optimizer_state))
                .map_err(|e| Error::Run(format!("the checkpoint's optimizer state cannot be read: {e}")))?;
        }
        Ok(Self {
            job,
            shards,
            folder: folder.to_path_buf(),
            device: device.clone(),
            online: Some(online),
            dataset: None,
            ema,
            reference: start.reference,
            optimizer,
            workers: workers(train.workers),
            memory,
            step,
            unsampled,
            since_saved,
            pipeline,
        })
    }

    /// Returns the number of completed steps.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Returns the weights to sample with: the average if there is one, otherwise the weights in training. All ranks of
    /// a job call it together; only rank 0's network has all values.
    pub fn sampling_network(&self) -> BoxBackbone {
        self.average().unwrap_or_else(|| self.online().valid())
    }

    /// Returns the average, whole on rank 0.
    fn average(&self) -> Option<BoxBackbone> {
        let ema = self.ema.as_ref()?;
        Some(match &self.shards {
            Some(shards) if !self.pipeline.objective.needs().ema => shards.whole(ema, self.ranks()),
            _ => ema.clone(),
        })
    }

    fn ranks(&self) -> &dyn Collective {
        &*self.job.ranks
    }

    fn online(&self) -> &BoxBackbone {
        self.online.as_ref().expect("the weights are present except during an optimizer step")
    }

    /// Trains until all steps are done, or until `stop` is set. A request to save ([`interrupt::request_save`]) writes
    /// a temporary checkpoint after the current step.
    ///
    /// # Errors
    /// If most items of a batch cannot be read, a loss or gradient is not finite, a plugin panics, or a file cannot be
    /// written. The last checkpoint is kept.
    pub fn run(
        &mut self,
        dataset: Arc<dyn Dataset>,
        stop: &AtomicBool,
        events: &mut dyn Events,
        evaluator: &mut dyn Evaluator,
    ) -> Result<End> {
        let _training = Counted::training();
        let pipeline = self.pipeline.clone();
        let train = &pipeline.train;
        let passes = train.accumulate;
        let random = Random::new(train.seed);
        let info = dataset.info();
        self.dataset = Some(facts(&*dataset));
        let mine = passes_of(self.ranks().rank(), self.ranks().size(), passes);
        let (first, count) = (mine.start, mine.len());
        let batches_of = move |step| mine.clone().map(move |pass| (step * passes + pass) as u64);
        let loader = Loader::new(dataset, random, train.batch_size, (self.step..train.steps).flat_map(batches_of));
        let watchdog = (!self.job.is_alone()).then(|| Watchdog::start(self.job.step_timeout, self.job.hanging.clone()));
        // Rank 0 may save or sample between two steps, so the other ranks cannot limit that time; rank 0 can.
        let lead = watchdog.as_ref().filter(|_| self.job.is_first());
        let newest = self.folder.join(checkpoint::file_name(self.step));
        if self.unsampled {
            self.sample(events, evaluator)?;
            if self.unsampled {
                return Ok(End::Interrupted(self.step));
            }
            if train.saves_at(self.step) {
                // The checkpoint on disk lacks the measurements.
                let path = self.save()?;
                events.saved(&path, self.step);
            }
        } else if self.job.is_first() && train.saves_at(self.step) && newest.exists() {
            // The process may have been killed after writing this checkpoint but before pruning the old ones.
            self.settle(&newest)?;
        }
        while self.step < train.steps {
            if let Some(watchdog) = &watchdog {
                lead.into_iter().for_each(|lead| lead.begin(self.step + 1));
                self.ranks().barrier();
                watchdog.begin(self.step + 1);
            }
            let start = Instant::now();
            let (warmup, decay) = (train.warmup_steps, &train.learning_rate_decay);
            let mut report = StepReport {
                step: self.step + 1,
                learning_rate: learning_rate(train.learning_rate, warmup, decay, self.step, train.steps),
                samples: train.batch_size * passes,
                ..StepReport::default()
            };
            let batches = (0..count).map(|_| loader.next_batch()).collect::<Result<Vec<Batch>>>()?;
            let pass = |i: usize| -> Result<Pass> {
                let latents = pipeline.latents(&batches[i], &info, &self.device)?;
                let condition = pipeline.condition(&batches[i].labels)?;
                self.pass(&latents, &condition, &random, (self.step * passes + first + i) as u64)
            };
            let (mut sum, mut readings) = (TreeSum::new(count), Readings::default());
            // Indices of the loss and of the logged means of every pass.
            let mut waiting: Vec<(usize, BTreeMap<String, usize>)> = Vec::new();
            self.workers.run(count, &pass, &mut |(loss, gradient, logged)| {
                sum.add(self.online(), gradient);
                let loss = readings.add(loss);
                waiting.push((loss, logged.into_iter().map(|(name, value)| (name, readings.add(value))).collect()));
            })?;
            let mut gradients = sum.total();
            if let Some(shards) = &self.shards {
                gradients = shards.reduce(self.online(), self.ranks(), gradients, &self.device);
            }
            let squares = square_sums(self.online(), &gradients, &mut readings);
            // The only read of the step.
            let read = readings.read();
            let values = self.values(&waiting, &read)?;
            let skipped = batches.iter().flat_map(|batch| batch.skipped.iter().cloned()).collect();
            let (values, skipped) = messages::collect(self.ranks(), values, skipped)?;
            report.skipped = skipped;
            for (loss, logged) in values {
                report.loss += loss;
                for (name, value) in logged {
                    *report.logged.entry(name).or_default() += value / passes as f64;
                }
            }
            let mut squares: Vec<f64> = squares.iter().map(|sum| sum.value(&read)).collect();
            if let Some(shards) = &self.shards {
                squares = shards.gather(self.ranks(), &squares);
            }
            let norm = squares.iter().sum::<f64>().sqrt();
            report.grad_norm = norm;
            if !norm.is_finite() {
                return Err(self.not_finite("the gradient", self.step + 1));
            }
            let gradients = clip(self.online(), gradients, norm, train.clip_norm);
            let online = self.online.take().expect("the weights are present except during an optimizer step");
            let online = self.optimizer.step(report.learning_rate, online, gradients);
            self.online = Some(match &self.shards {
                Some(shards) => shards.share(online, self.ranks()),
                None => online,
            });
            if let (Some(ema), Some(config)) = (self.ema.take(), &train.ema) {
                self.ema = Some(parameters::average(ema, self.online(), config.decay_at(self.step)));
            }
            self.step += 1;
            self.since_saved = (self.since_saved.0 + report.loss, self.since_saved.1 + 1);
            report.seconds = start.elapsed().as_secs_f64();
            for (name, value) in &self.memory {
                report.logged.entry(name.clone()).or_insert(*value);
            }
            watchdog.iter().for_each(Watchdog::end);
            events.step(&report)?;
            self.sample(events, evaluator)?;
            lead.into_iter().for_each(|lead| lead.begin(self.step));
            let requests = [stop.load(Ordering::SeqCst), interrupt::take_save_request()];
            let [asked, saving] = messages::any(self.ranks(), requests);
            lead.into_iter().for_each(Watchdog::end);
            let stopping = (asked || self.unsampled) && self.step < train.steps;
            if stopping || saving || train.saves_at(self.step) {
                let path = self.save()?;
                events.saved(&path, self.step);
            }
            if stopping {
                return Ok(End::Interrupted(self.step));
            }
        }
        Ok(End::Done)
    }

    /// Returns the loss and logged means of every pass from the values that the step read.
    fn values(&self, waiting: &[(usize, BTreeMap<String, usize>)], read: &[f64]) -> Result<Vec<PassValues>> {
        let values = |(loss, logged): &(usize, BTreeMap<String, usize>)| -> Result<PassValues> {
            if !read[*loss].is_finite() {
                let objective = self.pipeline.name(Kind::Objective);
                return Err(self.not_finite(&format!("the loss of {objective}"), self.step + 1));
            }
            Ok((read[*loss], logged.iter().map(|(name, index)| (name.clone(), read[*index])).collect()))
        };
        waiting.iter().map(values).collect()
    }

    /// Samples and measures after a step, as far as either is due, on rank 0. A request to stop ends this early; the
    /// checkpoint then says that it is due.
    fn sample(&mut self, events: &mut dyn Events, evaluator: &mut dyn Evaluator) -> Result<()> {
        let pipeline = self.pipeline.clone();
        let is_due = |every: Option<usize>| every.is_some_and(|every| self.step.is_multiple_of(every));
        let (samples, measures) = (is_due(pipeline.train.sample_every), is_due(pipeline.train.evaluate_every));
        let follows = samples && pipeline.objective.needs().measurements;
        if !samples && !measures {
            self.unsampled = false;
            return Ok(());
        }
        let network = self.sampling_network();
        let mut measured = Some(BTreeMap::new());
        if self.job.is_first() {
            let sampled = interrupt::abortable(|| {
                if samples {
                    events.sample(&network, self.step)?;
                }
                if !follows && !measures {
                    return Ok(BTreeMap::new());
                }
                let start = Instant::now();
                let measured = evaluator.evaluate(&network, self.step)?;
                events.measured(&measured, self.step, start.elapsed().as_secs_f64())?;
                Ok(measured)
            });
            measured = match sampled {
                Err(Error::Interrupted) => None,
                sampled => Some(sampled?),
            };
        }
        let measured = messages::measured(self.ranks(), measured)?;
        self.unsampled = measured.is_none();
        if let Some(measured) = measured.filter(|_| follows) {
            pipeline.objective.measured(&mut self.memory, &measured).map_err(Error::Run)?;
        }
        Ok(())
    }

    /// Computes loss and gradient of one forward pass. `draw_index` selects the random numbers of the pass.
    ///
    /// # Errors
    /// If a plugin panics, or the number of losses is not the batch size.
    pub fn pass(&self, latents: &Latent, condition: &Condition, random: &Random, draw_index: u64) -> Result<Pass> {
        let train = &self.pipeline.train;
        let process = self.pipeline.process();
        let backbone = self.pipeline.name(Kind::Backbone);
        let example = blame::caught(backbone, || process.corrupt(latents, random, draw_index))?;
        // Threads that share leaves of the autodiff graph block each other on its locks. Give each pass its own leaves.
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
            dropout: Dropout::training(*random, draw_index),
            stopped_precision: train.stopped_matmul_precision,
        };
        let choices = Choices { random, draw_index };
        let condition = (condition, self.pipeline.backbone.accepts().num_classes());
        let context = Context::new(&example, condition, &*process, &models, &choices, (self.step, train.steps))
            .with_memory(&self.memory);
        let objective = self.pipeline.name(Kind::Objective);
        let losses = blame::caught(objective, || self.pipeline.objective.loss(&context))
            .map_err(|error| self.failed(&error.to_string()))?;
        let [count] = losses.dims();
        if count != condition.0.len() {
            let what = format!("{objective} returned {count} losses for a batch of {}", condition.0.len());
            return Err(self.failed(&what));
        }
        let loss = losses.mean() / train.accumulate as f64;
        let value = loss.clone().inner();
        let logged = context.into_log();
        let gradients =
            blame::caught(objective, || loss.backward()).map_err(|error| self.failed(&error.to_string()))?;
        Ok((value, GradientsParams::from_grads(gradients, &leaves), logged))
    }

    fn not_finite(&self, what: &str, step: usize) -> Error {
        let help = "Try a smaller learning rate, a longer warm-up or `clip_norm`.";
        Error::Run(format!("{} {help}", self.failed_at(&format!("{what} is not finite"), step)))
    }

    /// Adds the step in progress, the seed and the last good checkpoint to an error message.
    fn failed(&self, what: &str) -> Error {
        self.failed_at(what, self.step + 1)
    }

    fn failed_at(&self, what: &str, step: usize) -> Error {
        let last =
            checkpoint::list(&self.folder).ok().and_then(|all| all.last().map(|path| path.display().to_string()));
        Error::Run(format!(
            "{what}, at step {step} (seed {}). The last good checkpoint is {}.",
            self.pipeline.train.seed,
            last.unwrap_or_else(|| "none".into()),
        ))
    }

    /// Saves a checkpoint; rank 0 writes it with the state of all ranks. A checkpoint of an interruption is temporary: it
    /// evicts no older ones, is deleted at the next regular save, and is never "best", because its mean loss covers fewer
    /// steps. A regular checkpoint without the measurements of its step evicts none either: it is saved again when they
    /// are complete.
    fn save(&mut self) -> Result<PathBuf> {
        let path = self.folder.join(checkpoint::file_name(self.step));
        let due = self.unsampled.then(|| (UNSAMPLED.to_string(), 1.0));
        let optimizer = self.optimizer.into_bytes().map_err(|e| Error::Run(format!("optimizer state: {e}")))?;
        let states = self.ranks().collect(optimizer.try_into_vec().unwrap_or_else(|bytes| bytes.to_vec()));
        let average = self.average();
        if !self.job.is_first() {
            return Ok(path);
        }
        let checkpoint = Checkpoint {
            step: self.step,
            document: self.pipeline.document.clone(),
            model: parameters::export(self.online()),
            ema: average.as_ref().map(parameters::export),
            memory: self.memory.clone().into_iter().chain(due).collect(),
            dataset: self.dataset.clone(),
            losses: self.since_saved,
            optimizer: record::joined(states)?,
        };
        if let Some(name) = checkpoint.not_finite() {
            return Err(self.not_finite(&format!("the weight `{name}`"), self.step));
        }
        checkpoint.save(&path)?;
        if self.pipeline.train.saves_at(self.step) && !self.unsampled {
            self.since_saved = (0.0, 0);
            self.settle(&path)?;
        }
        Ok(path)
    }

    /// Updates the best checkpoint from `newest`. Removes the checkpoints of interruptions and all but the last
    /// `keep_last` regular ones.
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

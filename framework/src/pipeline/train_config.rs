//! The `train` entry of a document.

use crate::checkpoint::official::CheckpointSource;
use crate::error::{Problem, Problems};
use crate::nn::precision::MatmulPrecision;
use crate::optimization::optimizer::{LearningRateDecay, OptimizerConfig, WeightDecayGroup};
use crate::optimization::trainable::{LoraConfig, Trainable};
use crate::schema::Required;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The data type of the forward and backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16. Weights, optimizer state and weight average stay in f32.
    Bf16,
}

/// An exponential moving average of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Decay per step, in [0, 1).
    #[schemars(range(min = 0.0, max = 0.999_999_999))]
    pub decay: f64,
    /// Whether the decay starts small and grows: `min(decay, (1 + s) / (10 + s))` after `s` steps.
    #[serde(default)]
    pub warmup: bool,
}

impl EmaConfig {
    /// Returns the decay of the update that follows `step` earlier updates.
    pub fn decay_at(&self, step: usize) -> f64 {
        let s = step as f64;
        if self.warmup { self.decay.min((1.0 + s) / (10.0 + s)) } else { self.decay }
    }
}

/// Number of rows of the sample grid for data without classes.
pub const UNCONDITIONAL_ROWS: usize = 8;

/// Largest number of rows of the sample grid for data with captions: the first distinct captions.
pub const CAPTION_ROWS: usize = 8;

/// Largest number of rows of the sample grid. With more classes, the grid shows a selection.
pub const MOST_ROWS: usize = 16;

/// The training loop: initial weights, optimizer, precision, checkpoints and sample grids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["steps", "batch_size", "learning_rate"]))]
pub struct TrainConfig {
    /// Checkpoint with the initial weights; null = random weights. Parts that the checkpoint lacks, such as a guidance
    /// input, are initialized so that they do not change predictions.
    pub from: Option<CheckpointSource>,
    /// Checkpoint of the frozen reference or teacher, for objectives that need one; null = the weights of `from`. An
    /// Unguided checkpoint contains its own backbone; an official file must match the backbone of this pipeline.
    pub reference: Option<CheckpointSource>,
    /// Regular expressions. Every parameter whose path contains a match keeps its initial value. `check --parameters`
    /// prints the paths.
    pub frozen: Vec<String>,
    /// Low-rank adapters, which are trained instead of the weights; null = the weights are trained.
    pub lora: Option<LoraConfig>,
    /// Number of optimizer steps.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: usize,
    /// Number of samples per forward pass.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch_size: usize,
    /// Number of forward passes per optimizer step. Their gradients are averaged.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub accumulate: usize,
    /// Number of threads that share the forward passes of a step, at most `accumulate`. The result is bit-identical for
    /// any number.
    #[schemars(range(min = 1, max = 1024))]
    pub workers: usize,
    /// Seed of the initial weights, the data order, the noise and all other random choices.
    pub seed: u64,
    /// Optimizer and its settings.
    pub optimizer: OptimizerConfig,
    /// Groups of parameters with their own weight decay. The last group that matches a parameter applies.
    pub weight_decay_groups: Vec<WeightDecayGroup>,
    /// Learning rate at the end of the warm-up, > 0.
    #[schemars(range(min = 1e-12, max = 100.0))]
    pub learning_rate: f64,
    /// Number of first steps over which the learning rate rises linearly from 0.
    #[schemars(range(max = 1_000_000_000))]
    pub warmup_steps: usize,
    /// Learning rate after the warm-up: constant, or a decay.
    pub learning_rate_decay: LearningRateDecay,
    /// Largest L2 norm of all gradients together, > 0. Larger gradients are scaled down; null = no clipping.
    #[schemars(range(min = 1e-12))]
    pub clip_norm: Option<f64>,
    /// Exponential moving average of the weights, which is used for sampling; null = none.
    pub ema: Option<EmaConfig>,
    /// Data type of the forward and backward pass.
    pub precision: Precision,
    /// Precision of matrix products in f32 passes with a stopped gradient: GFT's null pass, the passes of a teacher and
    /// of a reference.
    pub stopped_matmul_precision: MatmulPrecision,
    /// Whether the backward pass recomputes cheap activations instead of keeping them in memory.
    pub gradient_checkpointing: bool,
    /// Number of steps between lines of metrics.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub log_every: usize,
    /// Number of steps between checkpoints. The end of the run always writes one.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub save_every: usize,
    /// Number of latest checkpoints to keep. A checkpoint of an interruption is also kept, until the next regular one.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub keep_last: usize,
    /// Whether to keep the best checkpoint as `best.safetensors`. The best checkpoint has the smallest mean training
    /// loss since the checkpoint before it. Checkpoints of interruptions are not considered.
    pub keep_best: bool,
    /// Number of steps between sample grids; null = only at the end.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub sample_every: Option<usize>,
    /// Columns of the sample grid. Each row shows one class; with more than 16 classes, 16 of them, evenly spread. Data
    /// without classes have 8 rows.
    #[schemars(range(min = 1, max = 1000))]
    pub sample_columns: usize,
    /// Number of steps between measurements of the metrics, on `metric_samples` samples of the network so far; null =
    /// only at the end. The results are in `metrics.jsonl`. Training has the same bits with and without them.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub evaluate_every: Option<usize>,
    /// Number of samples for the metrics; 0 = as many as the sample grid shows.
    #[schemars(range(max = 10_000_000))]
    pub metric_samples: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            from: None,
            reference: None,
            frozen: Vec::new(),
            lora: None,
            steps: 0,
            batch_size: 0,
            accumulate: 1,
            workers: 1,
            seed: 0,
            optimizer: OptimizerConfig::default(),
            weight_decay_groups: Vec::new(),
            learning_rate: 0.0,
            warmup_steps: 0,
            learning_rate_decay: LearningRateDecay::default(),
            clip_norm: None,
            ema: None,
            precision: Precision::default(),
            stopped_matmul_precision: MatmulPrecision::default(),
            gradient_checkpointing: false,
            log_every: 50,
            save_every: 500,
            keep_last: 2,
            keep_best: false,
            sample_every: None,
            sample_columns: 8,
            evaluate_every: None,
            metric_samples: 0,
        }
    }
}

impl TrainConfig {
    /// Returns the settings that select the trained parameters.
    pub fn trainable(&self) -> Trainable<'_> {
        Trainable { lora: self.lora.as_ref(), frozen: &self.frozen, weight_decay_groups: &self.weight_decay_groups }
    }

    /// Returns the number of samples for the metrics at the end, for data with `num_classes` classes.
    pub fn samples_to_measure(&self, num_classes: Option<usize>) -> usize {
        let grid = num_classes.map_or(UNCONDITIONAL_ROWS, |n| n.min(MOST_ROWS)) * self.sample_columns;
        if self.metric_samples == 0 { grid } else { self.metric_samples }
    }

    /// Returns whether a regular checkpoint is written after `step` steps.
    pub fn saves_at(&self, step: usize) -> bool {
        step == self.steps || step.is_multiple_of(self.save_every)
    }

    /// Returns the problems within the entry. Pointers are relative to the entry.
    pub fn check(&self) -> Problems {
        let mut problems: Problems = self.optimizer.check().into_iter().map(|p| p.under("/optimizer")).collect();
        if self.warmup_steps > self.steps {
            let what = format!("`warmup_steps` = {} is more than `steps` = {}", self.warmup_steps, self.steps);
            problems.push(Problem::new("/warmup_steps", what).and_at("/steps").accepts("warmup_steps <= steps"));
        }
        if let Some(every) = self.evaluate_every.filter(|every| *every > self.steps) {
            let what = format!("`evaluate_every` = {every} has no effect: the run has {} steps", self.steps);
            let problem = Problem::new("/evaluate_every", what).and_at("/steps");
            problems.push(problem.accepts("evaluate_every <= steps, or null"));
        }
        if self.workers > self.accumulate {
            let what = format!("`workers` = {} is more than `accumulate` = {}", self.workers, self.accumulate);
            let problem = Problem::new("/workers", what).and_at("/accumulate");
            problems.push(problem.accepts("workers <= accumulate, because one worker runs a whole forward pass"));
        }
        if self.lora.is_some() && self.precision == Precision::Bf16 {
            let problem = Problem::new("/lora", "low-rank adapters compute in f32 only").and_at("/precision");
            problems.push(problem.accepts("\"precision\": \"f32\" with adapters"));
        }
        for (i, group) in self.weight_decay_groups.iter().enumerate().filter(|(_, group)| group.weight_decay < 0.0) {
            let what = format!("the weight decay {} is negative", group.weight_decay);
            problems.push(Problem::new(format!("/weight_decay_groups/{i}/weight_decay"), what).accepts("numbers >= 0"));
        }
        problems
    }
}

//! The `train` entry of a document.

use crate::adapt::LoraConfig;
use crate::error::{Problem, Problems};
use crate::foreign::Source;
use crate::optimizer::{LearningRateDecay, OptimizerConfig, WeightDecayGroup};
use crate::precision::MatmulPrecision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// Rows of the sample grid of a network without classes.
pub const UNCONDITIONAL_ROWS: usize = 8;

/// Rows of a training's sample grid at the most: of more classes it shows some.
pub const MOST_ROWS: usize = 16;

/// How training goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Where the weights come from; null = freshly drawn. New parts, such as a guidance input, start so that they change
    /// nothing.
    #[serde(default)]
    pub from: Option<Source>,
    /// The frozen reference or teacher of objectives that need one, as `from`; null = the weights of `from`. A
    /// checkpoint of ours brings its own backbone; an official file must be of this pipeline's.
    #[serde(default)]
    pub reference: Option<Source>,
    /// Regular expressions, searched in a parameter's path (as `check --parameters` prints it): those found stay as they
    /// start.
    #[serde(default)]
    pub frozen: Vec<String>,
    /// Trains low-rank adapters in place of the weights; null = the weights.
    #[serde(default)]
    pub lora: Option<LoraConfig>,
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
    /// Threads that share the forward passes of a step, at most `accumulate`; the result is the same bit for bit.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub workers: usize,
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
    /// How passes in f32 whose gradient is stopped multiply matrices: gft's null pass, a teacher's, a reference's.
    #[serde(default)]
    pub stopped_matmul_precision: MatmulPrecision,
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
    /// Checkpoints kept; that of an interruption is kept beside them until the next.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub keep_last: usize,
    /// Also keep the checkpoint with the smallest mean training loss since the one before it, `best.safetensors`; those of
    /// interruptions count for nothing.
    #[serde(default)]
    pub keep_best: bool,
    /// Steps between sample grids; null = only at the end.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub sample_every: Option<usize>,
    /// Columns of the sample grid; its rows are classes, of more than 16 evenly spread ones (or 8 rows without classes).
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
    /// Samples drawn at the end for the metrics, of data with so many classes.
    pub fn samples_to_measure(&self, num_classes: Option<usize>) -> usize {
        let grid = num_classes.map_or(UNCONDITIONAL_ROWS, |n| n.min(MOST_ROWS)) * self.sample_columns;
        if self.metric_samples == 0 { grid } else { self.metric_samples }
    }

    /// Whether there is a checkpoint after `step` steps of a run that nobody interrupts.
    pub fn saves_at(&self, step: usize) -> bool {
        step == self.steps || step.is_multiple_of(self.save_every)
    }

    /// Problems within the entry; pointers are relative to it.
    pub fn check(&self) -> Problems {
        let mut problems: Problems = self.optimizer.check().into_iter().map(|p| p.under("/optimizer")).collect();
        if self.warmup_steps > self.steps {
            let what = format!("`warmup_steps` = {} is more than `steps` = {}", self.warmup_steps, self.steps);
            problems.push(Problem::new("/warmup_steps", what).and_at("/steps").accepts("warmup_steps <= steps"));
        }
        if self.workers > self.accumulate {
            let what = format!("`workers` = {} is more than `accumulate` = {}", self.workers, self.accumulate);
            let problem = Problem::new("/workers", what).and_at("/accumulate");
            problems.push(problem.accepts("workers <= accumulate: each forward pass runs on one of them"));
        }
        if self.lora.is_some() && self.precision == Precision::Bf16 {
            let problem = Problem::new("/lora", "adapters compute in f32").and_at("/precision");
            problems.push(problem.accepts("\"precision\": \"f32\" with adapters"));
        }
        for (i, group) in self.weight_decay_groups.iter().enumerate().filter(|(_, group)| group.weight_decay < 0.0) {
            let what = format!("a weight decay of {}", group.weight_decay);
            problems.push(Problem::new(format!("/weight_decay_groups/{i}/weight_decay"), what).accepts("numbers >= 0"));
        }
        problems
    }
}

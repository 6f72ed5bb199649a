//! Guidance rules: which branches of which model are evaluated at a step, and how they are combined.
//!
//! All guidance arithmetic is in implementations of [`Guidance`].

use crate::error::Problems;
use crate::network::condition::Condition;
use crate::nn::hooks::{Hooked, Hooks};
use crate::process::LatentShape;
use crate::process::path::{NoisePath, Prediction};
use burn::tensor::Tensor;
use std::fmt::Debug;
use std::sync::Arc;

/// The network that a branch evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The network being sampled.
    Main,
    /// The weaker network of two-model rules (autoguidance).
    Weak,
}

/// The condition of a branch.
#[derive(Clone, Debug)]
pub enum Asked {
    /// The requested condition.
    Given,
    /// The null condition.
    Null,
    /// Another condition, one entry per sample.
    Other(Condition),
}

/// One network evaluation.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Identifies the branch within its rule. A name must mean the same network and condition at every step of a
    /// trajectory, because the network's cache is stored under this name.
    pub name: &'static str,
    /// Network to evaluate.
    pub model: Model,
    /// Condition that the network reads.
    pub condition: Asked,
    /// Scale for the network's guidance input, in a branch with a condition; `None` = 1.
    pub scale: Option<f64>,
    /// Hooks that read or change the forward pass.
    pub hooks: Hooked,
    /// Whether the pass reads all positions at every step of token decoding, without a cache. Hooks that differ
    /// between steps need this: a cache would mix the keys and values of different networks.
    pub reads_all: bool,
}

impl Branch {
    /// Returns the branch of the main network with the requested condition.
    pub fn given() -> Self {
        let (model, condition, hooks) = (Model::Main, Asked::Given, Hooked::default());
        Self { name: "given", model, condition, scale: None, hooks, reads_all: false }
    }

    /// Returns the branch of the main network with the null condition.
    pub fn null() -> Self {
        Self { name: "null", condition: Asked::Null, ..Self::given() }
    }

    /// Returns the branch of the weak network with the requested condition.
    pub fn weak() -> Self {
        Self { name: "weak", model: Model::Weak, ..Self::given() }
    }

    /// Returns the branch of the main network with the requested condition and with hooks.
    pub fn hooked(name: &'static str, hooks: impl Hooks + 'static) -> Self {
        Self { name, hooks: Hooked(Some(Arc::new(hooks))), ..Self::given() }
    }
}

/// The requirements of a rule on the networks and the process. The check phase compares them with the pipeline.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuidanceNeeds {
    /// Whether a branch of the main network uses the null condition.
    pub null: bool,
    /// Whether a branch uses the weak network of `guidance.weak`.
    pub weak: bool,
    /// Whether a branch of the weak network uses the null condition.
    pub weak_null: bool,
    /// Layers that the hooks of the rule use.
    pub hooks: HookNeeds,
    /// Prediction space in which [`Trajectory::combine`] works; `None` = the network's own.
    pub space: Option<Prediction>,
    /// Largest number of branches evaluated at one step; at least 1.
    pub most_branches: usize,
    /// Whether the rule uses the gradient of a prediction with respect to its input.
    pub gradient: bool,
    /// Whether the rule needs the noise path of a continuous process, or of the head of a masked process: it reads the
    /// noise level, keeps a prediction from step to step, or compares whole predictions. Networks that predict logits
    /// cannot serve it.
    pub path: bool,
    /// Smallest side of the position grid that the rule needs, if it filters over positions; 0 = any latent.
    pub grid_side: usize,
    /// Whether the rule returns a second prediction, whose noise the solver adds: [`Guided::renoise`].
    pub renoise: bool,
    /// Class, from 0, that a branch uses instead of the requested one.
    pub class: Option<usize>,
}

impl GuidanceNeeds {
    /// Returns the needs of a rule with `most_branches` branches and no other requirement.
    pub fn branches(most_branches: usize) -> Self {
        Self { most_branches, ..Self::default() }
    }
}

/// The hooks that the branches of a rule use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookNeeds {
    /// Hooks on the self-attention of a block: [`Hooks::attention`].
    pub attention: bool,
    /// Hooks on attention to a text: [`Hooks::attention`] at [`crate::nn::hooks::Attends::Text`].
    pub text_attention: bool,
    /// Hooks on the tokens that enter or leave a block: [`Hooks::block_input`], [`Hooks::block_output`].
    pub blocks: bool,
    /// Hooks on the cached keys and values of decoding: [`Hooks::cached`].
    pub decode_cache: bool,
    /// Whether the hooks need the tokens of a block as a square grid: [`crate::network::backbone::HookSites::grid`].
    pub grid: bool,
    /// Upper bound, exclusive, of the block indices that the rule names; 0 = it names no block.
    pub blocks_named: usize,
}

/// The properties of a trajectory that are the same at all of its evaluations.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Shape of the latent; of one token in the head of a masked process.
    pub shape: &'a LatentShape,
    /// Noise path of a continuous process, or of the head of a masked process.
    pub path: Option<&'a dyn NoisePath>,
    /// Number of samples in the batch.
    pub samples: usize,
}

/// The position of a trajectory at one evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Progress of the decoding, in [0, 1]: 0 = noise or first token, 1 = data.
    pub progress: f64,
    /// Time of continuous processes (0 = data, 1 = noise); `1 - progress` for the other processes.
    pub t: f64,
    /// Index of the evaluation, from 0.
    pub evaluation: usize,
    /// Number of channels of the latent. Channels after them (a learned variance) are never guided.
    pub channels: usize,
}

/// The result of a rule, for the solver.
#[derive(Clone, Debug)]
pub struct Guided {
    /// The guided prediction, `[B, position, channel]`.
    pub prediction: Tensor<3>,
    /// The prediction used to add noise again after a step, if it differs (CFG++). The rule states it in
    /// [`GuidanceNeeds::renoise`]; only samplers with [`crate::sampling::sampler::Sampler::renoises`] use it.
    pub renoise: Option<Tensor<3>>,
}

impl From<Tensor<3>> for Guided {
    fn from(prediction: Tensor<3>) -> Self {
        Self { prediction, renoise: None }
    }
}

/// The document entry of a guidance rule.
pub trait Guidance: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns the requirements of the rule.
    fn needs(&self) -> GuidanceNeeds;

    /// Returns the scale that this rule requests from the network's guidance input, if any.
    fn input_scale(&self) -> Option<f64> {
        None
    }

    /// Returns the smallest and the largest scale that this rule requests along a trajectory, if it requests any.
    fn input_scales(&self) -> Option<[f64; 2]> {
        self.input_scale().map(|scale| [scale; 2])
    }

    /// Creates the initial state of the rule for one batch of trajectories.
    fn start(&self) -> Box<dyn Trajectory>;
}

/// The state of a guidance rule during one batch of trajectories.
pub trait Trajectory: Send {
    /// Receives the setting once, before the first evaluation.
    fn begin(&mut self, setting: &Setting<'_>) {
        let _ = setting;
    }

    /// Returns the branches to evaluate at this moment, at least one.
    fn branches(&mut self, moment: &Moment) -> Vec<Branch>;

    /// Combines the predictions of the branches. `predictions` has the order of [`Trajectory::branches`].
    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided;
}

/// Computes `uncond + scale (cond - uncond)` on the first `channels` channels. The other channels come from `cond`.
///
/// Source: arXiv:2207.12598 eq. 6, with scale = 1 + w.
pub fn mix(cond: Tensor<3>, uncond: Tensor<3>, scale: f64, channels: usize) -> Tensor<3> {
    let total = cond.dims()[2];
    if channels >= total {
        return uncond.clone() + (cond - uncond) * scale;
    }
    let (guided, null) = (cond.clone().narrow(2, 0, channels), uncond.narrow(2, 0, channels));
    let guided = null.clone() + (guided - null) * scale;
    Tensor::cat(vec![guided, cond.narrow(2, channels, total - channels)], 2)
}

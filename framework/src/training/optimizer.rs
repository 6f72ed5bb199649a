//! Optimizers, weight-decay groups, learning-rate schedules, and the clipping of the global gradient norm.

use crate::error::{Problem, Problems};
use crate::kernels::{self, AdamwStep};
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdamConfig, AdamWState, AdanConfig, AdaptiveMomentumState, GradientsParams, LionConfig, ModuleOptimizer, Optimizer,
    RmsPropConfig, SgdConfig,
};
use burn::tensor::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The optimizer and its settings, with the defaults of its paper or of PyTorch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay. Source: arXiv:1711.05101.
    Adamw {
        /// Decay of the first and second moments, in [0, 1).
        #[serde(default = "adam_betas")]
        betas: [f64; 2],
        /// Added to the root of the second moment.
        #[serde(default = "adam_epsilon")]
        epsilon: f64,
        /// Weight decay a step, times the learning rate.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam. Source: arXiv:1412.6980.
    Adam {
        /// Decay of the first and second moments, in [0, 1).
        #[serde(default = "adam_betas")]
        betas: [f64; 2],
        /// Added to the root of the second moment.
        #[serde(default = "adam_epsilon")]
        epsilon: f64,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Signs of an interpolated momentum. Source: arXiv:2302.06675.
    Lion {
        /// Interpolation and decay of the momentum, in [0, 1).
        #[serde(default = "lion_betas")]
        betas: [f64; 2],
        /// Weight decay a step, times the learning rate.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adaptive Nesterov momentum. Source: arXiv:2208.06677.
    Adan {
        /// Decay of the three moments, in [0, 1).
        #[serde(default = "adan_betas")]
        betas: [f64; 3],
        /// Added to the root of the third moment.
        #[serde(default = "adam_epsilon")]
        epsilon: f64,
        /// Weight decay a step, times the learning rate.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Gradients over a running root mean square.
    Rmsprop {
        /// Decay of the mean square, in [0, 1).
        #[serde(default = "rmsprop_alpha")]
        alpha: f64,
        /// Momentum, in [0, 1).
        #[serde(default)]
        momentum: f64,
        /// Added to the root of the mean square.
        #[serde(default = "adam_epsilon")]
        epsilon: f64,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Momentum, in [0, 1); 0 = none.
        #[serde(default)]
        momentum: f64,
        /// Nesterov's form of the momentum.
        #[serde(default)]
        nesterov: bool,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn adam_betas() -> [f64; 2] {
    [0.9, 0.999]
}
fn lion_betas() -> [f64; 2] {
    [0.9, 0.99]
}
fn adan_betas() -> [f64; 3] {
    [0.98, 0.92, 0.99]
}
fn adam_epsilon() -> f64 {
    1e-8
}
fn rmsprop_alpha() -> f64 {
    0.99
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adamw { betas: adam_betas(), epsilon: adam_epsilon(), weight_decay: 0.0 }
    }
}

/// Parameters that take another weight decay than the optimizer's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightDecayGroup {
    /// Regular expression, searched in a parameter's path (as `check --parameters` prints it): `"bias$"`.
    pub parameters: String,
    /// Their weight decay.
    pub weight_decay: f64,
}

impl OptimizerConfig {
    fn weight_decay(&self) -> f64 {
        match self {
            Self::Adamw { weight_decay, .. }
            | Self::Adam { weight_decay, .. }
            | Self::Lion { weight_decay, .. }
            | Self::Adan { weight_decay, .. }
            | Self::Rmsprop { weight_decay, .. }
            | Self::Sgd { weight_decay, .. } => *weight_decay,
        }
    }

    /// Numbers that it keeps of each weight.
    pub fn kept(&self) -> usize {
        match self {
            Self::Adamw { .. } | Self::Adam { .. } => 2,
            Self::Lion { .. } => 1,
            // Three moments and the last gradient.
            Self::Adan { .. } => 4,
            Self::Rmsprop { momentum, .. } => 1 + usize::from(*momentum > 0.0),
            Self::Sgd { momentum, .. } => usize::from(*momentum > 0.0),
        }
    }

    /// Problems within the settings; pointers are relative to the entry.
    pub fn check(&self) -> Problems {
        let decays: Vec<(&str, f64)> = match self {
            Self::Adamw { betas, .. } | Self::Adam { betas, .. } | Self::Lion { betas, .. } => {
                betas.iter().map(|b| ("betas", *b)).collect()
            }
            Self::Adan { betas, .. } => betas.iter().map(|b| ("betas", *b)).collect(),
            Self::Rmsprop { alpha, momentum, .. } => {
                vec![("alpha", *alpha), ("momentum", *momentum)]
            }
            Self::Sgd { momentum, .. } => vec![("momentum", *momentum)],
        };
        let mut problems: Problems = decays
            .into_iter()
            .filter(|(_, decay)| !(0.0..1.0).contains(decay))
            .map(|(name, decay)| {
                Problem::new(format!("/{name}"), format!("{decay} is no decay")).accepts("numbers in [0, 1)")
            })
            .collect();
        if let Self::Sgd { momentum: 0.0, nesterov: true, .. } = self {
            problems.push(
                Problem::new("/nesterov", "`nesterov` has no effect without momentum")
                    .fix("set `momentum`, or drop `nesterov`"),
            );
        }
        if let Self::Adamw { epsilon, .. }
        | Self::Adam { epsilon, .. }
        | Self::Adan { epsilon, .. }
        | Self::Rmsprop { epsilon, .. } = self
            && *epsilon as f32 <= 0.0
        {
            // The first step of a weight without a gradient would be 0 / 0.
            problems.push(Problem::new("/epsilon", format!("`epsilon` is {epsilon}")).accepts("f32 numbers above 0"));
        }
        if self.weight_decay() < 0.0 {
            problems.push(Problem::new("/weight_decay", "a negative weight decay").accepts("numbers >= 0"));
        }
        problems
    }

    /// The optimizer, with its weight-decay groups.
    ///
    /// # Errors
    /// If a group's regular expression is none.
    pub fn init(&self, groups: &[WeightDecayGroup]) -> Result<ModuleOptimizer, String> {
        // Burn's optimizers keep f32; the document keeps what was written.
        let penalty = |decay: f32| (decay > 0.0).then_some(WeightDecayConfig { penalty: decay });
        macro_rules! build {
            ($config:expr) => {{
                let config = |decay: f64| $config(decay as f32);
                let mut optimizer: ModuleOptimizer = config(self.weight_decay()).init();
                for group in groups {
                    let matched = ParamGroup::from_regex(&group.parameters).map_err(|e| format!("{e:?}"))?;
                    optimizer = optimizer.with_group(matched, config(group.weight_decay).build(), None);
                }
                Ok(optimizer)
            }};
        }
        match self.clone() {
            Self::Adamw { betas, epsilon, .. } => {
                build!(|decay: f32| Adamw { betas, epsilon, weight_decay: decay.into() })
            }
            Self::Adam { betas, epsilon, .. } => build!(|decay| AdamConfig::new()
                .with_beta_1(betas[0] as f32)
                .with_beta_2(betas[1] as f32)
                .with_epsilon(epsilon as f32)
                .with_weight_decay(penalty(decay))),
            Self::Lion { betas, .. } => {
                build!(|decay| LionConfig::new()
                    .with_beta_1(betas[0] as f32)
                    .with_beta_2(betas[1] as f32)
                    .with_weight_decay(decay))
            }
            Self::Adan { betas, epsilon, .. } => build!(|decay| AdanConfig::new()
                .with_beta_1(betas[0] as f32)
                .with_beta_2(betas[1] as f32)
                .with_beta_3(betas[2] as f32)
                .with_epsilon(epsilon as f32)
                .with_weight_decay(decay)),
            Self::Rmsprop { alpha, momentum, epsilon, .. } => build!(|decay| RmsPropConfig::new()
                .with_alpha(alpha as f32)
                .with_momentum(momentum as f32)
                .with_epsilon(epsilon as f32)
                .with_weight_decay(penalty(decay))),
            Self::Sgd { momentum, nesterov, .. } => build!(|decay| SgdConfig::new()
                .with_weight_decay(penalty(decay))
                .with_momentum((momentum > 0.0).then_some(MomentumConfig { momentum, dampening: 0.0, nesterov }))),
        }
    }
}

/// AdamW on one tensor at a time, in one pass over memory where there is a kernel.
///
/// Source: arXiv:1711.05101 algorithm 2. Its state is that of Burn's [`burn::optim::AdamW`].
#[derive(Clone, Debug)]
struct Adamw {
    betas: [f64; 2],
    epsilon: f64,
    weight_decay: f64,
}

impl Adamw {
    fn init(self) -> ModuleOptimizer {
        ModuleOptimizer::from(self)
    }

    fn build(self) -> Self {
        self
    }
}

impl Optimizer for Adamw {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: f64,
        x: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        let [b1, b2] = self.betas;
        let (time, m, v) = match state {
            Some(AdamWState { momentum }) => (momentum.time + 1, momentum.moment_1, momentum.moment_2),
            None => (1, grad.zeros_like(), grad.zeros_like()),
        };
        let step = AdamwStep {
            betas: self.betas,
            epsilon: self.epsilon,
            rate: learning_rate / (1.0 - b1.powi(time as i32)),
            root: 1.0 / (1.0 - b2.powi(time as i32)).sqrt(),
            decay: learning_rate * self.weight_decay,
        };
        let [x, m, v] = match kernels::adamw(step, [x, grad, m, v].map(Tensor::into_dispatch)) {
            Ok(updated) => updated.map(Tensor::from_dispatch),
            Err(inputs) => {
                let [x, grad, m, v] = inputs.map(Tensor::<D>::from_dispatch);
                let m = m * b1 + grad.clone() * (1.0 - b1);
                let v = v * b2 + grad.clone() * grad * (1.0 - b2);
                let change = m.clone() * step.rate / (v.clone().sqrt() * step.root + step.epsilon);
                [x * (1.0 - step.decay) - change, m, v]
            }
        };
        (x, Some(AdamWState { momentum: AdaptiveMomentumState { time, moment_1: m, moment_2: v, max_moment_2: None } }))
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        AdamWState { momentum: state.momentum.to_device(device) }
    }
}

/// What follows the warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum LearningRateDecay {
    /// The learning rate stays.
    #[default]
    Constant,
    /// In a straight line to `to`, which the step behind the last would have.
    Linear {
        /// Learning rate at the end, >= 0.
        #[serde(default)]
        #[schemars(range(min = 0.0))]
        to: f64,
    },
    /// Half a cosine wave to `to`, which the step behind the last would have.
    Cosine {
        /// Learning rate at the end, >= 0.
        #[serde(default)]
        #[schemars(range(min = 0.0))]
        to: f64,
    },
}

/// The learning rate of step `step` (from 0) of `steps`: linear from 0 over `warmup`, then the decay.
///
/// A pure function, so it resumes for free.
pub fn learning_rate(base: f64, warmup: usize, decay: &LearningRateDecay, step: usize, steps: usize) -> f64 {
    if step < warmup {
        return base * step as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
    match decay {
        LearningRateDecay::Constant => base,
        LearningRateDecay::Linear { to } => base + (to - base) * done,
        LearningRateDecay::Cosine { to } => to + (base - to) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
    }
}

/// The L2 norm of all gradients together; they are scaled to `clip` where the norm is larger.
///
/// Source: arXiv:1211.5063 algorithm 1, with PyTorch's `clip / (norm + 1e-6)`.
pub fn clip_global_norm<M: Module>(
    module: &M,
    mut grads: GradientsParams,
    clip: Option<f64>,
) -> (GradientsParams, f64) {
    struct Norm<'a>(&'a GradientsParams, Vec<f64>);
    impl ModuleVisitor for Norm<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                let sum = kernels::square_sum(grad.clone().into_dispatch());
                self.1.push(sum.unwrap_or_else(|| f64::from((grad.clone() * grad).sum().into_scalar::<f32>())));
            }
        }
    }
    struct Scale<'a>(&'a mut GradientsParams, f64);
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.remove::<D>(param.id) {
                self.0.register(param.id, grad * self.1);
            }
        }
    }
    let mut squares = Norm(&grads, Vec::new());
    module.visit(&mut squares);
    let squares = squares.1;
    if squares.is_empty() {
        return (grads, 0.0);
    }
    let norm = squares.iter().sum::<f64>().sqrt();
    if let Some(clip) = clip {
        let scale = clip / (norm + 1e-6);
        if scale < 1.0 {
            module.visit(&mut Scale(&mut grads, scale));
        }
    }
    (grads, norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_worked_by_hand() {
        let cosine = LearningRateDecay::Cosine { to: 0.0 };
        assert_eq!(learning_rate(1.0, 4, &cosine, 0, 12), 0.0);
        assert_eq!(learning_rate(1.0, 4, &cosine, 2, 12), 0.5);
        assert_eq!(learning_rate(1.0, 4, &cosine, 4, 12), 1.0);
        assert!((learning_rate(1.0, 4, &cosine, 8, 12) - 0.5).abs() < 1e-15);
        assert!((learning_rate(1.0, 0, &LearningRateDecay::Linear { to: 0.2 }, 5, 10) - 0.6).abs() < 1e-15);
        assert_eq!(learning_rate(3.0, 0, &LearningRateDecay::Constant, 99, 10), 3.0);
    }
}

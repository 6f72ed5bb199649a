//! Optimizers, weight-decay groups, learning-rate schedules, and clipping of the global gradient norm.

use crate::error::{Problem, Problems};
use crate::kernels::{self, AdamwStep};
use crate::nn::readings::Readings;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{self, AdamWState, AdaptiveMomentumState, GradientsParams, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The optimizer and its settings. Defaults follow the optimizer's paper or PyTorch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay. Source: arXiv:1711.05101.
    Adamw(AdamwConfig),
    /// Adam. Source: arXiv:1412.6980.
    Adam(AdamConfig),
    /// Lion: steps by the sign of an interpolated momentum. Source: arXiv:2302.06675.
    Lion(LionConfig),
    /// Adan: adaptive Nesterov momentum. Source: arXiv:2208.06677.
    Adan(AdanConfig),
    /// RMSprop: divides gradients by a running root mean square.
    Rmsprop(RmspropConfig),
    /// Stochastic gradient descent.
    Sgd(SgdConfig),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adamw(AdamwConfig::default())
    }
}

/// Settings of AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamwConfig {
    /// Decay per step of the first and second moments, in [0, 1).
    pub betas: [f64; 2],
    /// Value added to the square root of the second moment, > 0.
    pub epsilon: f64,
    /// Weight decay per step, multiplied by the learning rate, >= 0.
    pub weight_decay: f64,
}

impl Default for AdamwConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Settings of Adam.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamConfig {
    /// Decay per step of the first and second moments, in [0, 1).
    pub betas: [f64; 2],
    /// Value added to the square root of the second moment, > 0.
    pub epsilon: f64,
    /// Coefficient of the L2 penalty, which is added to the gradient, >= 0.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Settings of Lion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LionConfig {
    /// Interpolation and decay per step of the momentum, in [0, 1).
    pub betas: [f64; 2],
    /// Weight decay per step, multiplied by the learning rate, >= 0.
    pub weight_decay: f64,
}

impl Default for LionConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.99], weight_decay: 0.0 }
    }
}

/// Settings of Adan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdanConfig {
    /// Decay per step of the three moments, in [0, 1).
    pub betas: [f64; 3],
    /// Value added to the square root of the third moment, > 0.
    pub epsilon: f64,
    /// Weight decay per step, multiplied by the learning rate, >= 0.
    pub weight_decay: f64,
}

impl Default for AdanConfig {
    fn default() -> Self {
        Self { betas: [0.98, 0.92, 0.99], epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Settings of RMSprop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RmspropConfig {
    /// Decay per step of the mean square, in [0, 1).
    pub alpha: f64,
    /// Momentum, in [0, 1); 0 = none.
    pub momentum: f64,
    /// Value added to the root mean square, > 0.
    pub epsilon: f64,
    /// Coefficient of the L2 penalty, which is added to the gradient, >= 0.
    pub weight_decay: f64,
}

impl Default for RmspropConfig {
    fn default() -> Self {
        Self { alpha: 0.99, momentum: 0.0, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Settings of stochastic gradient descent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SgdConfig {
    /// Momentum, in [0, 1); 0 = none.
    pub momentum: f64,
    /// Whether the momentum is Nesterov's.
    pub nesterov: bool,
    /// Coefficient of the L2 penalty, which is added to the gradient, >= 0.
    pub weight_decay: f64,
}

/// A group of parameters with its own weight decay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightDecayGroup {
    /// Regular expression, e.g. `"bias$"`. Selects the parameters whose paths contain a match; `check --parameters`
    /// prints the paths.
    pub parameters: String,
    /// Weight decay of these parameters, >= 0. Replaces the optimizer's.
    pub weight_decay: f64,
}

impl OptimizerConfig {
    fn weight_decay(&self) -> f64 {
        match self {
            Self::Adamw(AdamwConfig { weight_decay, .. })
            | Self::Adam(AdamConfig { weight_decay, .. })
            | Self::Lion(LionConfig { weight_decay, .. })
            | Self::Adan(AdanConfig { weight_decay, .. })
            | Self::Rmsprop(RmspropConfig { weight_decay, .. })
            | Self::Sgd(SgdConfig { weight_decay, .. }) => *weight_decay,
        }
    }

    /// Returns the number of state values per weight.
    pub fn kept(&self) -> usize {
        match self {
            Self::Adamw(_) | Self::Adam(_) => 2,
            Self::Lion(_) => 1,
            // Three moments and the previous gradient.
            Self::Adan(_) => 4,
            Self::Rmsprop(settings) => 1 + usize::from(settings.momentum > 0.0),
            Self::Sgd(settings) => usize::from(settings.momentum > 0.0),
        }
    }

    /// Returns the problems within the settings. Pointers are relative to the entry.
    pub fn check(&self) -> Problems {
        let decays: Vec<(&str, f64)> = match self {
            Self::Adamw(AdamwConfig { betas, .. })
            | Self::Adam(AdamConfig { betas, .. })
            | Self::Lion(LionConfig { betas, .. }) => betas.iter().map(|b| ("betas", *b)).collect(),
            Self::Adan(AdanConfig { betas, .. }) => betas.iter().map(|b| ("betas", *b)).collect(),
            Self::Rmsprop(RmspropConfig { alpha, momentum, .. }) => {
                vec![("alpha", *alpha), ("momentum", *momentum)]
            }
            Self::Sgd(SgdConfig { momentum, .. }) => vec![("momentum", *momentum)],
        };
        let mut problems: Problems = decays
            .into_iter()
            .filter(|(_, decay)| !(0.0..1.0).contains(decay))
            .map(|(name, decay)| {
                Problem::new(format!("/{name}"), format!("{decay} is out of range")).accepts("numbers in [0, 1)")
            })
            .collect();
        if let Self::Sgd(SgdConfig { momentum: 0.0, nesterov: true, .. }) = self {
            problems.push(
                Problem::new("/nesterov", "`nesterov` has no effect without momentum")
                    .fix("set `momentum`, or remove `nesterov`"),
            );
        }
        if let Self::Adamw(AdamwConfig { epsilon, .. })
        | Self::Adam(AdamConfig { epsilon, .. })
        | Self::Adan(AdanConfig { epsilon, .. })
        | Self::Rmsprop(RmspropConfig { epsilon, .. }) = self
            && *epsilon as f32 <= 0.0
        {
            // With an epsilon of 0, the first step of a weight with zero gradient would compute 0 / 0.
            problems.push(Problem::new("/epsilon", format!("{epsilon} is too small")).accepts("f32 numbers above 0"));
        }
        if self.weight_decay() < 0.0 {
            problems.push(Problem::new("/weight_decay", "the weight decay is negative").accepts("numbers >= 0"));
        }
        problems
    }

    /// Creates the optimizer with its weight-decay groups.
    ///
    /// # Errors
    /// If the pattern of a group is not a regular expression.
    pub fn init(&self, groups: &[WeightDecayGroup]) -> Result<ModuleOptimizer, String> {
        // Burn's optimizers store settings as f32; the document stores them as f64.
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
            Self::Adamw(AdamwConfig { betas, epsilon, .. }) => {
                build!(|decay: f32| Adamw { betas, epsilon, weight_decay: decay.into() })
            }
            Self::Adam(AdamConfig { betas, epsilon, .. }) => build!(|decay| optim::AdamConfig::new()
                .with_beta_1(betas[0] as f32)
                .with_beta_2(betas[1] as f32)
                .with_epsilon(epsilon as f32)
                .with_weight_decay(penalty(decay))),
            Self::Lion(LionConfig { betas, .. }) => {
                build!(|decay| optim::LionConfig::new()
                    .with_beta_1(betas[0] as f32)
                    .with_beta_2(betas[1] as f32)
                    .with_weight_decay(decay))
            }
            Self::Adan(AdanConfig { betas, epsilon, .. }) => build!(|decay| optim::AdanConfig::new()
                .with_beta_1(betas[0] as f32)
                .with_beta_2(betas[1] as f32)
                .with_beta_3(betas[2] as f32)
                .with_epsilon(epsilon as f32)
                .with_weight_decay(decay)),
            Self::Rmsprop(RmspropConfig { alpha, momentum, epsilon, .. }) => {
                build!(|decay| optim::RmsPropConfig::new()
                    .with_alpha(alpha as f32)
                    .with_momentum(momentum as f32)
                    .with_epsilon(epsilon as f32)
                    .with_weight_decay(penalty(decay)))
            }
            Self::Sgd(SgdConfig { momentum, nesterov, .. }) => build!(|decay| optim::SgdConfig::new()
                .with_weight_decay(penalty(decay))
                .with_momentum((momentum > 0.0).then_some(MomentumConfig { momentum, dampening: 0.0, nesterov }))),
        }
    }
}

/// AdamW with a fused kernel: one pass over memory per tensor. Without a kernel for the device, composes the update of
/// tensor operations.
///
/// Source: arXiv:1711.05101 algorithm 2. The state has the type of Burn's [`burn::optim::AdamW`].
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

/// The learning rate after the warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum LearningRateDecay {
    /// The learning rate stays constant.
    #[default]
    Constant,
    /// The learning rate changes linearly to `to`, which it reaches one step after the last.
    Linear {
        /// Final learning rate, >= 0.
        #[serde(default)]
        #[schemars(range(min = 0.0))]
        to: f64,
    },
    /// The learning rate follows half a cosine wave to `to`, which it reaches one step after the last.
    Cosine {
        /// Final learning rate, >= 0.
        #[serde(default)]
        #[schemars(range(min = 0.0))]
        to: f64,
    },
}

/// Computes the learning rate of step `step` (from 0) of `steps`: a linear rise from 0 over `warmup` steps, then the
/// decay.
///
/// A resumed run needs no scheduler state, because this is a pure function.
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

/// The sum of the squares of one parameter's gradient.
pub enum SquareSum {
    /// The parameter has no gradient.
    Absent,
    /// A kernel of the CPU computed the sum, in f64.
    Known(f64),
    /// The sum is on the device, at this index of the [`Readings`].
    Waiting(usize),
}

impl SquareSum {
    /// Returns the sum, given the values of the [`Readings`].
    pub fn value(&self, read: &[f64]) -> f64 {
        match self {
            Self::Absent => 0.0,
            Self::Known(sum) => *sum,
            Self::Waiting(index) => read[*index],
        }
    }
}

/// Returns the sum of the squares of every parameter's gradient, in module order. Sums on the device are added to
/// `readings`.
pub fn square_sums<M: Module>(module: &M, grads: &GradientsParams, readings: &mut Readings) -> Vec<SquareSum> {
    struct Squares<'a>(&'a GradientsParams, &'a mut Readings, Vec<SquareSum>);
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let sum = match self.0.get::<D>(param.id) {
                None => SquareSum::Absent,
                Some(grad) => match kernels::square_sum(grad.clone().into_dispatch()) {
                    Some(sum) => SquareSum::Known(sum),
                    None => SquareSum::Waiting(self.1.add((grad.clone() * grad).sum())),
                },
            };
            self.2.push(sum);
        }
    }
    let mut squares = Squares(grads, readings, Vec::new());
    module.visit(&mut squares);
    squares.2
}

/// Scales gradients whose global L2 norm is `norm` to the norm `clip` if their norm is larger.
///
/// Source: arXiv:1211.5063 algorithm 1, with PyTorch's `clip / (norm + 1e-6)`.
pub fn clip<M: Module>(module: &M, mut grads: GradientsParams, norm: f64, clip: Option<f64>) -> GradientsParams {
    struct Scale<'a>(&'a mut GradientsParams, f64);
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.remove::<D>(param.id) {
                self.0.register(param.id, grad * self.1);
            }
        }
    }
    if let Some(scale) = clip.map(|clip| clip / (norm + 1e-6)).filter(|scale| *scale < 1.0) {
        module.visit(&mut Scale(&mut grads, scale));
    }
    grads
}

/// Returns the gradients, scaled as [`clip()`] does, and their global L2 norm before clipping.
pub fn clip_global_norm<M: Module>(module: &M, grads: GradientsParams, most: Option<f64>) -> (GradientsParams, f64) {
    let mut readings = Readings::default();
    let squares = square_sums(module, &grads, &mut readings);
    let read = readings.read();
    let norm = squares.iter().map(|sum| sum.value(&read)).sum::<f64>().sqrt();
    (clip(module, grads, norm, most), norm)
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

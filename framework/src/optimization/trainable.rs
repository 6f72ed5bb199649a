//! The parameters that a run trains: all, all except the frozen ones, or low-rank adapters.
//!
//!   W' = W + alpha / rank  A B,   A `[in, rank]` ~ N(0, 1 / rank^2), B `[rank, out]` = 0
//!
//! Training starts at W, because B is zero.
//!
//! Source: arXiv:2106.09685 (LoRA) sec. 4.1.

use crate::error::{Problem, Problems};
use crate::nn::parameters::{Names, keeps_names, param_id};
use crate::optimization::optimizer::WeightDecayGroup;
use crate::random::Random;
use crate::schema::Required;
use burn::module::{LoraAdapter, Module, ModuleMapper, Param, ParamGroup, Reparameterizer};
use burn::tensor::{DType, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Low-rank adapters. All other parameters are frozen, except parameters that official files lack (a new guidance
/// input).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["rank"]))]
pub struct LoraConfig {
    /// Rank of the adapters.
    #[schemars(range(min = 1, max = 65_536))]
    pub rank: usize,
    /// Numerator of the adapters' factor, alpha / rank, >= 0; null = `rank`, so that the factor is 1.
    #[schemars(range(min = 0.0))]
    pub alpha: Option<f64>,
    /// Regular expression. Every matrix whose path contains a match gets an adapter. `check --parameters` prints the
    /// paths.
    pub parameters: String,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 0, alpha: None, parameters: r"attn.*\.weight$".to_string() }
    }
}

/// The settings of a run that select parameters.
#[derive(Clone, Copy, Debug)]
pub struct Trainable<'a> {
    /// Low-rank adapters; `None` = the run trains the weights themselves.
    pub lora: Option<&'a LoraConfig>,
    /// Patterns of the frozen parameters.
    pub frozen: &'a [String],
    /// Weight decay by pattern.
    pub weight_decay_groups: &'a [WeightDecayGroup],
}

/// A predicate: whether a pattern matches a parameter path.
type Group = Box<dyn Fn(&str) -> bool>;

fn group(pattern: &str) -> Result<Group, String> {
    let group = ParamGroup::from_regex(pattern).map_err(|e| format!("{e:?}"))?;
    Ok(Box::new(move |path: &str| group.matches(&param_id(path), Some(path))))
}

/// Returns the path of an adapter factor, `a` or `b`, of the matrix at `path`.
fn factor_path(path: &str, factor: &str) -> String {
    format!("{path}.lora.{factor}")
}

/// Returns the problems of `frozen`, `lora` and `weight_decay_groups` with the network's parameters (path, shape,
/// whether trained). Pointers are relative to `train`.
pub fn check(train: Trainable<'_>, parameters: &[(String, Vec<usize>, bool)]) -> Problems {
    let mut problems = Problems::new();
    let mut matches = |at: String, pattern: &str, among: &[&str], what: &str| match group(pattern) {
        Err(e) => problems.push(Problem::new(at, format!("`{pattern}` is not a regular expression: {e}"))),
        Ok(found) => {
            if !among.iter().any(|path| found(path)) {
                let problem = Problem::new(at, format!("`{pattern}` does not match the path of any {what}"));
                problems.push(problem.accepts("a pattern for the paths that `unguided check --parameters` prints"));
            }
        }
    };
    let all: Vec<&str> = parameters.iter().map(|(path, ..)| path.as_str()).collect();
    let matrices: Vec<&str> =
        parameters.iter().filter(|(_, shape, _)| shape.len() == 2).map(|(path, ..)| path.as_str()).collect();
    if let Some(lora) = train.lora {
        matches("/lora/parameters".into(), &lora.parameters, &matrices, "matrix");
    }
    // `frozen` and `weight_decay_groups` may also name the adapters' factors.
    let chosen = train.lora.and_then(|lora| group(&lora.parameters).ok());
    let adapted = matrices.iter().filter(|path| chosen.as_ref().is_some_and(|chosen| chosen(path)));
    let adapters: Vec<String> = adapted.flat_map(|path| ["a", "b"].map(|factor| factor_path(path, factor))).collect();
    let all: Vec<&str> = all.into_iter().chain(adapters.iter().map(String::as_str)).collect();
    for (i, pattern) in train.frozen.iter().enumerate() {
        matches(format!("/frozen/{i}"), pattern, &all, "parameter");
    }
    for (i, group) in train.weight_decay_groups.iter().enumerate() {
        matches(format!("/weight_decay_groups/{i}/parameters"), &group.parameters, &all, "parameter");
    }
    problems
}

/// Counts the weights that a run trains in a network with these parameters, including adapter weights. `is_new` returns
/// whether no official file has the parameter at a path.
///
/// # Panics
/// If a pattern is not a regular expression; the check phase rejects such patterns.
pub fn trained(
    train: Trainable<'_>,
    parameters: &[(String, Vec<usize>, bool)],
    is_new: &dyn Fn(&str) -> bool,
) -> usize {
    let group = |pattern: &str| group(pattern).expect("the check phase rejects invalid patterns");
    let frozen: Vec<Group> = train.frozen.iter().map(|pattern| group(pattern)).collect();
    let adapted = train.lora.map(|lora| (lora.rank, group(&lora.parameters)));
    let unless_frozen = |path: &str, count: usize| if frozen.iter().any(|found| found(path)) { 0 } else { count };
    let of = |(path, shape, trained): &(String, Vec<usize>, bool)| match &adapted {
        _ if !trained => 0,
        Some((rank, chosen)) if !is_new(path) => match shape[..] {
            [inputs, outputs] if chosen(path) => {
                let factor = |name: &str, count| unless_frozen(&factor_path(path, name), count);
                factor("a", rank * inputs) + factor("b", rank * outputs)
            }
            _ => 0,
        },
        _ => unless_frozen(path, shape.iter().product()),
    };
    parameters.iter().map(of).sum()
}

/// Attaches adapters to a network and freezes parameters, as the run requires. `is_new` returns whether no official
/// file has the parameter at a path.
///
/// # Panics
/// If a pattern is not a regular expression; the check phase rejects such patterns.
pub fn adapt<M: Module>(network: M, train: Trainable<'_>, random: &Random, is_new: &dyn Fn(&str) -> bool) -> M {
    let network = match train.lora {
        None => network,
        Some(lora) => {
            let chosen = group(&lora.parameters).expect("the check phase rejects invalid patterns");
            network.apply_reparameterization(Adapters { lora, chosen: &chosen, random, is_new })
        }
    };
    if train.frozen.is_empty() {
        return network;
    }
    let groups = train.frozen.iter().map(|pattern| group(pattern).expect("the check phase rejects invalid patterns"));
    network.map(&mut Freeze { names: Names::default(), groups: groups.collect() })
}

/// Attaches an adapter to every selected matrix. Freezes every parameter that is not new; an adapted matrix trains only
/// through its adapter.
struct Adapters<'a> {
    lora: &'a LoraConfig,
    chosen: &'a dyn Fn(&str) -> bool,
    random: &'a Random,
    is_new: &'a dyn Fn(&str) -> bool,
}

impl Reparameterizer for Adapters<'_> {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        if (self.is_new)(path) {
            return (param, None);
        }
        let base = param.set_require_grad(false);
        if D != 2 || !(self.chosen)(path) {
            return (base, None);
        }
        let (shape, device, rank) = (base.lazy_shape(), base.lazy_device(), self.lora.rank);
        let factor = |name: &str, values: Vec<f32>, shape: [usize; 2]| {
            let tensor = Tensor::<2>::from_data(TensorData::new(values, shape), (&device, DType::F32));
            Param::initialized(param_id(&factor_path(path, name)), tensor).set_require_grad(true)
        };
        let normal = self.random.normal(&format!("lora {path}"), 0, 0, shape[0] * rank);
        let a = normal.into_iter().map(|z| z / rank as f32).collect();
        let adapter = LoraAdapter {
            a: factor("a", a, [shape[0], rank]),
            b: factor("b", vec![0.0; rank * shape[1]], [rank, shape[1]]),
            scale: self.lora.alpha.unwrap_or(rank as f64) / rank as f64,
        };
        (base, Some(adapter))
    }
}

/// Freezes the parameters that match a pattern.
struct Freeze {
    names: Names,
    groups: Vec<Group>,
}

impl ModuleMapper for Freeze {
    keeps_names!(names);
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.names.path();
        if self.groups.iter().any(|found| found(&path)) { param.set_require_grad(false) } else { param }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Linear;
    use crate::nn::parameters::{Init, export, initialize, parameters};
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct Two {
        attn: Linear,
        new: Linear,
        other: Linear,
    }

    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Settings {
        lora: Option<LoraConfig>,
        frozen: Vec<String>,
        weight_decay_groups: Vec<WeightDecayGroup>,
    }

    impl Settings {
        fn trainable(&self) -> Trainable<'_> {
            let Self { lora, frozen, weight_decay_groups } = self;
            Trainable { lora: lora.as_ref(), frozen, weight_decay_groups }
        }
    }

    fn train(json: &str) -> Settings {
        serde_json::from_str(&format!("{{{json}}}")).unwrap()
    }

    fn network(device: &Device) -> Two {
        let linear = || Linear::new(3, 2, device);
        let network = Two { attn: linear(), new: linear(), other: linear() };
        initialize(network, &Random::new(0), &|_, _| Init::Normal(1.0))
    }

    fn paths(network: &Two) -> Vec<String> {
        parameters(network).into_iter().filter(|(.., trained)| *trained).map(|(path, ..)| path).collect()
    }

    #[test]
    fn adapters_start_at_the_network_and_train_themselves_and_what_is_new() {
        let device = Device::flex().autodiff();
        let train = train(r#""lora": {"rank": 2, "alpha": 4}"#);
        assert!(check(train.trainable(), &parameters(&network(&device))).is_empty());
        let adapted = adapt(network(&device), train.trainable(), &Random::new(1), &|path| path.starts_with("new."));
        assert_eq!(paths(&adapted), ["attn.weight.lora.a", "attn.weight.lora.b", "new.weight", "new.bias"]);
        assert_eq!(
            trained(train.trainable(), &parameters(&network(&device)), &|path| path.starts_with("new.")),
            2 * (3 + 2) + 8
        );
        let x = Tensor::<2>::ones([1, 3], &device);
        let (before, after) = (network(&device).attn.forward(x.clone()), adapted.attn.forward(x));
        assert_eq!(before.into_data(), after.into_data());
        // The same seed gives the same adapters.
        let again = adapt(network(&device), train.trainable(), &Random::new(1), &|_| false);
        assert_eq!(export(&adapted)["attn.weight.lora.a"], export(&again)["attn.weight.lora.a"]);
    }

    #[test]
    fn frozen_parameters_have_no_gradient_and_patterns_must_be_found() {
        let device = Device::flex().autodiff();
        let frozen = train(r#""frozen": ["^attn", "bias$"]"#);
        let fresh = network(&device);
        let network = adapt(fresh.clone(), frozen.trainable(), &Random::new(0), &|_| false);
        assert_eq!(paths(&network), ["new.weight", "other.weight"]);
        assert_eq!(super::trained(frozen.trainable(), &parameters(&fresh), &|_| false), 2 * 6);
        let wrong = train(
            r#""frozen": ["blocks", "("], "weight_decay_groups": [{"parameters": "norm", "weight_decay": 0}],
               "lora": {"rank": 1, "parameters": "bias$"}"#,
        );
        let at: Vec<String> = check(wrong.trainable(), &parameters(&network)).into_iter().flat_map(|p| p.at).collect();
        assert_eq!(at, ["/lora/parameters", "/frozen/0", "/frozen/1", "/weight_decay_groups/0/parameters"]);
        // One factor of an adapter can be trained alone, whether its matrix is frozen or not.
        let one = train(r#""lora": {"rank": 1}, "frozen": ["lora\\.a$", "attn.*weight$"]"#);
        assert!(check(one.trainable(), &parameters(&network)).is_empty());
        assert_eq!(super::trained(one.trainable(), &parameters(&fresh), &|_| false), 2);
        assert_eq!(paths(&adapt(fresh, one.trainable(), &Random::new(0), &|_| false)), ["attn.weight.lora.b"]);
        let adapters = train(
            r#""lora": {"rank": 1}, "weight_decay_groups": [
                {"parameters": "lora\\.b$", "weight_decay": 0}, {"parameters": "other.*lora", "weight_decay": 0}
            ]"#,
        );
        let at: Vec<String> =
            check(adapters.trainable(), &parameters(&network)).into_iter().flat_map(|p| p.at).collect();
        assert_eq!(at, ["/weight_decay_groups/1/parameters"]);
    }
}

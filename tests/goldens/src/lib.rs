//! What tests against recorded numbers of the official codes share: finding the files, reading and comparing them.
//!
//! The files lie in `shared/goldens` beside the project; MANIFEST.md there says how they were made and gives the
//! tolerances. A test whose file is absent says so and passes.

use framework::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::burn::module::{Module, ModuleVisitor, Param};
use framework::burn::optim::GradientsParams;
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, Device, Int, Tensor, TensorData};
use framework::condition::Condition;
use framework::foreign::{self, ForeignNames, Report, Source};
use framework::objective::{Draw, Models, Role};
use framework::process::Input;
use framework::random::Random;
use framework::weights;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a recorded file lies; `None`, after saying so, if it is absent.
pub fn path(file: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/goldens").join(file);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}

/// The tensors of one recorded file.
pub struct Golden(BTreeMap<String, TensorData>);

impl Golden {
    /// Reads a file; `None`, after saying so, if it is absent.
    ///
    /// # Panics
    /// If it is damaged.
    pub fn open(file: &str) -> Option<Self> {
        Some(Self(tensors(&path(file)?)))
    }

    /// Whether a tensor was recorded.
    pub fn holds(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A tensor as it was recorded.
    ///
    /// # Panics
    /// If there is none of that name.
    #[track_caller]
    pub fn data(&self, name: &str) -> &TensorData {
        self.0.get(name).unwrap_or_else(|| panic!("no `{name}` among {:?}", self.0.keys()))
    }

    /// Its numbers, row-major.
    #[track_caller]
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        numbers(self.data(name).clone())
    }

    /// It as a tensor.
    #[track_caller]
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        Tensor::from_data(self.data(name).clone().convert_dtype(DType::F32), &Device::flex())
    }

    /// It as indices.
    #[track_caller]
    pub fn ids<const D: usize>(&self, name: &str) -> Tensor<D, Int> {
        Tensor::from_data(self.data(name).clone().convert_dtype(DType::I64), &Device::flex())
    }

    /// It as numbers that count.
    #[track_caller]
    pub fn indices(&self, name: &str) -> Vec<usize> {
        self.numbers(name).into_iter().map(|v| v as usize).collect()
    }

    /// It as booleans.
    #[track_caller]
    pub fn flags(&self, name: &str) -> Vec<bool> {
        self.numbers(name).into_iter().map(|v| v > 0.5).collect()
    }

    /// It as classes; from `null` on, null.
    #[track_caller]
    pub fn classes(&self, name: &str, null: usize) -> Condition {
        let class = |y: f64| Some(y as usize).filter(|class| *class < null);
        Condition::Class(self.numbers(name).into_iter().map(class).collect())
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The tensors of any file of weights.
///
/// # Panics
/// If it is damaged.
pub fn tensors(path: &Path) -> BTreeMap<String, TensorData> {
    let tensors = foreign::open(path).unwrap_or_else(|e| panic!("{e}"));
    let read = |(name, tensor): (&String, _)| (name.clone(), bridge::to_data(tensor).expect("a readable tensor"));
    tensors.iter().map(read).collect()
}

/// The numbers of a tensor, row-major.
pub fn numbers(data: TensorData) -> Vec<f64> {
    data.convert::<f64>().try_into_vec::<f64>().expect("converted")
}

/// The numbers of a tensor, row-major.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    numbers(tensor.into_data())
}

/// Asserts that the largest difference is within `tolerance` of the reference's largest number; `--nocapture` shows it.
#[track_caller]
pub fn close(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(expected).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
    eprintln!("{name:<22} {:.1e} of {tolerance:.0e}", worst / largest);
    assert!(worst <= tolerance * largest, "{name}: {worst:e} against {largest:e}");
}

/// The network of an official file.
///
/// # Panics
/// If the file does not fit.
pub fn load(config: &dyn BackboneConfig, file: &str, device: &Device) -> Option<(BoxBackbone, Report)> {
    let path = path(file)?;
    let init = |path: &str, shape: &[usize]| config.initializer(path, shape);
    let loaded = foreign::load(config.init(device), &config.formats(), &Source::of(path), (&Random::new(0), &init));
    Some(loaded.unwrap_or_else(|e| panic!("{e}")))
}

/// Replaces the weights recorded under `prefix` and their official name.
///
/// # Panics
/// If a recorded weight is none of the network's.
pub fn overridden(network: BoxBackbone, names: &ForeignNames, golden: &Golden, prefix: &str) -> BoxBackbone {
    let mut weights = weights::export(&network);
    for recorded in golden.names() {
        let Some(official) = recorded.strip_prefix(prefix) else { continue };
        let found = weights.iter().find(|(own, _)| (names.of)(own).name == official);
        let (own, shape) = found
            .map(|(own, data)| (own.clone(), data.shape().to_vec()))
            .unwrap_or_else(|| panic!("no parameter for {official}"));
        let data = (names.of)(&own).layout.to_own(golden.data(recorded).clone(), &shape).expect("of the same size");
        weights.insert(own, data);
    }
    weights::restore(network, weights).expect("the same names and shapes")
}

/// Gradients of a scalar by official parameter name, in the official layout.
pub type Gradients = BTreeMap<String, Vec<f64>>;

/// The gradients of a loss.
pub fn gradients(names: &ForeignNames, network: &BoxBackbone, loss: Tensor<1>) -> Gradients {
    struct Read<'a>(Vec<String>, GradientsParams, &'a ForeignNames, Gradients);
    impl ModuleVisitor for Read<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(gradient) = self.1.get::<D>(param.id) else { return };
            let name = (self.2.of)(&self.0.join("."));
            self.3.insert(name.name, numbers(name.layout.to_foreign(gradient.into_data())));
        }
    }
    let gradients = GradientsParams::from_grads(loss.backward(), network);
    let mut read = Read(Vec::new(), gradients, names, Gradients::new());
    network.visit(&mut read);
    read.3
}

/// Asserts that all gradients recorded under `prefix` are those: `grad_norm.NAME` and `grad.NAME`; `part` picks what of a
/// gradient was recorded under a name that is no parameter's. At least `least` must have been recorded.
#[track_caller]
pub fn same_gradients(
    prefix: &str,
    got: &Gradients,
    golden: &Golden,
    part: &dyn Fn(&str) -> Option<Vec<f64>>,
    least: usize,
) {
    let mut compared = 0;
    for recorded in golden.names() {
        if let Some(name) = recorded.strip_prefix(&format!("{prefix}grad_norm.")) {
            let expected = golden.numbers(recorded)[0];
            let norm = got.get(name).map_or(0.0, |g| g.iter().map(|v| v * v).sum::<f64>().sqrt());
            assert!((norm - expected).abs() <= 1e-3 * expected + 1e-6, "{name}: {norm} against {expected}");
            compared += 1;
        } else if let Some(name) = recorded.strip_prefix(&format!("{prefix}grad.")) {
            let ours = part(name).or_else(|| got.get(name).cloned()).unwrap_or_else(|| panic!("no gradient {name}"));
            close(name, &ours, &golden.numbers(recorded), 1e-3);
            compared += 1;
        }
    }
    assert!(compared >= least, "{compared} gradients compared, not {least}");
}

/// Networks of a recorded loss: the one in training, and what stands for every other role.
pub struct Recorded {
    /// Tracked.
    pub online: BoxBackbone,
    /// Stopped copy, average, reference or teacher.
    pub other: BoxBackbone,
}

impl Models for Recorded {
    fn predict(&self, role: Role, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        match role {
            Role::Online => self.online.predict(input, condition, control),
            _ => self.other.predict(input, condition, control),
        }
    }
}

/// Recorded draws in place of random ones.
#[derive(Default)]
pub struct Draws {
    /// Every uniform number.
    pub uniform: Vec<f64>,
    /// Which samples lose their condition.
    pub dropped: Vec<bool>,
    /// The conditions of other samples.
    pub negative: Option<Condition>,
}

impl Draw for Draws {
    fn uniform(&self, _: &str, _: f64, _: f64, _: usize) -> Vec<f64> {
        self.uniform.clone()
    }
    fn choice(&self, _: &str, _: &[f64], n: usize) -> Vec<usize> {
        if self.dropped.is_empty() {
            return vec![1; n];
        }
        self.dropped.iter().map(|dropped| usize::from(!dropped)).collect()
    }
    fn negative(&self, _: &str, _: &Condition) -> Condition {
        self.negative.clone().expect("recorded where an objective asks for it")
    }
}

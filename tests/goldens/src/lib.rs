//! Shared code of the tests against recorded outputs of the official implementations. It finds, reads and compares the
//! recorded files.
//!
//! The files are committed in `data/`. `data/MANIFEST.md` states how each one was recorded, and its tolerance. A
//! missing file fails its test.

use framework::burn::module::{Module, ModuleVisitor, Param};
use framework::burn::optim::GradientsParams;
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, Device, Int, Tensor, TensorData};
use framework::checkpoint::names::OfficialNames;
use framework::checkpoint::official::{self, CheckpointSource, Report};
use framework::checkpoint::open;
use framework::network::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::network::condition::Condition;
use framework::nn::parameters;
use framework::objective::context::{Models, RandomChoices, Role};
use framework::process::Input;
use framework::random::Random;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Returns the path of a recorded file.
///
/// # Panics
/// If the file is missing. A test that passed without its file would prove nothing.
#[track_caller]
pub fn path(file: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(file);
    assert!(path.exists(), "the recorded file {} is missing; it is part of the repository", path.display());
    path
}

/// Reports that `test` could not run because an external tool is missing. `.ci/run` sets `SKIPPED_TESTS` to a file and
/// counts the lines in it.
///
/// # Panics
/// If the file cannot be written.
pub fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("SKIPPED_TESTS") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the list can be written");
        file.write_all(line.as_bytes()).expect("the list can be written");
    }
}

/// The tensors of one recorded file.
pub struct Golden(BTreeMap<String, TensorData>);

impl Golden {
    /// Reads a recorded file.
    ///
    /// # Panics
    /// If the file is missing or damaged.
    #[track_caller]
    pub fn open(file: &str) -> Self {
        Self(tensors(&path(file)))
    }

    /// Returns whether a tensor was recorded.
    pub fn holds(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns a tensor as it was recorded.
    ///
    /// # Panics
    /// If no tensor has this name.
    #[track_caller]
    pub fn data(&self, name: &str) -> &TensorData {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor `{name}` among {:?}", self.0.keys()))
    }

    /// Returns the values of a recorded tensor, row-major.
    #[track_caller]
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        numbers(self.data(name).clone())
    }

    /// Returns a recorded tensor as an f32 tensor.
    #[track_caller]
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        Tensor::from_data(self.data(name).clone().convert_dtype(DType::F32), &Device::flex())
    }

    /// Returns a recorded tensor as an integer tensor.
    #[track_caller]
    pub fn ids<const D: usize>(&self, name: &str) -> Tensor<D, Int> {
        Tensor::from_data(self.data(name).clone().convert_dtype(DType::I64), &Device::flex())
    }

    /// Returns a recorded tensor as `usize` indices, row-major.
    #[track_caller]
    pub fn indices(&self, name: &str) -> Vec<usize> {
        self.numbers(name).into_iter().map(|v| v as usize).collect()
    }

    /// Returns a recorded tensor as booleans, row-major.
    #[track_caller]
    pub fn flags(&self, name: &str) -> Vec<bool> {
        self.numbers(name).into_iter().map(|v| v > 0.5).collect()
    }

    /// Returns a recorded tensor as classes. Values from `null` on are the null condition.
    #[track_caller]
    pub fn classes(&self, name: &str, null: usize) -> Condition {
        let class = |y: f64| Some(y as usize).filter(|class| *class < null);
        Condition::Class(self.numbers(name).into_iter().map(class).collect())
    }

    /// Returns the names of all recorded tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Reads the tensors of any weight file.
///
/// # Panics
/// If the file is damaged.
pub fn tensors(path: &Path) -> BTreeMap<String, TensorData> {
    let tensors = open::open(path).unwrap_or_else(|e| panic!("{e}"));
    let read = |(name, tensor): (&String, _)| (name.clone(), bridge::to_data(tensor).expect("the tensor is readable"));
    tensors.iter().map(read).collect()
}

/// Returns the values of tensor data as f64, row-major.
pub fn numbers(data: TensorData) -> Vec<f64> {
    data.convert::<f64>().try_into_vec::<f64>().expect("the data was converted to f64")
}

/// Returns the values of a tensor as f64, row-major.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    numbers(tensor.into_data())
}

/// Asserts that the largest difference is at most `tolerance` times the reference's largest absolute value. The
/// difference is printed; see it with `--nocapture`.
#[track_caller]
pub fn close(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    eprintln!("{name:<22} {:.1e} of {tolerance:.0e}", worst / largest);
    assert!(worst <= tolerance * largest, "{name}: off by {worst:e}; the largest value is {largest:e}");
}

/// Loads the network of a recorded official checkpoint.
///
/// # Panics
/// If the file does not fit the network.
pub fn load(config: &dyn BackboneConfig, file: &str, device: &Device) -> (BoxBackbone, Report) {
    let path = path(file);
    let init = |path: &str, shape: &[usize]| config.initializer(path, shape);
    let loaded =
        official::load(config.init(device), &config.formats(), &CheckpointSource::of(path), (&Random::new(0), &init));
    loaded.unwrap_or_else(|e| panic!("{e}"))
}

/// Replaces weights of the network with the ones recorded under `prefix` and their official name.
///
/// # Panics
/// If the network has no parameter for a recorded weight.
pub fn overridden(network: BoxBackbone, names: &OfficialNames, golden: &Golden, prefix: &str) -> BoxBackbone {
    let mut weights = parameters::export(&network);
    for recorded in golden.names() {
        let Some(official) = recorded.strip_prefix(prefix) else { continue };
        let found = weights.iter().find(|(own, _)| (names.of)(own).name == official);
        let (own, shape) = found
            .map(|(own, data)| (own.clone(), data.shape().to_vec()))
            .unwrap_or_else(|| panic!("no parameter for {official}"));
        let data = (names.of)(&own).layout.to_own(golden.data(recorded).clone(), &shape).expect("the sizes match");
        weights.insert(own, data);
    }
    parameters::restore(network, weights).expect("the weights keep their names and shapes")
}

/// Gradients of a scalar by official parameter name, in the official layout.
pub type Gradients = BTreeMap<String, Vec<f64>>;

/// Computes the gradients of a loss.
pub fn gradients(names: &OfficialNames, network: &BoxBackbone, loss: Tensor<1>) -> Gradients {
    struct Read<'a>(Vec<String>, GradientsParams, &'a OfficialNames, Gradients);
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

/// Asserts that `got` equals all gradients recorded under `prefix`: norms as `grad_norm.NAME`, values as `grad.NAME`.
///
/// For a recorded name that is not a parameter, `part` returns the part of a gradient that was recorded. At least
/// `least` gradients must have been recorded.
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
    assert!(compared >= least, "compared {compared} gradients; at least {least} must be recorded");
}

/// Networks of a recorded loss: the trained one, and one for every other role.
pub struct Recorded {
    /// The trained network, whose operations are tracked.
    pub online: BoxBackbone,
    /// The detached copy, the average, the reference or the teacher.
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

/// Recorded random choices in place of random numbers.
#[derive(Default)]
pub struct Draws {
    /// Every uniform random number.
    pub uniform: Vec<f64>,
    /// Which samples lose their condition.
    pub dropped: Vec<bool>,
    /// The conditions of other samples.
    pub negative: Option<Condition>,
}

impl RandomChoices for Draws {
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
        self.negative.clone().expect("negatives are recorded if the objective asks for them")
    }
}

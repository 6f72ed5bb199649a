//! Parameters by path: initialization, counting, reading and replacing their values, averaging.

use crate::error::{Error, Result};
use crate::kernels;
use crate::random::Random;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The initialization of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// All this value.
    Filled(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in +-sqrt(6 / (fan_in + fan_out)), Glorot & Bengio (2010), eq. 16.
    XavierUniform {
        /// Inputs of the layer.
        fan_in: usize,
        /// Outputs of the layer.
        fan_out: usize,
    },
    /// These values. The parameter is a constant and is not trained.
    Constant(Vec<f32>),
}

/// The stack of module names of a visitor or mapper.
#[derive(Default)]
pub(crate) struct Names(Vec<String>);

impl Names {
    pub(crate) fn path(&self) -> String {
        self.0.join(".")
    }
    pub(crate) fn enter(&mut self, name: &str) {
        self.0.push(name.to_string());
    }
    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }
}

/// Implements the methods by which a visitor or mapper updates the [`Names`] in its field.
macro_rules! keeps_names {
    ($field:tt) => {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.$field.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.$field.exit();
        }
    };
}
pub(crate) use keeps_names;

/// Returns the id of the parameter at `path`. The id is the same in every process, so that a parameter can be
/// matched with its optimizer state.
pub fn param_id(path: &str) -> ParamId {
    let hash = Sha256::digest(path.as_bytes());
    ParamId::from(u64::from_le_bytes(hash[..8].try_into().expect("the slice has eight bytes")))
}

/// The initialization of parameters that are in no file: the random generator, and the [`Init`] of a path and
/// shape.
pub type Initialization<'a> = (&'a Random, &'a dyn Fn(&str, &[usize]) -> Init);

/// Reads the values of the parameter with the given path and shape; returns `None` if there are none.
type Reading<'a> = dyn FnMut(&str, &[usize]) -> Result<Option<TensorData>> + 'a;

/// Initializes every float parameter of `module` by `init(path, shape)`. The values depend only on the seed and
/// the path.
pub fn initialize<M: Module>(module: M, random: &Random, init: &dyn Fn(&str, &[usize]) -> Init) -> M {
    fill(module, random, init, &mut |_, _| Ok(None)).expect("the source returns no error")
}

/// Sets every float parameter of `module` to the values that `source(path, shape)` returns, and initializes the
/// others.
///
/// # Errors
/// Returns the first error of `source`.
pub fn fill<M: Module>(
    module: M,
    random: &Random,
    init: &dyn Fn(&str, &[usize]) -> Init,
    source: &mut Reading<'_>,
) -> Result<M> {
    struct Fill<'a> {
        names: Names,
        random: &'a Random,
        init: &'a dyn Fn(&str, &[usize]) -> Init,
        source: &'a mut Reading<'a>,
        error: Option<Error>,
    }
    impl ModuleMapper for Fill<'_> {
        keeps_names!(names);
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.error.is_some() {
                return param;
            }
            let path = self.names.path();
            let shape: Vec<usize> = param.lazy_shape().to_vec();
            let device = param.lazy_device();
            let init = (self.init)(&path, &shape);
            let trained = !matches!(init, Init::Constant(_));
            let data = match (self.source)(&path, &shape) {
                Ok(Some(data)) => data,
                Ok(None) => TensorData::new(init.draw(&path, shape.iter().product(), self.random), shape),
                Err(error) => {
                    self.error = Some(error);
                    return param;
                }
            };
            Param::initialized(param_id(&path), Tensor::from_data(data, (&device, DType::F32)))
                .set_require_grad(trained)
        }
    }
    let mut fill = Fill { names: Names::default(), random, init, source, error: None };
    let module = module.map(&mut fill);
    fill.error.map_or(Ok(module), Err)
}

impl Init {
    /// Returns `n` values for the parameter at `path`.
    pub(crate) fn draw(self, path: &str, n: usize, random: &Random) -> Vec<f32> {
        let mut stream = random.stream(&format!("init {path}"), 0, 0);
        match self {
            Self::Zeros => vec![0.0; n],
            Self::Ones => vec![1.0; n],
            Self::Filled(value) => vec![value as f32; n],
            Self::Normal(std) => {
                let draw = |_| {
                    let z: f32 = StandardNormal.sample(&mut stream);
                    z * std as f32
                };
                (0..n).map(draw).collect()
            }
            Self::XavierUniform { fan_in, fan_out } => {
                let bound = (6.0 / (fan_in + fan_out) as f32).sqrt();
                (0..n).map(|_| stream.random_range(-bound..bound)).collect()
            }
            Self::Constant(values) => values,
        }
    }
}

/// Returns the path and shape of every float parameter, and whether it is trained, in module order. Allocates
/// no parameter.
pub fn parameters<M: Module>(module: &M) -> Vec<(String, Vec<usize>, bool)> {
    struct List(Names, Vec<(String, Vec<usize>, bool)>);
    impl ModuleVisitor for List {
        keeps_names!(0);
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let trained = if param.is_initialized() { param.base().is_require_grad() } else { true };
            self.1.push((self.0.path(), param.lazy_shape().to_vec(), trained));
        }
    }
    let mut list = List(Names::default(), Vec::new());
    module.visit(&mut list);
    list.1
}

/// Returns the number of weights of a module. Allocates no parameter.
pub fn count<M: Module>(module: &M) -> usize {
    parameters(module).iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum()
}

/// Returns the values of every float parameter, by path.
pub fn export<M: Module>(module: &M) -> BTreeMap<String, TensorData> {
    struct Read(Names, BTreeMap<String, TensorData>);
    impl ModuleVisitor for Read {
        keeps_names!(0);
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.path(), param.base().to_data());
        }
    }
    let mut read = Read(Names::default(), BTreeMap::new());
    module.visit(&mut read);
    read.1
}

/// Sets the parameters of a network to the values of a checkpoint. Parameters that are not allocated yet are
/// created with these values; on an autodiff device, they are then trained.
///
/// # Errors
/// Returns an error if the names or shapes do not match the network.
pub fn restore<M: Module>(network: M, values: BTreeMap<String, TensorData>) -> Result<M> {
    for (path, shape, _) in parameters(&network) {
        let Some(data) = values.get(&path) else {
            return Err(Error::Run(format!(
                "the checkpoint has no weights for `{path}`: another backbone wrote this checkpoint"
            )));
        };
        if data.shape().to_vec() != shape {
            return Err(Error::Run(format!(
                "`{path}` has shape {:?} in the checkpoint and {shape:?} in the backbone",
                data.shape().to_vec()
            )));
        }
    }
    struct Write {
        names: Names,
        values: BTreeMap<String, TensorData>,
    }
    impl ModuleMapper for Write {
        keeps_names!(names);
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.names.path();
            let new = self.values.remove(&path).expect("every path was checked above");
            if !param.is_initialized() {
                // Do not initialize values that are replaced at once.
                let device = param.lazy_device();
                let new = Tensor::from_data(new.convert_dtype(DType::F32), (&device, DType::F32));
                return Param::initialized(param_id(&path), new).set_require_grad(device.is_autodiff());
            }
            param.map(|old| {
                let new = Tensor::from_data(new.convert_dtype(old.dtype()), (&old.device(), old.dtype()));
                new.set_require_grad(old.is_require_grad())
            })
        }
    }
    let mut write = Write { names: Names::default(), values };
    let network = network.map(&mut write);
    match write.values.keys().next() {
        None => Ok(network),
        Some(path) => Err(Error::Run(format!("the checkpoint contains `{path}`, which the backbone does not have"))),
    }
}

/// Computes `average <- decay average + (1 - decay) model` for every parameter, on the device. Parameters of the average
/// that are not allocated stay so: another rank averages them.
pub fn average<M: Module>(average: M, model: &M, decay: f64) -> M {
    struct Read(Names, BTreeMap<String, Box<dyn std::any::Any + Send>>);
    impl ModuleVisitor for Read {
        keeps_names!(0);
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.path(), Box::new(param.base().inner()));
        }
    }
    struct Lerp(Names, BTreeMap<String, Box<dyn std::any::Any + Send>>, f64);
    impl ModuleMapper for Lerp {
        keeps_names!(0);
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !param.is_initialized() {
                return param;
            }
            let online = self.1.remove(&self.0.path()).expect("average and model have the same parameters");
            let online: Tensor<D> = *online.downcast().expect("both tensors have the same rank");
            let decay = self.2;
            param.map(|old| match kernels::lerp([old.into_dispatch(), online.into_dispatch()], decay) {
                Ok(average) => Tensor::from_dispatch(average),
                Err(inputs) => {
                    let [old, online] = inputs.map(Tensor::<D>::from_dispatch);
                    old * decay + online * (1.0 - decay)
                }
            })
        }
    }
    let mut read = Read(Names::default(), BTreeMap::new());
    model.visit(&mut read);
    average.map(&mut Lerp(Names::default(), read.1, decay))
}

/// Creates a parameter of the given shape that is not allocated until its values are set.
pub fn parameter<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, require_grad| Tensor::zeros(shape, device).set_require_grad(require_grad),
        device.clone(),
        device.is_autodiff(),
        shape.into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Linear;
    use burn::tensor::Device;

    #[test]
    fn numbers_go_into_networks_that_hold_none_and_into_those_that_do() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let drawn = |seed| {
                initialize(Linear::new(3, 2, &device), &Random::new(seed), &|_, shape| match shape.len() {
                    1 => Init::Constant(vec![0.0; 2]),
                    _ => Init::Normal(1.0),
                })
            };
            let expected = export(&drawn(1));
            let into_none = restore(Linear::new(3, 2, &device), expected.clone()).unwrap();
            let into_others = restore(drawn(2), expected.clone()).unwrap();
            assert!(export(&into_none) == expected && export(&into_others) == expected);
            let trained = |network: &Linear| parameters(network).into_iter().map(|(.., trained)| trained).collect();
            let (none, others): (Vec<bool>, Vec<bool>) = (trained(&into_none), trained(&into_others));
            // A parameter that was initialized as a constant stays constant.
            assert_eq!((none, others), (vec![device.is_autodiff(); 2], vec![device.is_autodiff(), false]));
        }
    }

    #[test]
    fn numbers_of_another_network_are_refused() {
        let linear = |inputs| Linear::new(inputs, 2, &Device::flex());
        let zeros = |network| export(&initialize(network, &Random::new(0), &|_, _| Init::Zeros));
        let said = |values| restore(linear(3), values).unwrap_err().to_string();
        assert!(
            said(zeros(linear(4))).contains("`weight` has shape [4, 2] in the checkpoint and [3, 2] in the backbone")
        );
        let (mut fewer, mut more) = (zeros(linear(3)), zeros(linear(3)));
        fewer.remove("bias");
        more.insert("scale".to_string(), TensorData::new(vec![0.0_f32], [1]));
        assert!(said(fewer).contains("no weights for `bias`"));
        assert!(said(more).contains("contains `scale`"));
    }
}

//! The traits of a network: its document entry ([`BackboneConfig`]), its forward pass ([`Backbone`]), and the box
//! that erases its type ([`BoxBackbone`]).

use crate::checkpoint::component::{DiffusersNetwork, OfficialFile};
use crate::checkpoint::names::OfficialNames;
use crate::checkpoint::published_config::PublishedConfig;
use crate::checkpoint::refit::Refit;
use crate::error::{Problem, Problems};
use crate::network::condition::{Condition, ConditionShape};
use crate::network::dyn_module::{self, DynMapper, DynVisitor};
use crate::nn::dropout::Dropout;
use crate::nn::hooks::Hooked;
use crate::nn::parameters::Init;
use crate::process::{Input, LatentShape, Process};
use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Tensor, TensorData};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

/// The inputs that a configured backbone accepts. The check phase compares the other parts with them before anything
/// is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// Condition that the network reads.
    pub condition: ConditionShape,
    /// Whether the network reads the guidance number of [`Control::guidance`].
    pub guidance_input: bool,
    /// JSON pointer, within the entry, of the field that switches the guidance input on, e.g. `/guidance_input`;
    /// empty if there is no such field.
    pub guidance_field: &'static str,
    /// Whether the network also predicts a variance, in the channels after those of the latent.
    pub variance: bool,
    /// Layers that [`Control::hooks`] can reach.
    pub hooks: HookSites,
    /// Whether the network uses [`Control::cache`].
    pub cache: bool,
}

impl Accepts {
    /// Returns the number of classes, for a class condition.
    pub fn num_classes(&self) -> Option<usize> {
        self.condition.num_classes()
    }
}

/// The layers of a network that the hooks of a pass can reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookSites {
    /// Number of blocks. Each has a self-attention layer. Block indices follow the order of execution.
    pub blocks: usize,
    /// Whether each block also attends to a text.
    pub text_attention: bool,
    /// Whether the cached keys and values of decoding pass through [`crate::nn::hooks::Hooks::cached`].
    pub decode_cache: bool,
    /// Whether the tokens of every block are the cells of a square grid, in row-major order, in a pass without a cache.
    pub grid: bool,
}

/// Everything other than the input and the condition that a forward pass takes.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Guidance number per sample: the value that the objective trains the network on (`beta` or scale). `None` omits
    /// the term, which differs from the value 0.
    pub guidance: Option<Vec<f64>>,
    /// Hooks that read or change the forward pass.
    pub hooks: Hooked,
    /// Masks of dropout and drop path; the default drops nothing. Only the tracked pass of training has masks.
    pub dropout: Dropout,
    /// State that the network keeps between decoding steps. With a cache, the network predicts only the positions
    /// that it has not read yet; in a masked process, only the requested places.
    pub cache: Option<Cache>,
}

impl Control {
    /// Creates a control with a guidance number per sample, without hooks or cache.
    pub fn guided(guidance: Option<Vec<f64>>) -> Self {
        Self { guidance, ..Self::default() }
    }

    /// Selects the samples `rows`, in that order.
    pub fn select(&self, rows: &[usize]) -> Self {
        let guidance = self.guidance.as_ref().map(|all| rows.iter().map(|row| all[*row]).collect());
        Self { guidance, ..self.clone() }
    }
}

/// The state that a network keeps while it decodes one batch: keys and values of every attention layer for the
/// positions read so far, or the features of a masked sequence. This is a handle: clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Cache(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    read: usize,
    layers: BTreeMap<usize, [Tensor<4>; 2]>,
    features: Option<Tensor<3>>,
}

impl Cache {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("no thread panics while it holds this lock")
    }

    /// Returns the number of positions read so far.
    pub fn read(&self) -> usize {
        self.kept().read
    }

    /// Records that the first `read` positions have passed through every layer.
    pub fn advance(&self, read: usize) {
        self.kept().read = read;
    }

    /// Appends the keys and values `[B, heads, new, d]` of layer `layer`. Returns the keys and values of all positions
    /// so far. Hooks may skip layers, so a layer may have none while later layers have some.
    pub fn extend(&self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> [Tensor<4>; 2] {
        let layers = &mut self.kept().layers;
        let all = match layers.remove(&layer) {
            None => [keys, values],
            Some([old_keys, old_values]) => {
                [Tensor::cat(vec![old_keys, keys], 2), Tensor::cat(vec![old_values, values], 2)]
            }
        };
        layers.insert(layer, all.clone());
        all
    }

    /// Returns the stored features. Computes them with `make` on the first call.
    pub fn features(&self, make: impl FnOnce() -> Tensor<3>) -> Tensor<3> {
        let kept = self.kept().features.clone();
        kept.unwrap_or_else(|| {
            let made = make();
            self.kept().features = Some(made.clone());
            made
        })
    }
}

/// The weights of a network and its forward pass. Implement this trait for a `#[derive(Module)]` struct.
pub trait Backbone: Debug + Send + Sync {
    /// Computes the prediction, `[B, position, channel]`. Channels of a learned variance follow the latent's channels.
    ///
    /// The prediction of a sample must not depend on the rest of the batch: passes without the tape run in
    /// micro-batches, on several threads at once.
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3>;
}

/// A network with the module operations that a trait object needs. Every `Backbone + Module` implements it
/// automatically.
pub trait BackboneModule: Backbone + DynModule {}

impl<M: Backbone + Module + Sync + 'static> BackboneModule for M {}

/// The operations of [`Module`] that a boxed backbone needs.
pub trait DynModule {
    /// Clones the network; the copy shares the tensors.
    fn clone_dyn(&self) -> Box<dyn BackboneModule>;
    /// Visits every parameter.
    fn visit_dyn(&self, visitor: &mut dyn DynVisitor);
    /// Maps every parameter.
    fn map_dyn(self: Box<Self>, mapper: &mut dyn DynMapper) -> Box<dyn BackboneModule>;
    /// Moves the network to a device.
    fn to_device_dyn(self: Box<Self>, device: &Device) -> Box<dyn BackboneModule>;
    /// Moves the network to a device. Its parameters become new leaves of the autodiff graph.
    fn fork_dyn(self: Box<Self>, device: &Device) -> Box<dyn BackboneModule>;
    /// Enables gradient tracking.
    fn train_dyn(self: Box<Self>) -> Box<dyn BackboneModule>;
    /// Returns a copy without gradient tracking that shares the tensors.
    fn valid_dyn(&self) -> Box<dyn BackboneModule>;
    /// Merges every reparameterization permanently into its parameter.
    fn materialize_dyn(self: Box<Self>) -> Box<dyn BackboneModule>;
    /// Adds the devices that hold parameters to `devices`.
    fn devices_dyn(&self, devices: Devices) -> Devices;
}

impl<M: Backbone + Module + Sync + 'static> DynModule for M {
    fn clone_dyn(&self) -> Box<dyn BackboneModule> {
        Box::new(self.clone())
    }
    fn visit_dyn(&self, visitor: &mut dyn DynVisitor) {
        dyn_module::visit_module(self, visitor);
    }
    fn map_dyn(self: Box<Self>, mapper: &mut dyn DynMapper) -> Box<dyn BackboneModule> {
        Box::new(dyn_module::map_module(*self, mapper))
    }
    fn to_device_dyn(self: Box<Self>, device: &Device) -> Box<dyn BackboneModule> {
        Box::new((*self).to_device(device))
    }
    fn fork_dyn(self: Box<Self>, device: &Device) -> Box<dyn BackboneModule> {
        Box::new((*self).fork(device))
    }
    fn train_dyn(self: Box<Self>) -> Box<dyn BackboneModule> {
        Box::new(Module::train(*self))
    }
    fn valid_dyn(&self) -> Box<dyn BackboneModule> {
        Box::new(Module::valid(self))
    }
    fn materialize_dyn(self: Box<Self>) -> Box<dyn BackboneModule> {
        Box::new((*self).materialize())
    }
    fn devices_dyn(&self, devices: Devices) -> Devices {
        self.collect_devices(devices)
    }
}

/// A backbone of any type as a Burn [`Module`]. Optimizers, records and stores work on it unchanged.
#[derive(Debug)]
pub struct BoxBackbone(Box<dyn BackboneModule>);

impl BoxBackbone {
    /// Boxes a network.
    pub fn new(backbone: impl BackboneModule + 'static) -> Self {
        Self(Box::new(backbone))
    }
}

impl Backbone for BoxBackbone {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        self.0.predict(input, condition, control)
    }
}

impl Clone for BoxBackbone {
    fn clone(&self) -> Self {
        Self(self.0.clone_dyn())
    }
}

impl Module for BoxBackbone {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.0.devices_dyn(devices)
    }
    fn fork(self, device: &Device) -> Self {
        Self(self.0.fork_dyn(device))
    }
    fn to_device(self, device: &Device) -> Self {
        Self(self.0.to_device_dyn(device))
    }
    fn train(self) -> Self {
        Self(self.0.train_dyn())
    }
    fn valid(&self) -> Self {
        Self(self.0.valid_dyn())
    }
    fn materialize(self) -> Self {
        Self(self.0.materialize_dyn())
    }
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        dyn_module::visit(|visitor| self.0.visit_dyn(visitor), visitor);
    }
    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self(dyn_module::map(|mapper| self.0.map_dyn(mapper), mapper))
    }
}

impl ModuleDisplayDefault for BoxBackbone {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"Box<dyn Backbone>".to_string()).optional()
    }
}
impl ModuleDisplay for BoxBackbone {}

/// The document entry of a backbone. It describes the network by its sizes and creates it.
pub trait BackboneConfig: Debug + Send + Sync {
    /// Returns the problems within this entry. Pointers are relative to the entry.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// Returns the inputs that the network accepts.
    fn accepts(&self) -> Accepts;

    /// Returns the shape of the clean latents that the network models.
    fn latent_shape(&self) -> LatentShape;

    /// Returns the process that the network is trained on.
    fn process(&self) -> Box<dyn Process>;

    /// Creates the network without allocating its parameters. [`crate::nn::parameters::initialize`] fills them as
    /// [`BackboneConfig::initializer`] specifies, or they are read from a checkpoint.
    fn init(&self, device: &Device) -> BoxBackbone;

    /// Returns the initial distribution of the parameter at `path`.
    fn initializer(&self, path: &str, shape: &[usize]) -> Init;

    /// Returns the published formats of the weights. `convert` writes the first one by default.
    fn formats(&self) -> Vec<OfficialNames>;

    /// Returns the file in which the official format stores the weights.
    fn official_file(&self) -> OfficialFile {
        OfficialFile { name: "model.pt", ..OfficialFile::default() }
    }

    /// Returns the network and its process in the layout of `diffusers`. `weights` are the parameters, by path.
    ///
    /// # Errors
    /// If `diffusers` has no such network, or not with these settings. Pointers are those of a document.
    fn diffusers(&self, weights: &BTreeMap<String, TensorData>) -> Result<DiffusersNetwork, Problem> {
        let _ = weights;
        Err(Problem::new("/backbone/type", "diffusers has no network of this kind"))
    }

    /// Folds a guidance number into the weights: afterwards, they are those of a network without a guidance input,
    /// which predicts what this network predicts at `guidance`. Returns the entry of that network; `None` if the number
    /// cannot be folded.
    fn fold_guidance(
        &self,
        weights: &mut BTreeMap<String, TensorData>,
        guidance: f64,
    ) -> Option<Box<dyn BackboneConfig>> {
        let _ = (weights, guidance);
        None
    }

    /// Returns how the parameter at `path` takes over published weights of another shape; `None` if it cannot.
    fn refit(&self, _path: &str) -> Option<Refit> {
        None
    }

    /// Compares this entry with the configuration files of published weights, and returns the contradictions. Pointers
    /// are relative to the entry. Keep the default if the published weights have no such files.
    fn contradictions(&self, _published: &PublishedConfig) -> Problems {
        Problems::new()
    }

    /// Converts the official network's time to ours (0 = data, 1 = noise).
    fn t_of_native(&self, native: f64) -> f64;

    /// Converts a prediction to the convention of the official network. A flow whose time runs the other way has
    /// velocities of the opposite sign.
    fn to_native(&self, prediction: Tensor<3>) -> Tensor<3> {
        prediction
    }

    /// Returns the floating-point operations per sample of one forward pass. A multiply-add counts as two.
    fn flops(&self) -> f64;

    /// Estimates the number of tensor elements per sample that are kept for the backward pass. `check` uses it for its
    /// memory estimate.
    fn activations(&self) -> f64;
}

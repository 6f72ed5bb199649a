//! The network: its document entry ([`BackboneConfig`]), its weights ([`Backbone`]), and the box around them.

use crate::bridge::{self, DynMapper, DynVisitor};
use crate::condition::{Condition, ConditionKind};
use crate::error::Problems;
use crate::foreign::ForeignNames;
use crate::process::{Input, LatentShape, Process};
use crate::weights::Init;
use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Tensor};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a backbone, as configured, can be given. Pairs are checked against it before anything is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// The kind of condition it reads.
    pub condition: ConditionKind,
    /// Number of classes, for [`ConditionKind::Class`]; the null class is one more.
    pub num_classes: Option<usize>,
    /// Width of text features, for [`ConditionKind::Text`]; number of distinct tokens, for [`ConditionKind::Tokens`].
    pub text_width: Option<usize>,
    /// Most tokens of a text; `None` = any number.
    pub text_length: Option<usize>,
    /// Whether it reads the guidance number of [`Control::guidance`].
    pub guidance_input: bool,
    /// Which document field switches the guidance input on, e.g. `/guidance_input`.
    pub guidance_field: &'static str,
    /// Whether it predicts a variance beside the latent's channels.
    pub variance: bool,
    /// Whether its attention and blocks honour [`Control::perturb`].
    pub perturbation: bool,
    /// Whether it honours [`Control::cache`].
    pub cache: bool,
}

/// A change to the forward pass of one branch, for guidance by a perturbed model.
///
/// Source: arXiv:2403.17377 (identity attention), arXiv:2408.00760 (blurred queries), arXiv:2508.12880 (dropped blocks).
#[derive(Clone, Debug, PartialEq)]
pub enum Perturbation {
    /// Self-attention of these blocks becomes the identity map: its output is `V`.
    IdentityAttention(Vec<usize>),
    /// These blocks are skipped.
    SkipBlocks(Vec<usize>),
    /// The tokens entering these blocks are permuted by the given order.
    PermuteTokens(Vec<usize>, Vec<usize>),
}

/// What accompanies an input through the network.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// The guidance number the objective trained the network on (`beta` or scale), one a sample; `None` =
    /// the term is left out, which is not the same as 0.
    pub guidance: Option<Vec<f64>>,
    /// Changes to the forward pass.
    pub perturb: Vec<Perturbation>,
    /// What the network keeps from one step of a decoding to the next. With it, predictions are those of the positions
    /// (of a masked process: of the places) that it has not yet read.
    pub cache: Option<Cache>,
}

impl Control {
    /// A control that carries one guidance number a sample.
    pub fn guided(guidance: Option<Vec<f64>>) -> Self {
        Self { guidance, ..Self::default() }
    }

    /// What accompanies the samples `rows`, in that order.
    pub fn select(&self, rows: &[usize]) -> Self {
        let guidance = self.guidance.as_ref().map(|all| rows.iter().map(|row| all[*row]).collect());
        Self { guidance, ..self.clone() }
    }
}

/// What a network keeps while it decodes one batch: keys and values of every attention layer over the positions read so
/// far, or the features of a masked sequence. A handle: clones share what is kept.
#[derive(Clone, Debug, Default)]
pub struct Cache(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    read: usize,
    layers: Vec<[Tensor<4>; 2]>,
    features: Option<Tensor<3>>,
}

impl Cache {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("no holder of a cache panics")
    }

    /// Positions read so far.
    pub fn read(&self) -> usize {
        self.kept().read
    }

    /// Notes that positions up to `read` have gone through every layer.
    pub fn advance(&self, read: usize) {
        self.kept().read = read;
    }

    /// Appends keys and values `[B, heads, new, d]` of layer `layer`, and returns all so far.
    pub fn extend(&self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> [Tensor<4>; 2] {
        let layers = &mut self.kept().layers;
        if layer == layers.len() {
            layers.push([keys, values]);
        } else {
            let [old_keys, old_values] = layers[layer].clone();
            layers[layer] = [Tensor::cat(vec![old_keys, keys], 2), Tensor::cat(vec![old_values, values], 2)];
        }
        layers[layer].clone()
    }

    /// The features kept, or those that `make` makes now.
    pub fn features(&self, make: impl FnOnce() -> Tensor<3>) -> Tensor<3> {
        let kept = self.kept().features.clone();
        kept.unwrap_or_else(|| {
            let made = make();
            self.kept().features = Some(made.clone());
            made
        })
    }
}

/// The weights of a network and its forward pass. Implement it for a `#[derive(Module)]` struct.
pub trait Backbone: Debug + Send + Sync {
    /// The prediction, `[B, position, channel]`; channels beyond the latent's (a learned variance) follow it. A sample's does
    /// not depend on its batch: passes without the tape come in micro-batches, on several threads at once.
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3>;
}

/// A network with the module operations that a trait object needs. Implemented for every
/// `Backbone + Module`; there is nothing to write.
pub trait BackboneModule: Backbone + DynModule {}

impl<M: Backbone + Module + Sync + 'static> BackboneModule for M {}

/// The operations of [`Module`] that a boxed backbone needs.
pub trait DynModule {
    /// A copy that shares its tensors.
    fn clone_dyn(&self) -> Box<dyn BackboneModule>;
    /// Visits every parameter.
    fn visit_dyn(&self, visitor: &mut dyn DynVisitor);
    /// Maps every parameter.
    fn map_dyn(self: Box<Self>, mapper: &mut dyn DynMapper) -> Box<dyn BackboneModule>;
    /// Moves to a device.
    fn to_device_dyn(self: Box<Self>, device: &Device) -> Box<dyn BackboneModule>;
    /// Moves to a device, as new leaves of the gradient graph.
    fn fork_dyn(self: Box<Self>, device: &Device) -> Box<dyn BackboneModule>;
    /// With gradient tracking.
    fn train_dyn(self: Box<Self>) -> Box<dyn BackboneModule>;
    /// Without gradient tracking; shares its tensors.
    fn valid_dyn(&self) -> Box<dyn BackboneModule>;
    /// With every reparameterization applied for good.
    fn materialize_dyn(self: Box<Self>) -> Box<dyn BackboneModule>;
    /// The devices that hold parameters.
    fn devices_dyn(&self, devices: Devices) -> Devices;
}

impl<M: Backbone + Module + Sync + 'static> DynModule for M {
    fn clone_dyn(&self) -> Box<dyn BackboneModule> {
        Box::new(self.clone())
    }
    fn visit_dyn(&self, visitor: &mut dyn DynVisitor) {
        bridge::visit_module(self, visitor);
    }
    fn map_dyn(self: Box<Self>, mapper: &mut dyn DynMapper) -> Box<dyn BackboneModule> {
        Box::new(bridge::map_module(*self, mapper))
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

/// Any backbone's weights, as a Burn [`Module`]: optimizers, records and stores work on it unchanged.
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
        bridge::visit(|visitor| self.0.visit_dyn(visitor), visitor);
    }
    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self(bridge::map(|mapper| self.0.map_dyn(mapper), mapper))
    }
}

impl ModuleDisplayDefault for BoxBackbone {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"Box<dyn Backbone>".to_string()).optional()
    }
}
impl ModuleDisplay for BoxBackbone {}

/// The document entry of a backbone: sizes in, network out.
pub trait BackboneConfig: Debug + Send + Sync {
    /// Problems within this entry; pointers are relative to it.
    fn check(&self) -> Problems {
        Problems::new()
    }

    /// What the network can be given.
    fn accepts(&self) -> Accepts;

    /// The clean latent it models.
    fn latent_shape(&self) -> LatentShape;

    /// The process it is trained on.
    fn process(&self) -> Box<dyn Process>;

    /// The network, with its parameters not yet allocated: they are drawn by [`crate::weights::initialize`] from
    /// [`BackboneConfig::initializer`], or read from a checkpoint.
    fn init(&self, device: &Device) -> BoxBackbone;

    /// How the parameter at `path` is drawn.
    fn initializer(&self, path: &str, shape: &[usize]) -> Init;

    /// The published formats of its weights; the one that `convert` writes unless asked comes first.
    fn formats(&self) -> Vec<ForeignNames>;

    /// Our clock for the times that the official network takes.
    fn t_of_native(&self, native: f64) -> f64;

    /// A prediction as the official network answers it: a flow that runs the other way has velocities of the other sign.
    fn to_native(&self, prediction: Tensor<3>) -> Tensor<3> {
        prediction
    }

    /// Floating-point operations of one forward pass of one sample (multiply and add counted apart).
    fn flops(&self) -> f64;

    /// Numbers held for the backward pass of one sample: the estimate behind `check`'s memory line.
    fn activations(&self) -> f64;
}

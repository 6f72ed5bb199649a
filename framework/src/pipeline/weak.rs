//! The `guidance.weak` entry of a document: the second network of guidance rules that compare two networks.

use crate::checkpoint::official::CheckpointSource;
use crate::error::{Error, Result};
use crate::network::backbone::BoxBackbone;
use crate::nn::parameters;
use crate::objective::Objective;
use burn::tensor::TensorData;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The weak network of a guidance rule: a checkpoint, or weights interpolated between two checkpoints. It must have the
/// same latents, process and conditions as the main network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeakConfig {
    /// A run folder, a checkpoint, or an official file or folder of the backbone.
    pub checkpoint: PathBuf,
    /// Published format of an official file; null = detected from the tensor names.
    #[serde(default)]
    pub format: Option<String>,
    /// Second network, towards which the weights are interpolated; null = the weights of `checkpoint`.
    #[serde(default)]
    pub interpolate: Option<Interpolation>,
}

/// Interpolation between the weights of two networks: `(1 - weight) checkpoint + weight other`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interpolation {
    /// Other network: a run folder, a checkpoint, or an official file or folder of the backbone.
    pub checkpoint: PathBuf,
    /// Published format of an official file; null = detected from the tensor names.
    #[serde(default)]
    pub format: Option<String>,
    /// Weight of the other network, -100 to 100. Values outside [0, 1] extrapolate.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub weight: f64,
}

impl WeakConfig {
    /// Returns the checkpoints from which the network is built.
    pub fn sources(&self) -> Vec<CheckpointSource> {
        let source = |checkpoint: &PathBuf, format: &Option<String>| CheckpointSource {
            checkpoint: checkpoint.clone(),
            format: format.clone(),
        };
        let other = self.interpolate.as_ref().map(|other| source(&other.checkpoint, &other.format));
        [Some(source(&self.checkpoint, &self.format)), other].into_iter().flatten().collect()
    }
}

/// A loaded weak network.
pub struct WeakNetwork {
    /// Network with its weights.
    pub network: BoxBackbone,
    /// Objective that trained the network, for the conversion from scale to guidance number; `None` for an official
    /// file.
    pub objective: Option<Box<dyn Objective>>,
}

/// Interpolates the weights of two networks: `(1 - weight) network + weight other`.
///
/// # Errors
/// If the networks have different parameters.
pub fn interpolate(network: BoxBackbone, other: &BoxBackbone, weight: f64) -> Result<BoxBackbone> {
    let (ours, theirs) = (parameters::export(&network), parameters::export(other));
    let mut mixed = BTreeMap::new();
    for (path, data) in ours {
        let Some(another) = theirs.get(&path).filter(|another| another.shape() == data.shape()) else {
            return Err(Error::Run(format!("the networks to interpolate differ in parameter `{path}`")));
        };
        let shape = data.shape().to_vec();
        let values = |data: TensorData| data.convert::<f32>().try_into_vec::<f32>().expect("converted to f32");
        let pairs = values(data).into_iter().zip(values(another.clone()));
        let values = pairs.map(|(a, b)| ((1.0 - weight) * f64::from(a) + weight * f64::from(b)) as f32).collect();
        mixed.insert(path, TensorData::new::<f32, _>(values, shape));
    }
    parameters::restore(network, mixed)
}

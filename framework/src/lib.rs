//! The traits and the mathematics that all Unguided plugins share.
//!
//! Read in this order: [`process`] (what a training example is), [`process::path`] (`x_t = alpha_t x + sigma_t eps`),
//! [`network::backbone`], [`objective`], [`sampling::guidance`], [`sampling::sampler`], then [`training::trainer`].
//! This crate names no plugin.

pub mod blame;
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod evaluation;
pub mod interrupt;
mod kernels;
pub mod network;
pub mod nn;
pub mod numbers;
pub mod objective;
pub mod optimization;
pub mod pipeline;
pub mod plugin;
pub mod process;
pub mod random;
pub mod ranks;
pub mod sampling;
pub mod schedule;
pub mod schema;
pub mod training;

pub use {burn, inventory, schemars, serde, serde_json, typetag};

/// The imports of a plugin file: the traits, the types they use, and Burn's tensors.
pub mod prelude {
    pub use crate::error::Problem;
    pub use crate::network::backbone::{Accepts, Backbone, BackboneModule, BoxBackbone, Control};
    pub use crate::network::condition::{Condition, ConditionShape};
    pub use crate::objective::context::{Context, Role};
    pub use crate::objective::optimum::{Against, Of, Optimum, Tilt};
    pub use crate::objective::{Needs, NullPrediction, Objective};
    pub use crate::process::path::{NoisePath, Prediction};
    pub use crate::process::{Example, Family, Input, LatentShape, Process, Target};
    pub use crate::register;
    pub use crate::schema::Required;
    pub use burn::tensor::{Device, Int, Tensor};
    pub use schemars::JsonSchema;
    pub use serde::{Deserialize, Serialize};
}

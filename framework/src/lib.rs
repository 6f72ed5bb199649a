//! The traits and the mathematics that every Unguided plugin shares.
//!
//! Read in this order: [`process`] (what a training example is), [`path`] (`x_t = alpha_t x + sigma_t eps`),
//! [`backbone`], [`objective`], [`guidance`], [`sampler`], then [`trainer`].
//! This crate names no plugin.

pub mod adapt;
pub mod backbone;
pub mod bridge;
pub mod checkpoint;
pub mod condition;
pub mod conditioner;
pub mod conformance;
pub mod dataset;
pub mod error;
pub mod foreign;
pub mod guard;
pub mod guidance;
pub mod interpolant;
mod kernels;
pub mod latents;
pub mod laws;
pub mod loader;
pub mod masked;
pub mod metric;
pub mod microbatch;
pub mod nn;
pub mod objective;
pub mod optimizer;
pub mod path;
mod pickle;
pub mod picture;
pub mod pipeline;
pub mod plot;
pub mod plugin;
pub mod precision;
pub mod process;
pub mod random;
pub mod sampler;
pub mod sampling;
pub mod tokenizer;
pub mod tokens;
pub mod train_config;
pub mod trainer;
pub mod variance;
pub mod vp;
pub mod weights;
pub mod workers;

pub use {burn, inventory, schemars, serde, serde_json, typetag};

/// What a plugin file needs: the traits, their companions, and Burn's tensors.
pub mod prelude {
    pub use crate::backbone::{Accepts, Backbone, BackboneModule, BoxBackbone, Control};
    pub use crate::condition::{Condition, ConditionKind};
    pub use crate::error::Problem;
    pub use crate::objective::{Against, Context, Needs, Objective, Of, Optimum, Role, Tilt};
    pub use crate::path::{Path, Prediction};
    pub use crate::process::{Example, Family, Input, LatentShape, Process, Target};
    pub use crate::register;
    pub use burn::tensor::{Device, Int, Tensor};
    pub use schemars::JsonSchema;
    pub use serde::{Deserialize, Serialize};
}

//! The network as the rest of the framework sees it: its traits, its conditions, and the execution of its passes.
//! A new kind of condition is added in this folder alone. Layers are in [`crate::nn`], networks in `plugins/backbones`.

pub mod backbone;
pub mod condition;
pub mod conditioner;
pub mod dyn_module;
pub mod microbatch;

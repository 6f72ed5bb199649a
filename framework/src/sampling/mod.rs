//! Sampling: the traits of guidance rules and samplers, and the denoiser that evaluates a rule.
//! Rules and samplers are plugins. How branches are evaluated can be changed in [`denoiser`] alone.

pub mod denoiser;

pub mod guidance;
pub mod sampler;

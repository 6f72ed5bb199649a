//! Training: the loop, the networks of one step, the events, and the threads that run forward passes.
//! The distribution of passes over threads can be changed in [`workers`] alone. Optimizers are in
//! [`crate::optimization`].

pub mod events;
pub mod networks;
pub mod trainer;
pub mod workers;

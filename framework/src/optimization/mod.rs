//! Optimization: optimizers, learning-rate schedules, gradient clipping, and the choice of trained parameters (LoRA,
//! frozen). An optimizer or a schedule can be added here without a change to the loop in [`crate::training`].

pub mod optimizer;
pub mod record;
pub mod trainable;

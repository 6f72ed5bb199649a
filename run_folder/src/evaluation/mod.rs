//! Evaluation of images: their sources, the reference, metrics side by side, resumption, results and sweeps.
//! How measurements are stored and resumed can be changed here alone; metrics are plugins.

pub mod evaluate;
pub mod inputs;
pub mod measuring;
pub mod needs;
pub mod source;
pub mod store;
pub mod sweep;

//! Training objectives: one file each, with the formula on top.

mod cfg;
mod gft;

pub use cfg::Cfg;
pub use gft::{DroppedSample, Gft};

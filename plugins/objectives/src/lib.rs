//! Training objectives: one file each, with the formula on top.

#[cfg(test)]
use framework_dylib as _;

mod cca;
mod cfg;
mod distill;
mod gft;
mod mg;

pub use cca::{Cca, Negatives, SameCondition, Variant};
pub use cfg::Cfg;
pub use distill::{Distance, Distill};
pub use gft::{DroppedSample, Gft, Profile};
pub use mg::{Mg, Scale, Unconditional};

//! Training objectives, one file each. Each file starts with its formula.

#[cfg(test)]
use framework_dylib as _;

mod autoguided;
mod cca;
mod cfg;
mod distill;
mod gft;
mod mg;

pub use autoguided::Autoguided;
pub use cca::{Cca, Contrast, Dpo, Negatives, SameCondition, Unlearning, Variant};
pub use cfg::Cfg;
pub use distill::{Distance, Distill};
pub use gft::{DroppedSample, Gft};
pub use mg::{AutomaticScale, FixedScale, InputScale, Mg, Scale, Unconditional};

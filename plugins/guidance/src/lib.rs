//! Guidance rules, one file each. Each file starts with its formula.

#[cfg(test)]
use framework_dylib as _;

mod cfg;
mod none;
mod pag;
mod perturbed;
mod seg;
#[cfg(test)]
mod testing;
mod weak_model;

pub use cfg::Cfg;
pub use none::NoGuidance;
pub use pag::Pag;
pub use seg::{Blur, Seg};
pub use weak_model::{WeakCondition, WeakModel};

//! Guidance rules, one file each. Each file starts with its formula.

#[cfg(test)]
use framework_dylib as _;

mod cfg;
mod entropy_cfg;
mod nag;
mod none;
mod null_text;
mod pag;
mod perturbed;
mod pladis;
mod s2;
mod seg;
mod slg;
#[cfg(test)]
mod testing;
mod tpg;
mod vsf;
mod weak_model;

pub use cfg::Cfg;
pub use entropy_cfg::EntropyCfg;
pub use nag::{Nag, Norm};
pub use none::NoGuidance;
pub use pag::Pag;
pub use pladis::Pladis;
pub use s2::S2;
pub use seg::{Blur, Seg};
pub use slg::{Skip, Slg};
pub use tpg::Tpg;
pub use vsf::Vsf;
pub use weak_model::{WeakCondition, WeakModel};

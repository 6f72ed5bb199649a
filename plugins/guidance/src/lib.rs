//! Guidance rules, one file each. Each file starts with its formula.

#[cfg(test)]
use framework_dylib as _;

mod adaptive;
mod apg;
mod beta_cfg;
mod cfg;
mod cfg_norm;
mod cfg_pp;
mod cfg_zero_star;
mod entropy_cfg;
mod fdg;
mod mambo;
mod nag;
mod none;
mod null_text;
mod pag;
mod per_sample;
mod perp_neg;
mod perturbed;
mod pladis;
mod s2;
mod seg;
mod slg;
mod tcfg;
#[cfg(test)]
mod testing;
mod text;
mod tpg;
#[cfg(test)]
mod trials;
mod vsf;
mod weak_model;

pub use adaptive::Adaptive;
pub use apg::{Anchor, Apg};
pub use beta_cfg::BetaCfg;
pub use cfg::{Cfg, SigmaInterval};
pub use cfg_norm::{CfgNorm, NormOver};
pub use cfg_pp::CfgPp;
pub use cfg_zero_star::CfgZeroStar;
pub use entropy_cfg::EntropyCfg;
pub use fdg::Fdg;
pub use mambo::Mambo;
pub use nag::{Nag, Norm};
pub use none::NoGuidance;
pub use pag::Pag;
pub use perp_neg::PerpNeg;
pub use pladis::Pladis;
pub use s2::S2;
pub use seg::{Blur, Seg};
pub use slg::{Skip, Slg};
pub use tcfg::Tcfg;
pub use tpg::Tpg;
pub use vsf::Vsf;
pub use weak_model::{WeakCondition, WeakModel};

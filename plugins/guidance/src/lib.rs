//! Guidance rules, one file each. Each file starts with its formula.

#[cfg(test)]
use framework_dylib as _;

mod adaptive;
mod apg;
mod beta_cfg;
mod cfg;
mod cfg_norm;
mod cfg_zero_star;
mod fdg;
mod mambo;
mod none;
mod per_sample;
mod perp_neg;
mod tcfg;
#[cfg(test)]
mod trials;

pub use adaptive::Adaptive;
pub use apg::{Anchor, Apg};
pub use beta_cfg::BetaCfg;
pub use cfg::{Cfg, SigmaInterval};
pub use cfg_norm::{CfgNorm, NormOver};
pub use cfg_zero_star::CfgZeroStar;
pub use fdg::Fdg;
pub use mambo::Mambo;
pub use none::NoGuidance;
pub use perp_neg::PerpNeg;
pub use tcfg::Tcfg;

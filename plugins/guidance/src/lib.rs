//! Guidance rules, one file each. Each file starts with its formula.

#[cfg(test)]
use framework_dylib as _;

mod cfg;
mod none;

pub use cfg::Cfg;
pub use none::NoGuidance;

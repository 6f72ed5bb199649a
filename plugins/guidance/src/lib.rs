//! Guidance rules: one file each, with the formula on top.

#[cfg(test)]
use framework_dylib as _;

mod cfg;
mod none;

pub use cfg::{Cfg, Schedule};
pub use none::NoGuidance;

//! Guidance rules: one file each, with the formula on top.

mod cfg;
mod none;

pub use cfg::{Cfg, Schedule};
pub use none::NoGuidance;

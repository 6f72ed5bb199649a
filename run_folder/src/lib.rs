//! Run folders: opening one, starting or resuming its training, and writing its pictures, plots and report.
//! The command, a server or your own program calls [`session::train`]. Only this crate knows the files of a run folder.

#[cfg(test)]
use framework_dylib as _;

pub mod binding;
pub mod document;
mod evaluator;
pub mod folder;
pub mod frozen;
pub mod labels;
pub mod parts;
pub mod picture;
pub mod plot;
mod recorder;
pub mod report;
pub mod samples;
pub mod sampling;
pub mod session;
pub mod start;
pub mod watcher;
pub mod weights;

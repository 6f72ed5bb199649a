//! Run folders: opening one, starting or resuming its training, and writing its pictures and report.
//! The command, a server or your own program calls [`session::train`]. Only this crate knows the files of a run folder.

#[cfg(test)]
use framework_dylib as _;

pub mod binding;
pub mod document;
pub mod environment;
pub mod evaluation;
mod evaluator;
pub mod folder;
pub mod frozen;
pub mod labels;
pub mod npz;
pub mod page;
pub mod parts;
pub mod picture;
pub mod plane;
mod recorder;
pub mod report;
pub mod restored;
pub mod samples;
pub mod session;
pub mod start;
pub mod watcher;
pub mod weights;

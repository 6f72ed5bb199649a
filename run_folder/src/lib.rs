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
mod lettering;
pub mod nearest_file;
pub mod npz;
pub mod opened;
pub mod page;
pub mod parts;
pub mod picture;
pub mod plane;
mod recorder;
pub mod report;
pub mod restored;
pub mod sample_record;
pub mod samples;
pub mod sampling;
pub mod session;
pub mod start;
pub mod watcher;
pub mod weights;

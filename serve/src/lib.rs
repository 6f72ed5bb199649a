//! A web server for runs: a page to play with samples and to follow a training, and the HTTP interface that it uses.
//! The command `serve` calls [`serve`]. The files of the page are in `assets`, without a build step.

#[cfg(test)]
use framework_dylib as _;

mod assets;
mod catalog;
mod describe;
mod events;
mod guard;
mod limits;
mod openapi;
mod progress;
mod queue;
mod refusal;
mod request;
mod routes;
mod server;

pub use server::serve;

use framework::burn::tensor::Device;
use std::path::PathBuf;

/// What the server serves, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Run folders and checkpoints.
    pub runs: Vec<PathBuf>,
    /// Address or name to listen on.
    pub host: String,
    /// Port to listen on; 0 = one that the system chooses.
    pub port: u16,
    /// Further host names that clients may use.
    pub names: Vec<String>,
    /// Device that samples.
    pub device: Device,
}

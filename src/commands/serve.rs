//! `serve`: serves runs as a page and over HTTP, until a signal ends the process.

use crate::arguments::ServeOptions;
use crate::{Outcome, console, device, system};
use serve::Options;
use std::net::SocketAddr;

/// Serves runs and checkpoints.
pub fn serve(options: &ServeOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    // Before any thread starts, because threads inherit the priority.
    system::lower_priority();
    let options = Options {
        runs: options.runs.clone(),
        host: options.host.clone(),
        port: options.port,
        names: options.names.clone(),
        device,
    };
    serve::serve(&options, &mut |address: SocketAddr| {
        console::report(&format!("http://{address}"));
        if !address.ip().is_loopback() {
            console::say("warning: other machines can connect, and anyone who can connect may sample");
        }
    })
}

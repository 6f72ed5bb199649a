//! The command line: `unguided train pipeline.json` and the other commands.
//!
//! Your own binary with your own plugins:
//!
//! ```no_run
//! // use my_plugins as _;
//! fn main() -> std::process::ExitCode {
//!     unguided::main()
//! }
//! ```

mod arguments;
mod commands;
mod consent;
mod console;
mod device;
mod libraries;
mod linked;
mod outputs;
mod plugin;
mod signals;
mod system;

use arguments::{Arguments, Command};
use clap::{CommandFactory, Parser};
use framework::error::{Error, Problem};
use std::ffi::OsString;
use std::process::ExitCode;

/// The result of a command.
pub type Outcome = Result<(), Error>;

/// Runs one command. `arguments` starts with the name of the program. Arguments that clap cannot parse end the process.
///
/// # Errors
/// If the input is wrong or the command fails.
pub fn execute(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Outcome {
    let Arguments { command, plugins, trust_plugins } = Arguments::parse_from(arguments);
    if trust_plugins && command.document().is_none() {
        return Err(Error::from(
            Problem::new("--trust-plugins", "the option has no effect: this command reads no document")
                .fix("name the libraries with --plugin-dir"),
        ));
    }
    if !matches!(command, Command::Plugin { .. } | Command::Doctor) {
        libraries::load(&plugins, command.document(), trust_plugins)?;
    }
    // Commands that load weights call `keep_pages` once the weights are in place.
    allocator::return_pages();
    match command {
        Command::Train(options) => commands::train::train(&options),
        Command::Sample(options) => commands::sample::sample(&options),
        Command::Check(options) => commands::inspect::check(&options),
        Command::Schema { markdown: true } => commands::reference::markdown(),
        Command::Schema { markdown: false } => commands::inspect::schema(),
        Command::List => commands::inspect::list(),
        Command::Forward(options) => commands::network_file::forward(&options),
        Command::Convert(options) => commands::network_file::convert(&options),
        Command::Encode(options) => commands::encode::encode(&options),
        Command::Verify(options) => commands::verify::verify(&options),
        Command::Serve(options) => commands::serve::serve(&options),
        Command::Doctor => commands::doctor::doctor(&plugins),
        Command::Plugin { command } => plugin::run(&command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "unguided", &mut script);
            console::print(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

/// Runs the command given on this process's command line.
pub fn main() -> ExitCode {
    signals::handle();
    match execute(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        // The command has already said where it stopped.
        Err(error @ Error::Interrupted) => ExitCode::from(error.exit_code()),
        Err(error) if console::is_closed_output(&error) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(&format!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

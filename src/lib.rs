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
mod export;
mod generator;
mod help;
mod init;
mod job;
mod libraries;
mod linked;
mod memory;
mod outputs;
mod plugin;
mod self_test;
mod signals;
mod system;

use arguments::{Arguments, Command};
use framework::error::{Error, Problem};
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

/// The result of a command.
pub type Outcome = Result<(), Error>;

/// Runs one command. `arguments` starts with the name of the program. Arguments that clap cannot parse end the process.
///
/// # Errors
/// If the input is wrong or the command fails.
pub fn execute(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Outcome {
    let Arguments { command, plugins, trust_plugins, quiet, verbose } = help::parse(arguments);
    console::set_detail(quiet, verbose);
    if trust_plugins && command.document().is_none() {
        return Err(Error::from(
            Problem::new("--trust-plugins", "the option has no effect: this command reads no document")
                .fix("name the libraries with --plugin-dir"),
        ));
    }
    if !matches!(command, Command::Train(_)) {
        job::refuse_several(command.name())?;
    }
    if !matches!(command, Command::Plugin { .. } | Command::Doctor | Command::Devices) {
        libraries::load(&plugins, command.document(), trust_plugins)?;
    }
    // Commands that load weights call `keep_pages` once the weights are in place.
    allocator::return_pages();
    match command {
        Command::Init(options) => commands::init::init(&options),
        Command::Adapt(options) => commands::adapt::adapt(&options),
        Command::Train(options) => commands::train::train(&options),
        Command::Sample(options) => commands::sample::sample(&options),
        Command::Evaluate(options) => commands::evaluate::evaluate(&options),
        Command::Compare(options) => commands::compare::compare(&options),
        Command::Check(options) => commands::check::check(&options),
        Command::Schema { markdown: true } => commands::reference::markdown(),
        Command::Schema { markdown: false } => commands::inspect::schema(),
        Command::List { pairs: true, .. } => commands::pairs::list(),
        Command::List { json, .. } => commands::inspect::list(json),
        Command::Cost(options) => commands::cost::cost(&options, &plugins),
        Command::Forward(options) => commands::network_file::forward(&options),
        Command::Convert(options) => commands::network_file::convert(&options),
        Command::Plane(options) => commands::plane::plane(&options),
        Command::Export(options) => export::export(&options),
        Command::Encode(options) => commands::encode::encode(&options),
        Command::Verify(options) => commands::verify::verify(&options),
        Command::Serve(options) => commands::serve::serve(&options),
        Command::Doctor => commands::doctor::doctor(&plugins),
        Command::Devices => commands::devices::devices(),
        Command::Plugin { command } => plugin::run(&command),
        Command::Man { folder } => commands::man::man(&folder),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut help::command(), "unguided", &mut script);
            console::print(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

/// Runs the command given on this process's command line.
pub fn main() -> ExitCode {
    signals::handle();
    let start = Instant::now();
    let outcome = execute(std::env::args_os());
    if console::is_verbose() {
        console::say(&format!("the command took {:.1} s", start.elapsed().as_secs_f64()));
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The command has already said where it stopped.
        Err(error @ Error::Interrupted) => ExitCode::from(error.exit_code()),
        Err(error) if console::is_closed_output(&error) => ExitCode::SUCCESS,
        Err(error) => {
            console::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

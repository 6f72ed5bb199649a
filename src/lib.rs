//! The command line: `unguided train pipeline.json` and its companions.
//!
//! A binary of your own, with plugins of your own:
//!
//! ```no_run
//! // use my_plugins as _;
//! fn main() -> std::process::ExitCode {
//!     unguided::main()
//! }
//! ```

mod arguments;
mod compile;
mod document;
mod encode;
mod foreign;
mod inspect;
mod labels;
mod libraries;
mod linked;
mod plugin;
mod report;
mod run;
mod sample;
mod scaffold;
mod start;
mod tokenize;
mod train;
mod verify;

use arguments::{Arguments, Command};
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::process::ExitCode;

/// How a command failed.
#[derive(Debug)]
pub enum Failure {
    /// What the user wrote is wrong: exit code 2. The text says what, where, what is accepted.
    Input(String),
    /// The command failed: exit code 1.
    Run(String),
}

impl From<framework::error::Error> for Failure {
    fn from(error: framework::error::Error) -> Self {
        match error {
            framework::error::Error::Document(problems) => {
                let all: Vec<String> = problems.iter().map(|p| p.display("the document").to_string()).collect();
                Self::Input(all.join("\n"))
            }
            other => Self::Run(format!("error: {other}")),
        }
    }
}

/// The result of a command.
pub type Outcome = Result<(), Failure>;

/// Runs one command: its arguments, behind the program's name. Arguments that are no command end the process.
///
/// # Errors
/// If the input is wrong or the command fails.
pub fn execute(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Outcome {
    let Arguments { command, plugins } = Arguments::parse_from(arguments);
    if !matches!(command, Command::Plugin { .. }) {
        libraries::load(&plugins, command.document())?;
    }
    // Until its weights are loaded, if it has any.
    allocator::return_pages();
    match command {
        Command::Train(options) => train::train(&options),
        Command::Sample(options) => sample::sample(&options),
        Command::Check(options) => inspect::check(&options),
        Command::Schema => inspect::schema(),
        Command::List => inspect::list(),
        Command::Forward(options) => foreign::forward(&options),
        Command::Convert(options) => foreign::convert(&options),
        Command::Encode(options) => encode::encode(&options),
        Command::Verify(options) => verify::verify(&options),
        Command::Plugin { command } => plugin::run(&command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "unguided", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match execute(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Input(text)) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
        Err(Failure::Run(text)) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

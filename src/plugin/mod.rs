//! `plugin`: begin, build, test and inspect plugins.

use crate::arguments::PluginCommand;
use crate::{Failure, Outcome, compile, scaffold};
use registry::library::{self, Library, Refused};
use std::path::Path;

/// Runs one of its commands.
pub fn run(command: &PluginCommand) -> Outcome {
    match command {
        PluginCommand::New { name, kind } => scaffold::new(name, *kind),
        PluginCommand::Build { folder } => compile::build(folder),
        PluginCommand::Test { folder } => compile::test(folder),
        PluginCommand::Inspect { file } => inspect(file),
        PluginCommand::Describe { file } => describe(file),
    }
}

/// A refused library is wrong input.
pub fn refused(refused: Refused) -> Failure {
    Failure::Input(refused.to_string())
}

/// What the file says, and whether it fits.
fn inspect(file: &Path) -> Outcome {
    let library = Library::read(file).map_err(refused)?;
    println!("library      {}", file.display());
    for (i, part) in library.build_id.split("; ").enumerate() {
        println!("{:<12} {part}", if i == 0 { "built with" } else { "" });
    }
    let fits = library.check();
    println!(
        "{:<12} {}",
        "fits",
        if fits.is_ok() { "this installation" } else { "another build than this installation" }
    );
    for card in &library.plugins {
        println!("\n{:<12} {}", card.kind.name(), card.name);
        println!("{:<12} {}", "crate", card.origin);
        println!("{:<12} {}", "papers", if card.papers.is_empty() { "none".into() } else { card.papers.join(", ") });
        let schema = library.schema(card).map(serde_json::to_string_pretty);
        let schema = schema.transpose().map_err(|e| Failure::Run(e.to_string()))?;
        println!("{:<12} {}", "schema", schema.unwrap_or_else(|| "none".into()));
    }
    Ok(())
}

/// Prints the schemas of a library that `plugin build` is about to finish.
fn describe(file: &Path) -> Outcome {
    let schemas = library::describe(file).map_err(refused)?;
    println!("{}", serde_json::Value::from(schemas));
    Ok(())
}

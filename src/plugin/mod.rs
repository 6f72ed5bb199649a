//! `unguided plugin`: creates, builds, tests and inspects plugins. `templates/` contains the source of a new plugin.
//! You can change the templates alone. A test builds each of them.

mod build;
mod new;

use crate::arguments::PluginCommand;
use crate::{Outcome, console};
use framework::error::Error;
use registry::library::{self, Library};
use std::path::Path;

/// Runs one `plugin` command.
pub fn run(command: &PluginCommand) -> Outcome {
    match command {
        PluginCommand::New { name, kind } => new::new(name, *kind),
        PluginCommand::Build { folder } => build::build(folder),
        PluginCommand::Test { folder } => build::test(folder),
        PluginCommand::Inspect { file } => inspect(file),
        PluginCommand::Describe { file } => describe(file),
    }
}

/// Prints the metadata of a library and whether this installation can load it.
fn inspect(file: &Path) -> Outcome {
    let library = Library::read(file)?;
    console::print(&format!("library      {}", file.display()))?;
    for (i, part) in library.build_id.split("; ").enumerate() {
        console::print(&format!("{:<12} {part}", if i == 0 { "built with" } else { "" }))?;
    }
    let fits = if library.check().is_ok() { "this installation" } else { "another build, not this installation" };
    console::print(&format!("{:<12} {fits}", "fits"))?;
    for card in &library.plugins {
        let papers = if card.papers.is_empty() { "none".into() } else { card.papers.join(", ") };
        let schema = library.schema(card).map(serde_json::to_string_pretty);
        let schema = schema.transpose().map_err(|e| Error::Run(e.to_string()))?.unwrap_or_else(|| "none".into());
        console::print(&format!("\n{:<12} {}", card.kind.name(), card.name))?;
        for (what, value) in [("crate", &card.origin), ("papers", &papers), ("schema", &schema)] {
            console::print(&format!("{what:<12} {value}"))?;
        }
    }
    Ok(())
}

/// Prints the schemas of a compiled library as JSON. `plugin build` reads them in another process.
fn describe(file: &Path) -> Outcome {
    let schemas = library::describe(file)?;
    console::print(&serde_json::Value::from(schemas).to_string())
}

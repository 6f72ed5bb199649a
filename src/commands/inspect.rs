//! `schema` and `list`: print the schema, or the plugins.

use crate::{Outcome, console};
use framework::error::Error;
use framework::plugin::Kind;
use framework::process::Family;
use registry::{Registry, library};
use serde_json::json;

/// Prints the JSON Schema.
pub fn schema() -> Outcome {
    let text = serde_json::to_string_pretty(Registry::linked().schema());
    console::print(&text.map_err(|e| Error::Run(e.to_string()))?)
}

/// Returns the pairs of an objective and a family that no paper defines, and why.
fn extensions(registry: &Registry) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut found = Vec::new();
    for entry in registry.entries().iter().filter(|entry| entry.kind == Kind::Objective) {
        let Ok(objective) = registry.objective(json!({ "type": entry.name })) else { continue };
        let pairs = Family::ALL.into_iter().filter_map(|family| Some((family.name(), objective.extension(family)?)));
        found.extend(pairs.map(|(family, why)| (entry.name, family, why)));
    }
    found
}

/// Prints all plugins, and the pairs that no paper defines.
pub fn list(as_json: bool) -> Outcome {
    let registry = Registry::linked();
    let from = |entry: &framework::plugin::Entry| {
        let library = library::origin(entry.kind, entry.name).map(|path| path.display().to_string());
        library.unwrap_or_else(|| entry.origin.to_string())
    };
    if as_json {
        let plugins = registry.entries().iter().map(|entry| {
            json!({ "kind": entry.kind.name(), "type": entry.name, "from": from(entry), "papers": entry.papers })
        });
        let extensions = extensions(&registry)
            .into_iter()
            .map(|(objective, process, why)| json!({ "objective": objective, "process": process, "why": why }));
        return console::json(&json!({
            "plugins": plugins.collect::<Vec<_>>(),
            "loads_libraries": cfg!(feature = "shared"),
            "extensions": extensions.collect::<Vec<_>>(),
        }));
    }
    let row = |kind: &str, name: &str, from: &str, papers: &str| {
        console::print(format!("{kind:<12} {name:<18} {from:<20} {papers}").trim_end())
    };
    row("kind", "type", "from", "papers")?;
    for entry in registry.entries() {
        row(entry.kind.name(), entry.name, &from(entry), &entry.papers.join(", "))?;
    }
    if !cfg!(feature = "shared") {
        console::print("\nThis build has no feature `shared`: it cannot load plugin libraries.")?;
    }
    console::print("\nextensions that the papers do not define")?;
    for (objective, family, why) in extensions(&registry) {
        console::print(&format!("{objective:<12} on {family:<15} {why}"))?;
    }
    Ok(())
}

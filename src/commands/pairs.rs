//! `list --pairs`: prints every pair of backbone and objective, with its paper, its example and its optimum.

use crate::{Outcome, console};
use framework::plugin::{BackbonePlugin, Kind};
use registry::Registry;

/// Backbones whose pairs have an example. The examples are in [`EXAMPLES`].
const BACKBONES: [&str; 6] = ["dit", "sit", "var", "llamagen", "mar", "sd15"];
/// Objectives whose pairs have an example.
const OBJECTIVES: [&str; 5] = ["cfg", "gft", "mg", "distill", "cca"];
/// Folder of the examples, one per pair.
const EXAMPLES: &str = "examples/pipelines/pairs";

/// Pairs for which a paper reports results, with the paper. Every other pair is an extension.
const PUBLISHED: [(&str, &str, &str); 17] = [
    ("dit", "cfg", "arXiv:2212.09748"),
    ("dit", "gft", "arXiv:2501.15420"),
    ("dit", "mg", "arXiv:2502.12154"),
    ("dit", "distill", "arXiv:2501.15420"),
    ("sit", "cfg", "arXiv:2401.08740"),
    ("sit", "mg", "arXiv:2502.12154"),
    ("var", "cfg", "arXiv:2404.02905"),
    ("var", "gft", "arXiv:2501.15420"),
    ("var", "cca", "arXiv:2410.09347"),
    ("llamagen", "cfg", "arXiv:2406.06525"),
    ("llamagen", "gft", "arXiv:2501.15420"),
    ("llamagen", "cca", "arXiv:2410.09347"),
    ("mar", "cfg", "arXiv:2406.11838"),
    ("mar", "gft", "arXiv:2501.15420"),
    ("sd15", "cfg", "arXiv:2112.10752"),
    ("sd15", "gft", "arXiv:2501.15420"),
    ("sd15", "distill", "arXiv:2210.03142"),
];

/// Prints one line per pair of the registered backbones and objectives.
pub fn list() -> Outcome {
    let registry = Registry::linked();
    let names = |kind: Kind, first: &[&'static str]| -> Vec<&'static str> {
        let all = registry.entries().iter().filter(|entry| entry.kind == kind).map(|entry| entry.name);
        first.iter().copied().chain(all.filter(|name| !first.contains(name))).collect()
    };
    let row = |cells: [&str; 5]| {
        let [backbone, objective, source, document, optimum] = cells;
        console::print(&format!("{backbone:<10} {objective:<10} {source:<17} {document:<48} {optimum}"))
    };
    row(["backbone", "objective", "published in", "document", "optimum"])?;
    for backbone in names(Kind::Backbone, &BACKBONES) {
        let part = registry.part::<Box<dyn BackbonePlugin>>(Kind::Backbone, serde_json::json!({ "type": backbone }));
        let family = part.ok().map(|part| part.process().family());
        for objective in names(Kind::Objective, &OBJECTIVES) {
            let stated = registry.objective(serde_json::json!({ "type": objective })).ok();
            let optimum = match (&stated, family) {
                (Some(objective), Some(family)) => objective.optimum(family).statement(),
                _ => "depends on required settings".to_string(),
            };
            let paper = PUBLISHED.iter().find(|(one, other, _)| (*one, *other) == (backbone, objective));
            let has_example = BACKBONES.contains(&backbone) && OBJECTIVES.contains(&objective);
            let document =
                if has_example { format!("{EXAMPLES}/{backbone}-{objective}.json") } else { "-".to_string() };
            row([backbone, objective, paper.map_or("extension", |(_, _, paper)| paper), &document, &optimum])?;
        }
    }
    Ok(())
}

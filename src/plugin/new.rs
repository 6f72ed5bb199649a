//! `plugin new`: creates the crate of a new plugin.

use crate::arguments::PluginKind;
use crate::{Outcome, console};
use framework::error::{Error, Problem};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Source folder of the framework. Editors resolve names there.
const FRAMEWORK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/framework");
const PROOFS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proofs");

/// Reserved words: Rust keywords, and names of crates that every plugin uses.
const TAKEN: [&str; 12] =
    ["as", "core", "crate", "framework", "fn", "impl", "registry", "self", "std", "test", "type", "unguided"];

/// Writes the crate of a plugin to a new folder.
pub fn new(folder: &Path, kind: PluginKind) -> Outcome {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !plain || !name.starts_with(|c: char| c.is_ascii_lowercase()) || TAKEN.contains(&name) {
        return Err(Error::from(
            Problem::new("", format!("a plugin cannot be called \"{name}\""))
                .accepts("lower-case letters, digits and underscores, starting with a letter; no reserved word"),
        ));
    }
    if folder.exists() {
        return Err(Error::from(
            Problem::new("", format!("{} already exists", folder.display())).fix("choose another name, or delete it"),
        ));
    }
    let fill = |template: &str| template.replace("my_plugin", name).replace("MyPlugin", &camel(name));
    let verify = match kind {
        PluginKind::Objective => "\n    unguided verify my_plugin --plugin-dir my_plugin/target   # checks its optimum",
        _ => "",
    };
    let readme = include_str!("templates/README.md").replace("KIND", word(kind)).replace("VERIFY", verify);
    let pipeline = serde_json::to_string_pretty(&pipeline(name, kind)).map_err(|e| Error::Run(e.to_string()))?;
    let files = [
        (
            "Cargo.toml",
            fill(include_str!("templates/Cargo.toml.txt")).replace("FRAMEWORK", FRAMEWORK).replace("PROOFS", PROOFS),
        ),
        ("src/lib.rs", fill(source(kind))),
        ("pipeline.json", pipeline + "\n"),
        ("README.md", fill(&readme)),
        // The framework's own lock file, so that editors resolve the versions that the framework was built with. They
        // then need no download.
        ("Cargo.lock", include_str!("../../Cargo.lock").to_string()),
        (".gitignore", "/target\n".to_string()),
    ];
    for (file, text) in files {
        let path = folder.join(file);
        let written = fs::create_dir_all(path.parent().unwrap_or(folder)).and_then(|()| fs::write(&path, text));
        written.map_err(|e| Error::Run(format!("{}: {e}", path.display())))?;
    }
    let folder = folder.display();
    console::report(&format!(
        "The plugin is {folder}/src/lib.rs. Next:\
         \n  unguided plugin build {folder}\n  unguided train {folder}/pipeline.json --trust-plugins"
    ));
    Ok(())
}

fn source(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Objective => include_str!("templates/objective.rs"),
        PluginKind::Backbone => include_str!("templates/backbone.rs"),
        PluginKind::Tokenizer => include_str!("templates/tokenizer.rs"),
        PluginKind::Sampler => include_str!("templates/sampler.rs"),
        PluginKind::Guidance => include_str!("templates/guidance.rs"),
        PluginKind::Dataset => include_str!("templates/dataset.rs"),
        PluginKind::Metric => include_str!("templates/metric.rs"),
    }
}

fn word(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Objective => "objective",
        PluginKind::Backbone => "backbone",
        PluginKind::Tokenizer => "tokenizer",
        PluginKind::Sampler => "sampler",
        PluginKind::Guidance => "guidance",
        PluginKind::Dataset => "dataset",
        PluginKind::Metric => "metric",
    }
}

/// Converts `my_loss` to `MyLoss`.
fn camel(name: &str) -> String {
    name.split('_').map(|word| word[..word.len().min(1)].to_uppercase() + word.get(1..).unwrap_or_default()).collect()
}

/// Returns a pipeline that uses the plugin and trains in seconds.
fn pipeline(name: &str, kind: PluginKind) -> Value {
    let mut document = json!({
        "version": 1,
        "about": format!("Uses the plugin {name}. Build the plugin, then run: unguided train {name}/pipeline.json --trust-plugins"),
        "plugins": [format!("target/{name}{}", std::env::consts::DLL_SUFFIX)],
        "data": { "type": "digits" },
        "tokenizer": { "type": "pixels" },
        "backbone": {
            "type": "dit", "hidden_size": 64, "depth": 2, "num_heads": 4, "patch_size": 2,
            "input_size": 8, "in_channels": 1, "num_classes": 10, "embedding_init": "unit_variance"
        },
        "objective": { "type": "cfg" },
        "train": {
            "steps": 200, "batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 20,
            "clip_norm": 1.0, "ema": { "decay": 0.99, "warmup": true }, "log_every": 20, "save_every": 100,
            "metric_samples": 100
        },
        "sampler": { "type": "ddim", "steps": 10 },
        "guidance": { "type": "cfg", "scale": 2.0 },
        "metrics": [{ "type": "class_accuracy" }]
    });
    match kind {
        PluginKind::Objective => {
            document["objective"] = json!({ "type": name });
            document["guidance"] = json!({ "type": "none" });
        }
        PluginKind::Backbone => {
            document["backbone"] =
                json!({ "type": name, "hidden_size": 256, "input_size": 8, "in_channels": 1, "num_classes": 10 });
        }
        PluginKind::Tokenizer => document["tokenizer"] = json!({ "type": name }),
        PluginKind::Sampler => document["sampler"] = json!({ "type": name, "steps": 10 }),
        PluginKind::Guidance => document["guidance"] = json!({ "type": name, "scale": 3.0 }),
        PluginKind::Dataset => {
            document["data"] = json!({ "type": name });
            document["backbone"]["num_classes"] = json!(2);
        }
        PluginKind::Metric => document["metrics"] = json!([{ "type": name }]),
    }
    document
}

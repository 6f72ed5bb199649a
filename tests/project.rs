//! Checks of the project as a whole: the committed schema, the list of linked plugins, the examples and the README.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use unguided as _;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn schema() -> String {
    // Ask the binary for its registry. The test process links only the plugins that it names.
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_unguided")).arg("schema").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// To rewrite the committed file, run `UPDATE_SCHEMA=1 cargo test --release --workspace`.
#[test]
fn the_committed_schema_is_the_registrys() {
    let path = root().join("pipeline.schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, schema()).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == schema(), "run the tests once with UPDATE_SCHEMA=1");
}

/// Returns the path of every required field whose schema has a default.
fn contradictions(schema: &Value, at: &str, found: &mut Vec<String>) {
    match schema {
        Value::Object(members) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let with_default = required.filter(|name| schema["properties"][*name].get("default").is_some());
            found.extend(with_default.map(|name| format!("{at}: {name}")));
            members.iter().for_each(|(key, value)| contradictions(value, &format!("{at}/{key}"), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| contradictions(value, &format!("{at}/{i}"), found));
        }
        _ => {}
    }
}

#[test]
fn required_fields_have_no_default() {
    let find = |schema: &Value| {
        let mut found = Vec::new();
        contradictions(schema, "", &mut found);
        found
    };
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    assert_eq!(find(&schema), Vec::<String>::new());
    assert_eq!(schema["$defs"]["train"]["required"], json!(["steps", "batch_size", "learning_rate"]));
    // The search itself finds a contradiction.
    let wrong = json!({ "$defs": { "a": { "required": ["b"], "properties": { "b": { "default": 1 } } } } });
    assert_eq!(find(&wrong), ["/$defs/a: b"]);
}

#[test]
fn the_list_of_linked_plugins_names_every_plugin_crate() {
    let list = fs::read_to_string(root().join("src/linked.rs")).unwrap();
    let mut crates: Vec<PathBuf> = Vec::new();
    for folder in ["plugins", "plugins/backbones"] {
        crates.extend(fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path().join("Cargo.toml")));
    }
    crates.retain(|path| path.exists());
    assert!(crates.len() >= 7);
    for manifest in crates {
        let text = fs::read_to_string(&manifest).unwrap();
        let name = text.lines().find_map(|line| line.strip_prefix("name = \"")).unwrap().trim_end_matches('"');
        assert!(list.contains(&format!("use {name} as _;")), "src/linked.rs does not name {name}");
    }
}

#[test]
fn every_example_is_valid_and_has_a_tiny_variant() {
    let folder = root().join("examples/pipelines");
    let mut found = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_unguided")).arg("check").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if !stem.ends_with("-tiny") {
            assert!(folder.join(format!("{stem}-tiny.json")).exists(), "{stem} has no tiny variant");
            found += 1;
        }
    }
    assert!(found >= 2);
}

#[test]
fn the_document_in_the_readme_is_the_example() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let block = readme.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let shown: serde_json::Value = serde_json::from_str(block).unwrap();
    let example = fs::read_to_string(root().join("examples/pipelines/digits-dit-gft.json")).unwrap();
    let mut example: serde_json::Value = serde_json::from_str(&example).unwrap();
    for note in ["$schema", "about"] {
        example.as_object_mut().unwrap().remove(note);
    }
    assert_eq!(shown, example);
}

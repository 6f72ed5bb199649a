//! A plugin that is linked into a program, here this test. The same source is also built as a library. Linked or
//! loaded, the plugin trains the same bits.

use framework::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../examples/third_party_objective/src/lib.rs"]
mod third_party_objective;

/// Builds the same objective as a library with its own name. Returns the library's path.
fn loaded(folder: &Path) -> PathBuf {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/third_party_objective");
    let (crate_of, read) = (folder.join("loaded"), |file: &str| fs::read_to_string(example.join(file)).unwrap());
    fs::create_dir_all(crate_of.join("src")).unwrap();
    fs::write(crate_of.join("Cargo.toml"), read("Cargo.toml")).unwrap();
    fs::write(crate_of.join("src/lib.rs"), read("src/lib.rs").replace("\"gft_zero\"", "\"gft_zero_loaded\"")).unwrap();
    let built = Command::new(env!("CARGO_BIN_EXE_unguided")).args(["plugin", "build"]).arg(&crate_of).status();
    assert!(built.unwrap().success());
    crate_of.join("target/third_party_objective.so")
}

fn train(folder: &Path, objective: &str, more: &[&str]) -> Vec<(String, Vec<u8>)> {
    let tiny = fs::read_to_string("examples/pipelines/digits-dit-gft-tiny.json").unwrap();
    let (document, run) = (folder.join(format!("{objective}.json")), folder.join(objective));
    fs::write(&document, tiny.replace("\"type\": \"gft\"", &format!("\"type\": \"{objective}\""))).unwrap();
    let arguments = ["unguided", "train", document.to_str().unwrap(), "--run", run.to_str().unwrap()];
    unguided::execute(arguments.iter().chain(more)).unwrap();
    let bytes = fs::read(run.join("checkpoints/step-000000020.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    all.retain(|(name, _)| name != "optimizer");
    all.sort();
    all
}

#[test]
fn a_plugin_is_the_same_linked_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let library = loaded(folder.path());
    let of_loaded = train(folder.path(), "gft_zero_loaded", &["--plugin-dir", library.to_str().unwrap()]);
    // Weights and averages after 20 steps: a one-bit difference in one gradient would show here.
    assert!(train(folder.path(), "gft_zero", &[]) == of_loaded);
    unguided::execute(["unguided", "verify", "gft_zero", "gft_zero_loaded", "--worlds", "10"]).unwrap();

    // Both names are taken now, so another library with the same name is refused.
    let late = folder.path().join("late.so");
    fs::copy(&library, &late).unwrap();
    let refused = unguided::execute(["unguided", "list", "--plugin-dir", late.to_str().unwrap()]);
    assert!(matches!(refused, Err(error @ Error::Input(_)) if error.to_string().contains("is taken by")));
}

//! Computes the build id: everything that a plugin library and its host's framework must have in common.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let mut source = vec![here.join("Cargo.toml"), here.join("build.rs")];
    files(&here.join("src"), &mut source);
    source.sort();
    let lock = lock(&here);
    for path in [here.join("src"), here.join("Cargo.toml"), here.join("build.rs")].iter().chain(&lock) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let parts = [
        ("rustc", rustc()),
        ("target", variable("TARGET")),
        ("framework", variable("CARGO_PKG_VERSION")),
        ("features", features()),
        ("processor", variable("CARGO_CFG_TARGET_FEATURE")),
        ("dependencies", hash(lock.as_slice())),
        ("source", hash(&source)),
    ];
    let id: Vec<String> = parts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    println!("cargo::rustc-env=UNGUIDED_BUILD_ID={}", id.join("; "));
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// Returns the compiler's version text. Libraries of two different compilers are never compatible.
fn rustc() -> String {
    let output = Command::new(variable("RUSTC")).arg("-V").output().expect("the compiler runs");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

fn features() -> String {
    let mut names: Vec<String> = env::vars()
        .filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase()))
        .chain(env::var_os("CARGO_CFG_DEBUG_ASSERTIONS").map(|_| "debug assertions".to_string()))
        .collect();
    names.sort();
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}

/// Returns the lock file of the workspace that is built: the nearest one above the build folder or above the
/// framework.
fn lock(here: &Path) -> Option<PathBuf> {
    let built = PathBuf::from(variable("OUT_DIR"));
    built.ancestors().chain(here.ancestors()).map(|folder| folder.join("Cargo.lock")).find(|path| path.exists())
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the source is there").flatten() {
        let path = entry.path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn hash(files: &[PathBuf]) -> String {
    let mut hasher = DefaultHasher::new();
    for path in files {
        path.file_name().hash(&mut hasher);
        fs::read(path).expect("the file is there").hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

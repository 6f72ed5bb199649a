//! `plugin build` and `plugin test`: compile a plugin's crate against the compiled artifacts of this installation.
//!
//! The crate's manifest names the framework by path, so that editors and linked builds find it. This module gives cargo
//! a copy of the manifest without the framework, and passes the shared framework to rustc instead. A second copy of the
//! framework, even from the same source, would have other symbols.

use crate::{Outcome, console};
use framework::error::{Error, Problem, Result};
use framework::plugin::BUILD_ID;
use registry::library::{self, FRAMEWORK, Library};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf, absolute};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};
use toml::{Table, Value as Toml};

/// Crates that the framework re-exports. A second copy of one would define traits of its own, which the framework does
/// not know.
const OURS: [&str; 6] = ["burn", "inventory", "schemars", "serde", "serde_json", "typetag"];

/// Builds the library of the plugin in `folder`.
pub fn build(folder: &Path) -> Outcome {
    let start = Instant::now();
    let plugin = Plugin::read(folder)?;
    let compiled = plugin.cargo(&["--release", "--crate-type", "cdylib"])?;
    let schemas = describe(&compiled)?;
    let finished = plugin.folder.join("target").join(format!("{}{}", plugin.name, env::consts::DLL_SUFFIX));
    let failed = |e: std::io::Error| Error::Run(format!("{}: {e}", finished.display()));
    library::seal(&compiled, &finished, &plugin.folder, schemas).map_err(failed)?;
    let library = Library::read(&finished)?;
    library.check()?;
    let kilobytes = fs::metadata(&finished).map_err(failed)?.len().div_ceil(1000);
    console::report(&format!(
        "{}  {kilobytes} kB, built in {:.1} s",
        finished.display(),
        start.elapsed().as_secs_f64()
    ));
    for card in &library.plugins {
        console::report(&format!("  {} \"{}\"", card.kind.name(), card.name));
    }
    Ok(())
}

/// Builds and runs the tests of the plugin in `folder`.
pub fn test(folder: &Path) -> Outcome {
    let plugin = Plugin::read(folder)?;
    let tests = plugin.cargo(&["--profile", "test"])?;
    let mut paths = vec![plugin.artifacts.clone(), standard_library()?];
    paths.extend(env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap_or_default()));
    let paths = env::join_paths(paths).map_err(|e| Error::Run(format!("{e}")))?;
    let status = Command::new(&tests).env("LD_LIBRARY_PATH", paths).current_dir(&plugin.folder).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Error::Run(format!("tests of {} failed", plugin.folder.display()))),
        Err(e) => Err(Error::Run(format!("{}: {e}", tests.display()))),
    }
}

/// A plugin's crate, and the artifacts it is compiled against.
struct Plugin {
    folder: PathBuf,
    /// Name of the library.
    name: String,
    /// Manifest without the framework.
    manifest: Table,
    /// Folder of this installation's artifacts.
    artifacts: PathBuf,
}

impl Plugin {
    fn read(folder: &Path) -> Result<Self> {
        let artifacts = artifacts()?;
        same_compiler()?;
        let folder =
            absolute(folder).map_err(|e| Error::from(Problem::new("", format!("{}: {e}", folder.display()))))?;
        let path = folder.join("Cargo.toml");
        let text = fs::read_to_string(&path).map_err(|e| {
            let fix = "name the folder of a plugin's crate, such as one from `unguided plugin new`";
            Error::from(Problem::new(path.display().to_string(), format!("unreadable manifest: {e}")).fix(fix))
        })?;
        let given: Table =
            text.parse().map_err(|e| Error::from(Problem::new(path.display().to_string(), format!("{e}"))))?;
        let (name, manifest) = standalone(&given, &folder)
            .map_err(|(what, fix)| Error::from(Problem::new(path.display().to_string(), what).fix(fix)))?;
        Ok(Self { folder, name, manifest, artifacts })
    }

    /// Runs `cargo rustc` on the library and returns the path of the compiled file. The compiler's messages go to the
    /// terminal.
    fn cargo(&self, options: &[&str]) -> Result<PathBuf> {
        let work = self.folder.join("target/plugin");
        let manifest = work.join("Cargo.toml");
        let failed = |e: std::io::Error| Error::Run(format!("{}: {e}", manifest.display()));
        fs::create_dir_all(&work).map_err(failed)?;
        let text = toml::to_string(&self.manifest).map_err(|e| Error::Run(format!("{e}")))?;
        fs::write(&manifest, text).map_err(failed)?;
        // One shared library contains both crates. Only a plugin's tests use `proofs`.
        let named = |name: &str| {
            let mut value = OsString::from(format!("{name}="));
            value.push(self.artifacts.join(FRAMEWORK));
            value
        };
        let mut dependencies = OsString::from("dependency=");
        dependencies.push(&self.artifacts);
        let output = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["rustc", "--lib", "--message-format=json-render-diagnostics", "--manifest-path"])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(work.join("target"))
            .args(options)
            .args(["--", "-C", "prefer-dynamic", "--extern"])
            .arg(named("framework"))
            .arg("--extern")
            .arg(named("proofs"))
            .arg("-L")
            .arg(dependencies)
            .current_dir(&self.folder)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| {
                Error::failed(
                    Problem::new("", format!("cannot start cargo: {e}")).fix("install Rust: https://rustup.rs"),
                )
            })?;
        if !output.status.success() {
            return Err(Error::Run(format!("{} failed to compile", self.folder.display())));
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let artifact = |line: &str| -> Option<PathBuf> {
            let message: Value = serde_json::from_str(line).ok()?;
            let ours = message["reason"] == "compiler-artifact" && message["target"]["name"] == self.name.as_str();
            let file = message["executable"].as_str().or_else(|| message["filenames"][0].as_str());
            file.filter(|_| ours).map(PathBuf::from)
        };
        messages.lines().rev().find_map(artifact).ok_or_else(|| Error::Run("cargo reported no library".into()))
    }
}

/// Derives a manifest that cargo can build without the framework. Returns the name of the library and the manifest.
///
/// # Errors
/// If `given` is not a plugin's manifest: what is wrong, and the fix.
fn standalone(given: &Table, folder: &Path) -> Result<(String, Table), (String, String)> {
    let table = |name: &str| given.get(name).and_then(Toml::as_table).cloned().unwrap_or_default();
    let (mut package, mut library) = (table("package"), table("lib"));
    let wrong = |what: &str| (what.to_string(), "compare with a crate from `unguided plugin new`".to_string());
    let name = package.get("name").and_then(Toml::as_str).ok_or_else(|| wrong("the manifest has no package name"))?;
    let name = library.get("name").and_then(Toml::as_str).unwrap_or(name).replace('-', "_");
    let text = |path: PathBuf| Toml::from(path.display().to_string());
    let source = library.get("path").and_then(Toml::as_str).unwrap_or("src/lib.rs");
    library.insert("path".into(), text(folder.join(source)));
    library.insert("name".into(), name.clone().into());
    library.insert("crate-type".into(), vec!["cdylib"].into());
    let script = package.get("build").and_then(Toml::as_str).unwrap_or("build.rs");
    if folder.join(script).exists() {
        package.insert("build".into(), text(folder.join(script)));
    }
    let mut dependencies = table("dependencies");
    let mut tests = table("dev-dependencies");
    for dependencies in [&mut dependencies, &mut tests] {
        dependencies.retain(|name, _| !["framework", "proofs", "unguided"].contains(&name));
    }
    if let Some(ours) = OURS.iter().find(|name| dependencies.contains_key(**name)) {
        let what = format!("the crate depends on \"{ours}\", which the framework already provides");
        return Err((what, format!("remove the dependency and write `use framework::{ours};`")));
    }
    for dependency in dependencies.iter_mut().chain(tests.iter_mut()).filter_map(|(_, value)| value.as_table_mut()) {
        if let Some(path) = dependency.get("path").and_then(Toml::as_str).map(|path| folder.join(path)) {
            dependency.insert("path".into(), text(path));
        }
    }
    let mut manifest = Table::new();
    manifest.insert("package".into(), package.into());
    manifest.insert("lib".into(), library.into());
    manifest.insert("dependencies".into(), dependencies.into());
    manifest.insert("dev-dependencies".into(), tests.into());
    for name in ["features", "build-dependencies", "patch"] {
        given.get(name).map(|value| manifest.insert(name.into(), value.clone()));
    }
    manifest.insert("workspace".into(), Table::new().into());
    // A profile that differs from this installation's, so that rustc cannot confuse the plugin's dependencies with the
    // installation's crates of the same name.
    let profile: Table = "release = { opt-level = 3, debug = false, strip = true }".parse().expect("valid TOML");
    manifest.insert("profile".into(), profile.into());
    Ok((name, manifest))
}

/// Returns the folder that contains this installation's shared framework and the crates compiled with it.
///
/// # Errors
/// If this build has no shared framework, or its file is missing.
fn artifacts() -> Result<PathBuf> {
    let fix = "build the command with its default features: cargo build --release --workspace";
    if !cfg!(feature = "shared") {
        let what = "a build without feature `shared` cannot build plugin libraries";
        return Err(Error::from(Problem::new("", what).fix(fix)));
    }
    let program = env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let beside = program.parent().unwrap_or(Path::new(""));
    let mut folders =
        vec![beside.join("deps"), beside.to_path_buf(), beside.join("../lib/unguided"), beside.join("../lib")];
    // `cargo install` copies only the program, which then loads the framework from cargo's build folder.
    folders.extend(loaded().into_iter().flat_map(|folder| [folder.join("deps"), folder]));
    folders.retain(|folder| folder.join(FRAMEWORK).exists());
    if folders.is_empty() {
        let what = format!("{FRAMEWORK} is not next to {}", program.display());
        return Err(Error::from(Problem::new("", what).fix(fix)));
    }
    folders.into_iter().find(|folder| has_metadata(folder)).ok_or_else(|| {
        let what = "this installation loads plugin libraries, but has no compiled crates to build them against";
        Problem::new("", what)
            .fix("build the plugin with a command of the same version that was built from source")
            .into()
    })
}

/// Returns the folder from which this process loaded the shared framework, where the system tells.
fn loaded() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let file = maps
        .lines()
        .find_map(|line| Some(Path::new(&line[line.find('/')?..])).filter(|path| path.ends_with(FRAMEWORK)))?;
    Some(file.parent()?.to_path_buf())
}

/// Returns whether a folder has the metadata of the compiled crates, which rustc reads.
fn has_metadata(folder: &Path) -> bool {
    let is_metadata =
        |name: &str| name.starts_with("libframework-") && (name.ends_with(".rmeta") || name.ends_with(".rlib"));
    fs::read_dir(folder).is_ok_and(|files| files.flatten().any(|file| is_metadata(&file.file_name().to_string_lossy())))
}

/// Checks that the installed rustc is the compiler that built this installation.
///
/// # Errors
/// If it is another one, or none is installed.
fn same_compiler() -> Outcome {
    let compiler = env::var_os("RUSTC").unwrap_or("rustc".into());
    let found = Command::new(compiler).arg("-V").output().map(|output| output.stdout).unwrap_or_default();
    let found = String::from_utf8_lossy(&found).trim().to_string();
    let ours = BUILD_ID.split("; ").find_map(|part| part.strip_prefix("rustc: ")).unwrap_or_default();
    if found == ours {
        return Ok(());
    }
    let found = if found.is_empty() { "none" } else { &found };
    Err(Error::from(
        Problem::new("", "a plugin must be built with the compiler that built this installation")
            .accepts(format!("{ours}\n  found    {found}"))
            .fix(format!("rustup default {}", ours.split(' ').nth(1).unwrap_or_default())),
    ))
}

/// Returns the folder of Rust's shared standard library.
fn standard_library() -> Result<PathBuf> {
    let compiler = env::var_os("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(compiler).args(["--print", "target-libdir"]).output();
    let output = output.map_err(|e| Error::Run(format!("cannot start rustc: {e}")))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Returns the schemas of the plugins in a library. Opening the library runs its code, so a separate process opens it.
fn describe(compiled: &Path) -> Result<serde_json::Map<String, Value>> {
    let failed = |e: &dyn std::fmt::Display| Error::Run(format!("{}: {e}", compiled.display()));
    let program = env::current_exe().map_err(|e| failed(&e))?;
    let output = Command::new(program).args(["plugin", "describe"]).arg(compiled).stderr(Stdio::inherit()).output();
    let output = output.map_err(|e| failed(&e))?;
    if !output.status.success() {
        return Err(Error::Run("the library was compiled, but it cannot be loaded".into()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(&e))
}

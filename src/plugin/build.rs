//! `plugin build` and `plugin test`: a plugin's crate, compiled against the very artifacts of this installation.
//!
//! The crate's manifest names the framework by path, so that editors and linked builds find it. Here cargo gets a copy
//! of the manifest without it, and rustc the shared framework in its place: a second framework, however alike, would
//! have other symbols.

use crate::plugin::refused;
use crate::{Failure, Outcome};
use framework::plugin::BUILD_ID;
use registry::library::{self, FRAMEWORK, Library};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf, absolute};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};
use toml::{Table, Value as Toml};

/// Crates that the framework hands on: a second copy of them would have other traits.
const OURS: [&str; 6] = ["burn", "inventory", "schemars", "serde", "serde_json", "typetag"];

/// Builds the library of a plugin.
pub fn build(folder: &Path) -> Outcome {
    let start = Instant::now();
    let plugin = Plugin::read(folder)?;
    let compiled = plugin.cargo(&["--release", "--crate-type", "cdylib"])?;
    let schemas = describe(&compiled)?;
    let finished = plugin.folder.join("target").join(format!("{}{}", plugin.name, env::consts::DLL_SUFFIX));
    let failed = |e: std::io::Error| Failure::Run(format!("error: {}: {e}", finished.display()));
    library::seal(&compiled, &finished, &plugin.folder, schemas).map_err(failed)?;
    let library = Library::read(&finished).map_err(refused)?;
    library.check().map_err(refused)?;
    let kilobytes = fs::metadata(&finished).map_err(failed)?.len().div_ceil(1000);
    println!("{}  {kilobytes} kB, built in {:.1} s", finished.display(), start.elapsed().as_secs_f64());
    for card in &library.plugins {
        println!("  {} \"{}\"", card.kind.name(), card.name);
    }
    Ok(())
}

/// Builds the tests of a plugin and runs them.
pub fn test(folder: &Path) -> Outcome {
    let plugin = Plugin::read(folder)?;
    let tests = plugin.cargo(&["--profile", "test"])?;
    let mut paths = vec![plugin.artifacts.clone(), standard_library()?];
    paths.extend(env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap_or_default()));
    let paths = env::join_paths(paths).map_err(|e| Failure::Run(format!("error: {e}")))?;
    let status = Command::new(&tests).env("LD_LIBRARY_PATH", paths).current_dir(&plugin.folder).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failure::Run(format!("error: tests of {} failed", plugin.folder.display()))),
        Err(e) => Err(Failure::Run(format!("error: {}: {e}", tests.display()))),
    }
}

/// A plugin's crate, and what it is compiled against.
struct Plugin {
    folder: PathBuf,
    /// The name of its library.
    name: String,
    /// The manifest without the framework.
    manifest: Table,
    /// The folder of this installation's artifacts.
    artifacts: PathBuf,
}

impl Plugin {
    fn read(folder: &Path) -> Result<Self, Failure> {
        let artifacts = artifacts()?;
        same_compiler()?;
        let folder = absolute(folder).map_err(|e| Failure::Input(format!("error: {}: {e}", folder.display())))?;
        let path = folder.join("Cargo.toml");
        let text = fs::read_to_string(&path).map_err(|e| {
            let fix = "name the folder of a plugin's crate, as `unguided plugin new` makes it";
            Failure::Input(format!("error: no plugin is there: {e}\n  at       {}\n  fix      {fix}", path.display()))
        })?;
        let given: Table =
            text.parse().map_err(|e| Failure::Input(format!("error: {e}\n  at       {}", path.display())))?;
        let (name, manifest) = standalone(&given, &folder).map_err(|(what, fix)| {
            Failure::Input(format!("error: {what}\n  at       {}\n  fix      {fix}", path.display()))
        })?;
        Ok(Self { folder, name, manifest, artifacts })
    }

    /// Runs `cargo rustc` on the library and gives the file it made. The compiler's own messages go to the terminal.
    fn cargo(&self, options: &[&str]) -> Result<PathBuf, Failure> {
        let work = self.folder.join("target/plugin");
        let manifest = work.join("Cargo.toml");
        let failed = |e: std::io::Error| Failure::Run(format!("error: {}: {e}", manifest.display()));
        fs::create_dir_all(&work).map_err(failed)?;
        let text = toml::to_string(&self.manifest).map_err(|e| Failure::Run(format!("error: {e}")))?;
        fs::write(&manifest, text).map_err(failed)?;
        let mut framework = OsString::from("framework=");
        framework.push(self.artifacts.join(FRAMEWORK));
        let mut dependencies = OsString::from("dependency=");
        dependencies.push(&self.artifacts);
        let output = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["rustc", "--lib", "--message-format=json-render-diagnostics", "--manifest-path"])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(work.join("target"))
            .args(options)
            .args(["--", "-C", "prefer-dynamic", "--extern"])
            .arg(framework)
            .arg("-L")
            .arg(dependencies)
            .current_dir(&self.folder)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| {
                Failure::Run(format!("error: cargo cannot be started: {e}\n  fix      install Rust: https://rustup.rs"))
            })?;
        if !output.status.success() {
            return Err(Failure::Run(format!("error: {} does not compile", self.folder.display())));
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let artifact = |line: &str| -> Option<PathBuf> {
            let message: Value = serde_json::from_str(line).ok()?;
            let ours = message["reason"] == "compiler-artifact" && message["target"]["name"] == self.name.as_str();
            let file = message["executable"].as_str().or_else(|| message["filenames"][0].as_str());
            file.filter(|_| ours).map(PathBuf::from)
        };
        messages.lines().rev().find_map(artifact).ok_or_else(|| Failure::Run("error: cargo named no library".into()))
    }
}

/// A manifest that cargo builds without this framework: name of the library, and the manifest; or what is wrong with
/// the given one, and what helps.
fn standalone(given: &Table, folder: &Path) -> Result<(String, Table), (String, String)> {
    let table = |name: &str| given.get(name).and_then(Toml::as_table).cloned().unwrap_or_default();
    let (mut package, mut library) = (table("package"), table("lib"));
    let wrong = |what: &str| (what.to_string(), "see a crate that `unguided plugin new` makes".to_string());
    let name = package.get("name").and_then(Toml::as_str).ok_or_else(|| wrong("the manifest names no package"))?;
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
    dependencies.retain(|name, _| name != "framework" && name != "unguided");
    if let Some(ours) = OURS.iter().find(|name| dependencies.contains_key(**name)) {
        let what = format!("the crate depends on \"{ours}\", of which the framework has its own");
        return Err((what, format!("remove it, and write `use framework::{ours};`")));
    }
    let mut tests = table("dev-dependencies");
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
    // Other settings than this installation's own, so that no crate is taken for one of the installation's.
    let profile: Table = "release = { opt-level = 3, debug = false, strip = true }".parse().expect("it is TOML");
    manifest.insert("profile".into(), profile.into());
    Ok((name, manifest))
}

/// Where the shared framework of this installation lies, with all that was compiled for it.
fn artifacts() -> Result<PathBuf, Failure> {
    let fix = "build the command from its source, with its default features: cargo build --release --workspace";
    if !cfg!(feature = "shared") {
        let what = "this build is one file, and plugin libraries cannot be built for it";
        return Err(Failure::Input(format!("error: {what}\n  fix      {fix}")));
    }
    let program = env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let beside = program.parent().unwrap_or(Path::new(""));
    let folders = [beside.join("deps"), beside.to_path_buf(), beside.join("../lib")];
    folders.into_iter().find(|folder| folder.join(FRAMEWORK).exists()).ok_or_else(|| {
        Failure::Input(format!("error: {FRAMEWORK} is not beside {}\n  fix      {fix}", program.display()))
    })
}

/// Refuses another compiler than that of this installation.
fn same_compiler() -> Outcome {
    let compiler = env::var_os("RUSTC").unwrap_or("rustc".into());
    let found = Command::new(compiler).arg("-V").output().map(|output| output.stdout).unwrap_or_default();
    let found = String::from_utf8_lossy(&found).trim().to_string();
    let ours = BUILD_ID.split("; ").find_map(|part| part.strip_prefix("rustc: ")).unwrap_or_default();
    if found == ours {
        return Ok(());
    }
    let found = if found.is_empty() { "none" } else { &found };
    Err(Failure::Input(format!(
        "error: plugins need the compiler that built this installation\n  accepts  {ours}\n  found    {found}\n  fix      rustup default {}",
        ours.split(' ').nth(1).unwrap_or_default()
    )))
}

/// The folder of Rust's own shared library.
fn standard_library() -> Result<PathBuf, Failure> {
    let compiler = env::var_os("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(compiler).args(["--print", "target-libdir"]).output();
    let output = output.map_err(|e| Failure::Run(format!("error: rustc cannot be started: {e}")))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The schemas of the plugins in a library, asked in a process of its own: to know them, its code must run.
fn describe(compiled: &Path) -> Result<serde_json::Map<String, Value>, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Run(format!("error: {}: {e}", compiled.display()));
    let program = env::current_exe().map_err(|e| failed(&e))?;
    let output = Command::new(program).args(["plugin", "describe"]).arg(compiled).stderr(Stdio::inherit()).output();
    let output = output.map_err(|e| failed(&e))?;
    if !output.status.success() {
        return Err(Failure::Run("error: the library was compiled, and cannot be used".into()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(&e))
}

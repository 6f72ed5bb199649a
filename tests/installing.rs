//! Installed copies of the command: the files of an archive, and the program alone, as `cargo install` copies it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use unguided as _;

/// Returns the program in cargo's build folder.
fn built() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_unguided"))
}

/// Returns what a process printed.
fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a copy of the command in `folder`, without any path of the environment that leads to the build.
fn copy(program: &Path, folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder);
    command.env_remove("LD_LIBRARY_PATH").env_remove("UNGUIDED_PLUGINS").env("CARGO_NET_OFFLINE", "true");
    let output = command.output().unwrap();
    (output.status.code(), text(&output))
}

#[track_caller]
fn done((code, text): (Option<i32>, String)) -> String {
    assert_eq!(code, Some(0), "{text}");
    text
}

/// Returns the paths of the shared libraries that a program loads.
fn loaded(program: &Path) -> String {
    let mut command = Command::new(program);
    text(&command.env_remove("LD_LIBRARY_PATH").env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap())
}

/// Creates and builds a plugin with `program`. Returns its library.
fn plugin(program: &Path, folder: &Path) -> PathBuf {
    done(copy(program, folder, &["plugin", "new", "my_loss", "--kind", "objective"]));
    done(copy(program, folder, &["plugin", "build", "my_loss"]));
    folder.join("my_loss/target/my_loss.so")
}

#[test]
fn an_installed_copy_needs_neither_the_build_folder_nor_the_toolchain() {
    let test = "an_installed_copy_needs_neither_the_build_folder_nor_the_toolchain";
    for tool in ["bash", "strip", "readelf", "rustc"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return goldens::skipped(test, &format!("`{tool}` is not installed"));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let prefix = folder.join("prefix");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/archive");
    let mut archive = Command::new("bash");
    archive.arg(script).arg("--built").arg(built().parent().unwrap()).arg("--prefix").arg(&prefix);
    let output = archive.current_dir(&folder).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let program = prefix.join("bin/unguided");
    let libraries = loaded(&program);
    for name in ["libframework_dylib.so", "libstd-"] {
        let line = libraries.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {libraries}"));
        assert!(line.contains(prefix.to_str().unwrap()), "{line}");
    }
    let paths = Command::new("readelf").arg("-d").arg(&program).output().unwrap();
    assert!(!text(&paths).contains("rustlib"), "a path leads to the builder's toolchain: {}", text(&paths));
    for file in [
        "share/man/man1/unguided.1",
        "share/man/man1/unguided-export.1",
        "share/bash-completion/completions/unguided",
        "share/zsh/site-functions/_unguided",
        "share/fish/vendor_completions.d/unguided.fish",
        "share/doc/unguided/LICENSE-MIT",
        "share/doc/unguided/LICENSE-APACHE",
        "share/doc/unguided/examples/pipelines/digits-dit-gft-tiny.json",
    ] {
        assert!(fs::metadata(prefix.join(file)).is_ok_and(|found| found.len() > 0), "{file} is missing");
    }
    // A plugin that the build folder's command built loads in the installed copy.
    let library = plugin(&built(), &folder);
    let listed = done(copy(&program, &folder, &["list", "--plugin-dir", library.to_str().unwrap()]));
    assert!(listed.lines().any(|line| line.starts_with("objective") && line.contains("my_loss")), "{listed}");
    // It cannot build one, and says why.
    let (code, said) = copy(&program, &folder, &["plugin", "build", "my_loss"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no compiled crates") && said.contains("built from source"), "{said}");
}

#[test]
fn a_wheel_installs_a_command_that_finds_its_libraries() {
    let test = "a_wheel_installs_a_command_that_finds_its_libraries";
    let python = std::env::var_os("UNGUIDED_PYTHON").unwrap_or("python3".into());
    for module in ["wheel", "pip"] {
        let found = Command::new(&python).args(["-m", module, "--help"]).output();
        if !found.is_ok_and(|output| output.status.success()) {
            return goldens::skipped(test, &format!("python3, or UNGUIDED_PYTHON, has no module `{module}`"));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/wheel");
    let mut wheel = Command::new("bash");
    wheel.arg(script).arg("--built").arg(built().parent().unwrap()).env("PYTHON", &python).current_dir(&folder);
    let output = wheel.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let name = String::from_utf8(output.stdout).unwrap();
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--prefix", "prefix", name.trim()]);
    let output = install.current_dir(&folder).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let program = folder.join("prefix/bin/unguided");
    let libraries = loaded(&program);
    let own = libraries.lines().filter(|line| line.contains(folder.to_str().unwrap())).count();
    assert_eq!(own, 2, "{libraries}");
    done(copy(&program, &folder, &["list"]));
}

#[test]
fn the_program_alone_builds_and_loads_plugins_while_the_build_folder_exists() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let program = folder.join("bin/unguided");
    fs::create_dir(folder.join("bin")).unwrap();
    fs::copy(built(), &program).unwrap();
    if option_env!("UNGUIDED_RELOCATABLE").is_some() {
        let test = "the_program_alone_builds_and_loads_plugins_while_the_build_folder_exists";
        return goldens::skipped(test, "the command was built with relative paths only");
    }
    assert!(!loaded(&program).contains("not found"), "{}", loaded(&program));
    let library = plugin(&program, &folder);
    let listed = done(copy(&program, &folder, &["list", "--plugin-dir", library.to_str().unwrap()]));
    assert!(listed.contains("my_loss"), "{listed}");
}

#[test]
fn man_pages_need_an_existing_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = copy(&built(), folder.path(), &["man", "none"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("the folder none does not exist"), "{said}");
    done(copy(&built(), folder.path(), &["man", "."]));
    let page = fs::read_to_string(folder.path().join("unguided-sample.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("Sample images from a run or a checkpoint"), "{page}");
}

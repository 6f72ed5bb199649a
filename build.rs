//! Sets the paths where a directly started command finds the shared framework and Rust's standard library.
//!
//! The paths are relative to the program: its own folder, `deps` in it (cargo's build folder), and `../lib/unguided`
//! (an installation). The standard library is copied to cargo's build folder, so that no path leads to the builder's
//! toolchain, which other users cannot read. `cargo install` copies only the program. Its copy finds the libraries in
//! the build folder, as long as that exists. `UNGUIDED_RELOCATABLE=1` leaves that absolute path out.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=UNGUIDED_RELOCATABLE");
    if env::var_os("CARGO_FEATURE_SHARED").is_none() || env::var("CARGO_CFG_TARGET_FAMILY").as_deref() != Ok("unix") {
        return;
    }
    let origin = if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") { "@loader_path" } else { "$ORIGIN" };
    for folder in ["", "/deps", "/../lib/unguided", "/../lib"] {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{origin}{folder}");
    }
    // Tests and benchmarks are in `deps`.
    for kind in ["tests", "benches"] {
        println!("cargo::rustc-link-arg-{kind}=-Wl,-rpath,{origin}/..");
    }
    // OUT_DIR is PROFILE/build/unguided-HASH/out. The copy is not in `deps`, where rustc looks for crates.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let built = out.ancestors().nth(3).expect("cargo's build folder");
    copy_standard_library(built);
    if env::var_os("UNGUIDED_RELOCATABLE").is_none() {
        for folder in [built.to_path_buf(), built.join("deps")] {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
        }
    }
}

/// Copies Rust's shared standard library to `to`.
fn copy_standard_library(to: &Path) {
    let libraries = Command::new(env::var_os("RUSTC").expect("set by cargo"))
        .args(["--print", "target-libdir", "--target"])
        .arg(env::var_os("TARGET").expect("set by cargo"))
        .output();
    let libraries = String::from_utf8(libraries.expect("the compiler runs").stdout).expect("a path in UTF-8");
    fs::create_dir_all(to).expect("the build folder can be written");
    for entry in fs::read_dir(libraries.trim()).expect("the toolchain's libraries").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let shared = name.ends_with(".so") || name.ends_with(".dylib");
        let size = |path: &Path| fs::metadata(path).map(|found| found.len()).ok();
        let copy = to.join(&name);
        if !name.starts_with("libstd-") || !shared || size(&copy) == size(&entry.path()) {
            continue;
        }
        // A running program may have the old copy open, so replace it instead of writing into it.
        let partial = to.join(format!("{name}.partial-{}", std::process::id()));
        fs::copy(entry.path(), &partial).expect("the standard library can be copied");
        fs::rename(&partial, &copy).expect("the standard library can be renamed");
    }
}

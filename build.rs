//! Sets the paths where a directly started command finds the shared framework and Rust's standard library.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_SHARED").is_none() || env::var("CARGO_CFG_TARGET_FAMILY").as_deref() != Ok("unix") {
        return;
    }
    let origin = if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") { "@loader_path" } else { "$ORIGIN" };
    for folder in ["", "/deps", "/../lib"] {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{origin}{folder}");
    }
    let sysroot = Command::new(env::var_os("RUSTC").expect("set by cargo")).args(["--print", "sysroot"]).output();
    let sysroot = String::from_utf8(sysroot.expect("the compiler runs").stdout).expect("a path in UTF-8");
    let target = env::var("TARGET").expect("set by cargo");
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", libraries.display());
}

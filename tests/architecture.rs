//! The structure that ARCHITECTURE.md promises: no import cycles, short files, rooms that state their content, and a
//! framework without dependencies that only tests, proofs or pictures need.

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use unguided as _;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the source folder of every crate.
fn sources() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        ["", "framework", "registry", "proofs", "run_folder", "serve", "scenes", "allocator", "dylib", "mpi_ranks"]
            .iter()
            .map(|name| root().join(name).join("src"))
            .collect();
    for folder in ["plugins", "plugins/backbones"] {
        found.extend(fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path().join("src")));
    }
    found.retain(|path| path.is_dir());
    found
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "templates") {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the code of a file without comments and without its test module.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Expands `a::{b, c::{d}}` to `a::b` and `a::c::d`.
fn expand(prefix: &str, path: &str, found: &mut Vec<String>) {
    let path = path.trim();
    let Some((head, rest)) = path.split_once('{') else {
        found.push(format!("{prefix}{}", path.split(" as ").next().unwrap()));
        return;
    };
    let (prefix, mut depth, mut start) = (format!("{prefix}{head}"), 0, 0);
    let inner = &rest[..rest.rfind('}').unwrap_or(rest.len())];
    for (i, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[start..i].trim().is_empty() {
                    expand(&prefix, &inner[start..i], found);
                }
                start = i + 1;
            }
            _ => {}
        }
    }
}

/// Returns every path that begins with `crate`, `super` or `self`, in imports and in code.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = String::new();
    let mut remaining = code;
    while let Some(at) = remaining.find("use ") {
        rest.push_str(&remaining[..at]);
        let end = remaining[at..].find(';').map_or(remaining.len(), |end| at + end);
        let statement: String = remaining[at + 4..end].split_whitespace().collect::<Vec<_>>().join(" ");
        if ["crate", "super", "self"].iter().any(|start| statement.starts_with(start)) {
            expand("", &statement, &mut found);
        }
        remaining = &remaining[end..];
    }
    rest.push_str(remaining);
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = rest.split(|c: char| !is_path(c)).filter(|word| word.contains("::"));
    found.extend(
        words.filter(|word| ["crate::", "super::", "self::"].iter().any(|s| word.starts_with(s))).map(String::from),
    );
    found
}

/// Returns the modules of a crate and the modules that each one names, without the crate root, which names all.
fn imports(source: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let module = |path: &Path| {
        let relative = path.strip_prefix(source).unwrap().with_extension("");
        let mut parts: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
            parts.pop();
        }
        parts
    };
    // Files named `tests.rs` are test modules.
    let files: Vec<PathBuf> = rust_files(source).into_iter().filter(|path| !path.ends_with("tests.rs")).collect();
    let known: BTreeSet<String> = files.iter().map(|path| module(path).join("::")).collect();
    let mut all = BTreeMap::new();
    for file in &files {
        let own = module(file);
        let mut named = BTreeSet::new();
        for path in paths(&code(file)) {
            let mut parts: Vec<&str> = path.split("::").collect();
            let mut base: Vec<String> = if parts[0] == "crate" { Vec::new() } else { own.clone() };
            while let Some(first) = parts.first().filter(|part| ["crate", "super", "self"].contains(*part)) {
                if *first == "super" {
                    base.pop();
                }
                parts.remove(0);
            }
            base.extend(parts.into_iter().map(String::from));
            while !known.contains(&base.join("::")) {
                base.pop();
            }
            named.insert(base.join("::"));
        }
        let own = own.join("::");
        named.retain(|name| *name != own && !name.is_empty());
        if !own.is_empty() {
            all.insert(own, named);
        }
    }
    all
}

fn cycles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<&str>> {
    let (mut graph, mut nodes) = (DiGraph::<&str, ()>::new(), BTreeMap::new());
    for name in edges.iter().flat_map(|(from, named)| named.iter().chain([from])) {
        nodes.entry(name.as_str()).or_insert_with(|| graph.add_node(name));
    }
    for (from, named) in edges {
        named.iter().for_each(|to| {
            graph.add_edge(nodes[from.as_str()], nodes[to.as_str()], ());
        });
    }
    let names = |component: Vec<_>| component.into_iter().map(|node| graph[node]).collect::<Vec<_>>();
    tarjan_scc(&graph).into_iter().map(names).filter(|component| component.len() > 1).collect()
}

#[test]
fn no_crate_has_an_import_cycle_between_files_or_between_rooms() {
    let mut files = 0;
    for source in sources() {
        let edges = imports(&source);
        files += edges.len();
        assert_eq!(cycles(&edges), Vec::<Vec<&str>>::new(), "between files of {}", source.display());
        let room = |module: &str| module.split("::").next().unwrap().to_string();
        let mut rooms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, named) in &edges {
            let others = named.iter().map(|to| room(to)).filter(|to| *to != room(from));
            rooms.entry(room(from)).or_default().extend(others);
        }
        assert_eq!(cycles(&rooms), Vec::<Vec<&str>>::new(), "between rooms of {}", source.display());
    }
    assert!(files > 150, "only {files} modules were read");
}

#[test]
fn the_cycle_search_finds_cycles() {
    let edges = |pairs: &[(&str, &str)]| {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in pairs {
            all.entry((*from).to_string()).or_default().insert((*to).to_string());
        }
        all
    };
    assert_eq!(cycles(&edges(&[("a", "b"), ("b", "c")])).len(), 0);
    assert_eq!(cycles(&edges(&[("a", "b"), ("b", "c"), ("c", "a")])).len(), 1);
    let mut found = Vec::new();
    expand("", "crate::a::{self, b::{C, D as E}, F}", &mut found);
    assert_eq!(found, ["crate::a::self", "crate::a::b::C", "crate::a::b::D", "crate::a::F"]);
    assert_eq!(paths("use crate::a::B;\nfn f() { super::c::d(); std::mem::drop(1) }"), ["crate::a::B", "super::c::d"]);
}

/// Returns whether a file may exceed 500 lines: only kernels may.
fn may_be_long(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "kernels")
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let mut folders = sources();
    folders.extend(["tests", "benches", "framework/tests", "registry/tests"].map(|folder| root().join(folder)));
    for folder in ["plugins", "plugins/backbones"] {
        let tests = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path().join("tests"));
        folders.extend(tests.filter(|path| path.is_dir()));
    }
    let mut long = Vec::new();
    for file in folders.iter().flat_map(|folder| rust_files(folder)).filter(|file| !may_be_long(file)) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        if lines > 500 {
            long.push(format!("{} has {lines} lines", file.strip_prefix(root()).unwrap().display()));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_room_opens_with_what_it_contains_and_what_can_change_there() {
    let rooms = sources().into_iter().flat_map(|source| rust_files(&source)).filter(|path| path.ends_with("mod.rs"));
    let mut seen = 0;
    for file in rooms {
        let text = fs::read_to_string(&file).unwrap();
        let paragraph: String = text
            .lines()
            .map_while(|line| line.strip_prefix("//!"))
            .take_while(|line| !line.trim().is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        let sentences = paragraph.matches(". ").count() + usize::from(paragraph.trim_end().ends_with('.'));
        assert!(sentences >= 2, "{} opens with {sentences} sentences: {paragraph}", file.display());
        seen += 1;
    }
    assert!(seen >= 12, "{seen}");
}

#[test]
fn the_framework_depends_on_nothing_that_only_tests_proofs_or_pictures_need() {
    let manifest: toml::Table = fs::read_to_string(root().join("framework/Cargo.toml")).unwrap().parse().unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    for name in [
        "proptest",
        "plotters",
        "image",
        "epaint_default_fonts",
        "jsonschema",
        "petgraph",
        "nalgebra",
        "faer",
        "indicatif",
    ] {
        assert!(!dependencies.contains_key(name), "framework depends on {name}");
    }
    let ours = [
        "registry",
        "proofs",
        "run_folder",
        "serve",
        "scenes",
        "objectives",
        "samplers",
        "guidance",
        "data",
        "metrics",
    ];
    assert!(ours.iter().all(|name| !dependencies.contains_key(*name)));
}

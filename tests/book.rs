//! Follows the book as a reader does, chapter by chapter, each in its own empty folder. Every command must run and
//! every document must pass `check`.

use pulldown_cmark::{Event, Tag, TagEnd};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use unguided as _;

/// Part of a chapter that a reader acts on.
enum Part {
    /// A file that the chapter tells the reader to write.
    File { name: String, text: String },
    /// Commands to run.
    Commands(String),
}

/// Returns the parts of a chapter, in order. A file's block follows a comment `<!-- file: NAME -->`.
fn parts(chapter: &str) -> Vec<Part> {
    let (mut found, mut file, mut lines) = (Vec::new(), None, chapter.lines());
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->")) {
            file = Some(name.to_string());
        }
        let Some(kind) = line.strip_prefix("```") else { continue };
        let text: String =
            lines.by_ref().take_while(|line| !line.starts_with("```")).map(|line| format!("{line}\n")).collect();
        match (file.take(), kind) {
            (Some(name), _) => found.push(Part::File { name, text }),
            (None, "sh") => found.push(Part::Commands(text)),
            (None, "json") => panic!("a whole document needs a comment with its file name:\n{text}"),
            _ => {}
        }
    }
    found
}

/// Returns the chapters in the order of the table of contents.
fn chapters() -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src");
    let contents = fs::read_to_string(source.join("SUMMARY.md")).unwrap();
    let linked = contents.lines().filter_map(|line| Some(line.split_once("](")?.1.split_once(')')?.0));
    linked.map(|path| source.join(path)).collect()
}

/// Returns the file name of a chapter, without folder and extension.
fn stem(chapter: &Path) -> String {
    chapter.file_stem().unwrap().to_string_lossy().into_owned()
}

fn run(chapter: &Path) {
    let text = fs::read_to_string(chapter).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let unguided = Path::new(env!("CARGO_BIN_EXE_unguided"));
    let path = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths(
        [unguided.parent().unwrap().to_path_buf()].into_iter().chain(std::env::split_paths(&path)),
    )
    .unwrap();
    let mut files = Vec::new();
    for part in parts(&text) {
        match part {
            Part::File { name, text } => {
                let file = folder.path().join(&name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, text).unwrap();
                files.push(name);
            }
            Part::Commands(commands) => {
                let done = Command::new("bash")
                    .args(["-euo", "pipefail", "-c", &commands])
                    .current_dir(&folder)
                    .env("PATH", &path)
                    .env_remove("UNGUIDED_PLUGINS")
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&done.stdout).to_string() + &String::from_utf8_lossy(&done.stderr);
                assert!(done.status.success(), "{}:\n{commands}\n{said}", chapter.display());
            }
        }
    }
    // Check the documents last: some name runs that the commands create.
    for name in files.iter().filter(|name| name.ends_with(".json")) {
        let done = Command::new(unguided).arg("check").arg(name).current_dir(&folder).output().unwrap();
        assert!(done.status.success(), "{}: {name}\n{}", chapter.display(), String::from_utf8_lossy(&done.stderr));
    }
}

/// One test per chapter, so that a failure names its chapter.
macro_rules! chapters {
    ($($test:ident: $stem:literal,)*) => {
        $(
            #[test]
            fn $test() {
                let all = chapters();
                run(all.iter().find(|chapter| stem(chapter) == $stem).expect("the table of contents has the chapter"));
            }
        )*

        #[test]
        fn every_chapter_has_its_test() {
            let tested = [$($stem),*];
            for chapter in chapters() {
                assert!(chapter.exists(), "{} is missing", chapter.display());
                let acts = !parts(&fs::read_to_string(&chapter).unwrap()).is_empty();
                assert!(!acts || tested.contains(&stem(&chapter).as_str()), "{} has no test", chapter.display());
            }
        }
    };
}

chapters! {
    getting_started_works: "getting-started",
    your_own_images_works: "your-own-images",
    reports_work: "reports",
    choosing_an_objective_works: "choosing-an-objective",
    writing_an_objective_works: "objective",
    writing_a_backbone_works: "backbone",
    writing_a_sampler_works: "sampler",
    writing_a_guidance_rule_works: "guidance",
    writing_a_dataset_works: "dataset",
    writing_a_tokenizer_works: "tokenizer",
    writing_a_metric_works: "metric",
    writing_a_conditioner_works: "conditioner",
    published_checkpoints_works: "published-checkpoints",
    exporting_works: "exporting",
    sampling_works: "sampling",
    measuring_samples_works: "evaluation",
    devices_works: "devices",
    laws_works: "laws",
    evaluation_command_works: "evaluation-command",
}

/// To rewrite the reference, run `UPDATE_BOOK=1 cargo test --release --workspace`.
#[test]
fn the_reference_is_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/reference.md");
    let output = Command::new(env!("CARGO_BIN_EXE_unguided")).args(["schema", "--markdown"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reference = String::from_utf8(output.stdout).unwrap();
    if std::env::var_os("UPDATE_BOOK").is_some() {
        fs::write(&path, &reference).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == reference, "run the tests once with UPDATE_BOOK=1");
}

/// Returns the id of a heading, as mdBook and GitHub make it.
fn heading_id(heading: &str) -> String {
    let kept =
        |c: char| if c.is_whitespace() { Some('-') } else { (c.is_alphanumeric() || "-_".contains(c)).then_some(c) };
    heading.to_lowercase().chars().filter_map(kept).collect()
}

/// Returns the links and the heading ids of a page.
fn links_and_ids(page: &str) -> (Vec<String>, BTreeSet<String>) {
    let (mut links, mut ids, mut heading) = (Vec::new(), BTreeSet::new(), None);
    for event in pulldown_cmark::Parser::new_ext(page, pulldown_cmark::Options::all()) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => links.push(dest_url.to_string()),
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => ids.extend(heading.take().map(|text| heading_id(&text))),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            _ => {}
        }
    }
    (links, ids)
}

#[test]
fn every_link_leads_to_a_page_and_a_heading() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> = chapters();
    pages.push(root.join("docs/src/SUMMARY.md"));
    for name in ["README.md", "SPEC.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        pages.push(root.join(name));
    }
    let mut broken = Vec::new();
    for page in &pages {
        let (links, own) = links_and_ids(&fs::read_to_string(page).unwrap());
        for link in links.iter().filter(|link| !link.contains("://")) {
            let (path, id) = link.split_once('#').map_or((link.as_str(), None), |(path, id)| (path, Some(id)));
            let target = page.parent().unwrap().join(path);
            let ids = match path {
                "" => Some(own.clone()),
                _ if target.extension().is_some_and(|ending| ending == "md") => {
                    fs::read_to_string(&target).ok().map(|text| links_and_ids(&text).1)
                }
                _ => target.exists().then(BTreeSet::new),
            };
            if ids.is_none_or(|ids| id.is_some_and(|id| !ids.contains(id))) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

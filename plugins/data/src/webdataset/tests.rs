//! Tests of the dataset `webdataset`.

use super::*;
use crate::text::LONGEST_CAPTION;
use framework::data::dataset::Label;
use framework::serde_json;
use image::{GrayImage, ImageFormat, Luma};
use proptest::prelude::*;
use std::io::Cursor;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

fn png(grey: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    GrayImage::from_pixel(3, 2, Luma([grey])).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Builds a header directly, because the `tar` crate refuses to write hostile names.
fn header(name: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in files {
        if name.len() > 100 {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, *bytes).unwrap();
        } else {
            builder.append(&header(name, bytes.len() as u64), *bytes).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn config(root: &TempDir, condition: Beside) -> WebDataset {
    serde_json::from_value(serde_json::json!({
        "shards": [root.path().join("{0..0}.tar")], "image_size": 2, "channels": 1, "condition": condition,
        "num_classes": (condition == Beside::Class).then_some(10)
    }))
    .unwrap()
}

fn write(root: &TempDir, name: &str, bytes: &[u8]) {
    std::fs::write(root.path().join(name), bytes).unwrap();
}

fn labels(data: &dyn Dataset) -> Vec<Label> {
    (0..data.len()).map(|i| data.plain(i).unwrap().label).collect()
}

fn captions(all: &[&str]) -> Vec<Label> {
    all.iter().map(|caption| Label::Caption((*caption).into())).collect()
}

#[test]
fn patterns_count_with_leading_zeros() {
    let names = |pattern: &str| -> Result<Vec<String>, String> {
        Ok(expand(pattern)?.into_iter().map(|path| path.display().to_string()).collect())
    };
    assert_eq!(names("a.tar").unwrap(), ["a.tar"]);
    assert_eq!(names("a-{008..010}.tar").unwrap(), ["a-008.tar", "a-009.tar", "a-010.tar"]);
    assert_eq!(names("{0..1}-{3..4}").unwrap(), ["0-3", "0-4", "1-3", "1-4"]);
    for (pattern, says) in [
        ("a{0..1", "not closed"),
        ("{a..b}", "not a range"),
        ("{1}", "not a range"),
        ("{2..1}", "counts down"),
        ("{0..999999999}", "more than 100000"),
        ("{0..999}{0..999}", "more than 100000"),
        ("{0..18446744073709551615}", "more than 100000"),
    ] {
        assert!(names(pattern).unwrap_err().contains(says), "{pattern}");
    }
}

#[test]
fn files_of_one_name_are_one_sample_in_order_of_the_shards() {
    let root = TempDir::new().unwrap();
    let long = format!("{}/one.png", "deep".repeat(40));
    let of_long = format!("{}/one.txt", "deep".repeat(40));
    write(
        &root,
        "0.tar",
        &tar(&[
            ("./b/2.PNG", &png(0)),
            ("./b/2.txt", b"first\n"),
            ("b/2.extra.bin", b"?"),
            ("b/1.json", br#"{"caption": "second", "url": "?"}"#),
            ("b/1.jpg", &png(255)),
            (&long, &png(51)),
            (&of_long, "third é".as_bytes()),
        ]),
    );
    write(&root, "1.tar", &tar(&[("b/1.jpg", &png(7)), ("b/1.txt", b"fourth"), ("b/1.json", b"not read")]));
    let pattern = root.path().join("{0..1}.tar").display().to_string();
    let config = WebDataset { shards: vec![pattern], ..config(&root, Beside::Caption) };
    let data = config.open().unwrap();
    assert_eq!(labels(&*data), captions(&["first", "second", "third é", "fourth"]));
    assert_eq!(data.label(2).unwrap(), Label::Caption("third é".into()));
    let [warning] = &data.warnings()[..] else { panic!("{:?}", data.warnings()) };
    assert!(warning.starts_with("1 skipped: an ending that is not read: .extra.bin"), "{warning}");
    assert_eq!(Some(data.info()), config.info());
    let greys: Vec<f32> = (0..3).map(|i| data.plain(i).unwrap().values[0]).collect();
    for (grey, expected) in greys.iter().zip([-1.0, 1.0, -0.6]) {
        assert!((grey - expected).abs() < 1e-6, "{greys:?}");
    }
}

/// Packs one sample per class file content.
fn classes(root: &TempDir, classes: &[&str]) {
    let image = png(9);
    let names: Vec<[String; 2]> = (0..classes.len()).map(|i| [format!("{i}.png"), format!("{i}.cls")]).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .zip(classes)
        .flat_map(|([image_name, name], class)| [(&image_name[..], &image[..]), (&name[..], class.as_bytes())])
        .collect();
    write(root, "0.tar", &tar(&files));
}

#[test]
fn classes_are_read_when_the_shards_are_opened() {
    let root = TempDir::new().unwrap();
    let image = png(9);
    write(
        &root,
        "0.tar",
        &tar(&[
            ("0.png", &image),
            ("0.cls", b" 1\n"),
            ("1.png", &image),
            ("1.cls", b"cat"),
            ("2.png", &image),
            ("2.cls", b"-1"),
            ("3.png", &image),
            ("3.txt", b"no class"),
            ("4.png", &image),
            ("4.cls", b"\xef\xbb\xbf0"),
        ]),
    );
    let data = config(&root, Beside::Class).open().unwrap();
    assert_eq!(labels(&*data), [Label::Class(1), Label::Class(0)]);
    assert_eq!(data.label(0).unwrap(), Label::Class(1));
    let warnings = data.warnings().join("\n");
    for says in [
        "1 skipped: a sample without a class; the first is 3 in",
        "2 skipped: a class file that is not a number from 0 on; the first is 1 in",
        "1 skipped: an ending that is not read: .txt",
    ] {
        assert!(warnings.contains(says), "{says} is missing in\n{warnings}");
    }
    assert_eq!(config(&root, Beside::None).open().unwrap().plain(3).unwrap().label, Label::None);
}

#[test]
fn classes_that_start_at_one_skip_one_or_exceed_the_number_are_refused() {
    let root = TempDir::new().unwrap();
    let of = |number| WebDataset { num_classes: Some(number), ..config(&root, Beside::Class) };
    let message = |config: WebDataset| config.open().unwrap_err().to_string();
    classes(&root, &["1", "2", "2"]);
    let one = message(of(2));
    assert!(one.contains("start at 1, not at 0") && one.contains("class 2: 2 item(s)"), "{one}");
    classes(&root, &["0", "2"]);
    assert!(message(of(3)).contains("skip class 1"));
    let allowed = WebDataset { allow_empty_classes: true, ..of(3) };
    assert_eq!(labels(&*allowed.open().unwrap()), [Label::Class(0), Label::Class(2)]);
    classes(&root, &["0", "1", "2"]);
    let many = message(of(2));
    assert!(many.contains("1 of 3 samples have a class that is not below `num_classes` = 2"), "{many}");
    // One wrong label in 100 samples costs that sample.
    let mut numbers = vec!["0"; 98];
    numbers.extend(["1", "2"]);
    classes(&root, &numbers);
    let data = of(2).open().unwrap();
    assert_eq!(data.len(), 99);
    assert!(
        data.warnings()[0].starts_with("1 skipped: a class that is not below `num_classes` = 2; the first is 99 in")
    );
}

#[test]
fn packed_shards_are_left_out_and_named() {
    let root = TempDir::new().unwrap();
    let shard = tar(&[("a.png", &png(1)), ("a.txt", b"one")]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &shard).unwrap();
    let packed = packed.finish().unwrap();
    write(&root, "0.tar", &packed);
    let error = config(&root, Beside::Caption).open().unwrap_err().to_string();
    assert!(error.contains("a shard that is compressed with gzip; unpack it with gunzip; the first is"), "{error}");
    assert!(!error.chars().any(|letter| letter.is_control() && letter != '\n'), "{error:?}");
    write(&root, "1.tar", &shard);
    let pattern = root.path().join("{0..1}.tar").display().to_string();
    let data = WebDataset { shards: vec![pattern], ..config(&root, Beside::Caption) }.open().unwrap();
    assert_eq!(labels(&*data), captions(&["one"]));
    assert!(data.warnings()[0].starts_with("1 skipped: a shard that is compressed with gzip"));
    assert!(data.source(0).starts_with("sample `a` in ") && data.source(0).ends_with("1.tar"));
}

#[test]
fn names_with_dots_and_hidden_names_are_counted() {
    let root = TempDir::new().unwrap();
    let image = png(9);
    let files: &[(&str, &[u8])] = &[
        ("v1.0/a.png", &image),
        ("v1.0/a.txt", b"a"),
        ("b.v2.png", &image),
        ("b.v2.txt", b"b"),
        ("._c.png", &image),
        ("c.PNG", &image),
        ("c.TXT", b"\xef\xbb\xbfc"),
        ("d.jpeg", &image),
        ("d.json", b"\xef\xbb\xbf{\"caption\": \"d\"}"),
    ];
    write(&root, "0.tar", &tar(files));
    let data = config(&root, Beside::Caption).open().unwrap();
    assert_eq!(labels(&*data), captions(&["a", "c", "d"]));
    let warnings = data.warnings().join("\n");
    for says in [
        "1 skipped: an ending that is not read: .v2.png (an ending starts at the first dot); the first is b.v2.png in",
        "1 skipped: an ending that is not read: .v2.txt",
        "1 skipped: a hidden file (its name starts with a dot); the first is ._c.png in",
    ] {
        assert!(warnings.contains(says), "{says} is missing in\n{warnings}");
    }
}

#[test]
fn what_is_hostile_is_left_out_and_counted() {
    let root = TempDir::new().unwrap();
    let (image, long) = (png(9), vec![b'a'; LONGEST_CAPTION as usize + 1]);
    let mut bytes = tar(&[
        ("../up.png", &image),
        ("/root.png", &image),
        ("good.png", &image),
        ("good.txt", b"good"),
        ("good.jpg", &image),
        ("mute.png", &image),
        ("blind.txt", b"blind"),
        ("long.png", &image),
        ("long.txt", &long),
        ("latin.png", &image),
        ("latin.txt", b"caf\xe9"),
        ("broken.png", b"no image"),
        ("broken.txt", b"broken"),
    ]);
    // Replace the two zero blocks that end the archive by a link and by a file longer than the shard.
    bytes.truncate(bytes.len() - 1024);
    let mut link = header("link.png", 0);
    link.set_entry_type(EntryType::Symlink);
    link.set_link_name("/etc/passwd").unwrap();
    link.set_cksum();
    bytes.extend(link.as_bytes());
    bytes.extend(header("endless.png", 1 << 40).as_bytes());
    write(&root, "0.tar", &bytes);
    let data = config(&root, Beside::Caption).open().unwrap();
    assert_eq!(data.len(), 3);
    assert_eq!(data.plain(0).unwrap().label, Label::Caption("good".into()));
    assert!(data.plain(1).unwrap_err().to_string().contains("sample `latin`: the caption is not UTF-8"));
    assert!(data.plain(2).unwrap_err().to_string().contains("sample `broken`: cannot be decoded"));
    let warnings = data.warnings().join("\n");
    for says in [
        "2 skipped: a path that is absolute, leads out",
        "1 skipped: a second file of the same kind",
        "1 skipped: a file of more than 8192 bytes",
        "1 skipped: a link",
        "1 skipped: a file that extends past the end",
        "2 skipped: a sample without a caption",
        "1 skipped: a sample without an image",
    ] {
        assert!(warnings.contains(says), "{says} is missing in\n{warnings}");
    }
}

#[test]
fn a_name_longer_than_a_mebibyte_ends_its_shard() {
    let root = TempDir::new().unwrap();
    let mut bytes = tar(&[("a.png", &png(1)), ("a.txt", b"one")]);
    bytes.truncate(bytes.len() - 1024);
    let mut long = header("long", 2 << 20);
    long.set_entry_type(EntryType::GNULongName);
    long.set_cksum();
    bytes.extend(long.as_bytes());
    bytes.extend(vec![b'a'; 2 << 20]);
    bytes.extend(tar(&[("b.png", &png(2)), ("b.txt", b"two")]));
    write(&root, "0.tar", &bytes);
    let data = config(&root, Beside::Caption).open().unwrap();
    assert_eq!(labels(&*data), captions(&["one"]));
    assert!(data.warnings()[0].starts_with("1 skipped: the rest of a shard cannot be read"), "{:?}", data.warnings());
}

#[test]
fn shards_without_a_sample_are_an_error_that_says_why() {
    let root = TempDir::new().unwrap();
    let error = |root: &TempDir| config(root, Beside::Caption).open().unwrap_err().to_string();
    assert!(error(&root).contains("0.tar"));
    write(&root, "0.tar", &tar(&[("a.png", &png(1))]));
    assert!(error(&root).contains("hold no complete sample\n  1 skipped: a sample without a caption"));
    write(&root, "0.tar", b"something else that is no tar file at all");
    assert!(error(&root).contains("hold no complete sample"), "{}", error(&root));
}

#[test]
fn impossible_settings_are_reported_together() {
    let wrong: WebDataset = serde_json::from_value(serde_json::json!({
        "shards": ["a{", "b"], "image_size": 0, "channels": 2, "num_classes": 3
    }))
    .unwrap();
    let at: Vec<String> = wrong.check().into_iter().map(|problem| problem.at[0].clone()).collect();
    assert_eq!(at, ["/shards/0", "/image_size", "/channels", "/num_classes"]);
    let classes = WebDataset {
        shards: Vec::new(),
        condition: Beside::Class,
        num_classes: None,
        image_size: 1,
        channels: 3,
        ..wrong
    };
    assert_eq!(classes.check().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_shards_are_opened_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let root = TempDir::new().unwrap();
        let mut bytes = tar(&[("a.png", &png(1)), ("a.txt", b"one"), ("b.png", &png(2)), ("b.txt", b"two")]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        write(&root, "0.tar", &bytes);
        if let Ok(data) = config(&root, Beside::Caption).open() {
            for index in 0..data.len() {
                if let Ok(item) = data.plain(index) {
                    prop_assert_eq!(item.values.len(), 4);
                }
            }
        }
    }
}

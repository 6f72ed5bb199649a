//! Tests of the dataset `image_folder`.

use super::metadata::LONGEST_LINE;
use super::*;
use crate::text::LONGEST_CAPTION;
use framework::serde_json;
use image::{Rgb, RgbImage};
use std::fs;
use std::path::Path as FilePath;
use tempfile::TempDir;

fn folder(path: &FilePath, image_size: usize) -> ImageFolder {
    serde_json::from_value(serde_json::json!({ "path": path, "image_size": image_size })).unwrap()
}

fn save(root: &TempDir, name: &str, image: &RgbImage) {
    let path = root.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save(path).unwrap();
}

/// Returns a 2x2 image whose red channel is 0 51 / 102 255; green is 0 and blue is 255.
fn small() -> RgbImage {
    let red = [[0, 51], [102, 255]];
    RgbImage::from_fn(2, 2, |x, y| Rgb([red[y as usize][x as usize], 0, 255]))
}

#[test]
fn sub_folders_are_classes_in_order_of_name() {
    let root = TempDir::new().unwrap();
    save(&root, "zebra/1.png", &small());
    save(&root, "ant/b/2.png", &small());
    save(&root, "ant/1.PNG", &small());
    save(&root, ".cache/1.png", &small());
    fs::write(root.path().join("ant/readme.txt"), "not an image").unwrap();

    let data = folder(root.path(), 2).open().unwrap();
    let labels: Vec<Label> = (0..data.len()).map(|i| data.plain(i).unwrap().label).collect();
    assert_eq!(labels, [Label::Class(0), Label::Class(0), Label::Class(1)]);
    assert_eq!(data.class_names().unwrap(), ["ant", "zebra"]);
    assert_eq!(data.info().num_classes, Some(2));
    assert_eq!(data.how_to_add_classes(), None);
    warned(&*data, &["1 skipped: a hidden file or folder", "1 skipped: an ending that is not read: .txt"]);
}

#[test]
fn numbers_are_channel_rows_in_minus_one_to_one() {
    let root = TempDir::new().unwrap();
    save(&root, "1.png", &small());
    let data = folder(root.path(), 2).open().unwrap();
    let item = data.plain(0).unwrap();
    let expected = [-1.0, -0.6, -0.2, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0];
    for (got, expected) in item.values.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-6, "{got} {expected}");
    }
    assert_eq!(item.label, Label::None);
    assert_eq!(data.info(), DatasetInfo { items: ItemKind::Images([3, 2, 2]), num_classes: None, captions: false });
    assert_eq!(data.class_names(), None);
}

#[test]
fn flips_are_a_function_of_index_and_epoch() {
    let root = TempDir::new().unwrap();
    save(&root, "1.png", &small());
    let config = ImageFolder { horizontal_flip: true, channels: 1, ..folder(root.path(), 2) };
    let data = config.open().unwrap();
    let plain = data.plain(0).unwrap().values;
    let mirrored = vec![plain[1], plain[0], plain[3], plain[2]];
    let random = Random::new(4);
    let mut flips = 0;
    for epoch in 0..64 {
        let values = data.get(0, &random, epoch).unwrap().values;
        assert_eq!(values, data.get(0, &random, epoch).unwrap().values);
        assert!(values == plain || values == mirrored);
        flips += usize::from(values == mirrored);
    }
    assert!((16..=48).contains(&flips), "{flips}");
    let still = ImageFolder { horizontal_flip: false, ..config }.open().unwrap();
    assert!((0..64).all(|epoch| still.get(0, &random, epoch).unwrap().values == plain));
}

#[test]
fn info_is_known_beforehand_where_classes_are_declared() {
    let omitted = folder(FilePath::new("nowhere"), 4);
    assert_eq!(omitted.info(), None);
    let of = |count| ImageFolder { num_classes: Some(count), ..omitted.clone() }.info().unwrap().num_classes;
    assert_eq!((of(0), of(7)), (None, Some(7)));
}

#[test]
fn errors_name_the_file_and_what_helps() {
    let root = TempDir::new().unwrap();
    let message = |config: &ImageFolder| config.open().unwrap_err().to_string();
    let missing = root.path().join("missing");
    assert!(message(&folder(&missing, 2)).contains("missing"));
    assert!(message(&folder(root.path(), 2)).contains("holds no image; supported endings are bmp"));

    save(&root, "a/1.png", &small());
    let declared = ImageFolder { num_classes: Some(3), ..folder(root.path(), 2) };
    assert!(message(&declared).contains("holds 1 class folder(s), but the document says `num_classes` = 3"));

    fs::write(root.path().join("a/2.png"), "not a png").unwrap();
    let error = folder(root.path(), 2).open().unwrap().plain(1).unwrap_err().to_string();
    assert!(error.contains("2.png: cannot be decoded as an image"), "{error}");

    fs::create_dir(root.path().join("b")).unwrap();
    assert!(message(&folder(root.path(), 2)).contains("b: is a class folder without images"));
    save(&root, "1.png", &small());
    assert!(message(&folder(root.path(), 2)).contains("1.png: is next to class folders"));
}

fn captions_of(data: &dyn Dataset) -> Vec<String> {
    let caption = |i: usize| match data.plain(i).unwrap().label {
        Label::Caption(caption) if data.label(i).unwrap() == Label::Caption(caption.clone()) => caption,
        other => panic!("{other:?}"),
    };
    (0..data.len()).map(caption).collect()
}

#[track_caller]
fn warned(data: &dyn Dataset, expected: &[&str]) {
    let warnings = data.warnings().join("\n");
    assert_eq!(data.warnings().len(), expected.len(), "{warnings}");
    expected.iter().for_each(|says| assert!(warnings.contains(says), "{says} is missing in\n{warnings}"));
}

#[test]
fn captions_stand_in_text_files_beside_the_images() {
    let root = TempDir::new().unwrap();
    for name in ["a.png", "b/c.png", "mute.png", "empty.png", "latin.png", "long.png", ".hidden/d.png"] {
        save(&root, name, &small());
    }
    let text = |name: &str, bytes: &[u8]| fs::write(root.path().join(name), bytes).unwrap();
    text("a.txt", b" a small\npicture \n");
    text("b/c.txt", "caf\u{e9}".as_bytes());
    text("empty.txt", b"\n");
    text("latin.txt", b"caf\xe9");
    text("long.txt", &vec![b'a'; LONGEST_CAPTION as usize + 1]);
    let config = ImageFolder { captions: Captions::Files, ..folder(root.path(), 2) };
    let data = config.open().unwrap();
    assert_eq!(captions_of(&*data), ["a small\npicture", "caf\u{e9}"]);
    assert_eq!(Some(data.info()), config.info());
    assert!(data.info().captions && data.info().num_classes.is_none());
    warned(
        &*data,
        &[
            "1 skipped: an image without a caption file; the first is",
            "the caption is empty",
            "the caption is not UTF-8",
            "1 skipped: a hidden file or folder",
            "the caption is longer than",
        ],
    );
    let mute = TempDir::new().unwrap();
    save(&mute, "1.png", &small());
    let error = ImageFolder { captions: Captions::Files, ..folder(mute.path(), 2) }.open().unwrap_err().to_string();
    assert!(error.contains("holds no image with a caption\n  1 skipped: an image without a caption file"), "{error}");
}

#[test]
fn captions_stand_in_metadata_and_hostile_lines_are_left_out() {
    let root = TempDir::new().unwrap();
    for name in ["a.png", "b/c.png", "mute.png"] {
        save(&root, name, &small());
    }
    let outside = root.path().join("a.png").display().to_string();
    let lines = [
        r#"{"file_name": "./b/c.png", "text": "second", "url": [1]}"#.to_string(),
        r#"{"file_name": "a.png", "text": "first"}"#.into(),
        String::new(),
        r#"{"file_name": "a.png", "text": "again"}"#.into(),
        r#"{"file_name": "../a.png", "text": "out"}"#.into(),
        r#"{"file_name": "b/../a.png", "text": "out"}"#.into(),
        format!(r#"{{"file_name": "{outside}", "text": "out"}}"#),
        r#"{"file_name": "gone.png", "text": "gone"}"#.into(),
        r#"{"file_name": "mute.png", "text": " "}"#.into(),
        r#"{"file_name": "a.png""#.into(),
        r#"["a.png"]"#.into(),
        "x".repeat(LONGEST_LINE as usize + 7),
    ];
    fs::write(root.path().join("metadata.jsonl"), lines.join("\n")).unwrap();
    let config = ImageFolder { captions: Captions::Metadata, ..folder(root.path(), 2) };
    let data = config.open().unwrap();
    assert_eq!(captions_of(&*data), ["first", "second"]);
    warned(
        &*data,
        &[
            "1 skipped: a second line for the same file; the first is line 4",
            "3 skipped: a file name that is absolute or leads out of the folder; the first is line 5",
            "1 skipped: a line of metadata.jsonl that names no image in the folder; the first is gone.png",
            "1 skipped: the caption is empty",
            "2 skipped: a line that is not a JSON object",
            "1 skipped: a line longer than",
            "1 skipped: an image without a line in metadata.jsonl",
        ],
    );
    let empty = TempDir::new().unwrap();
    let missing = ImageFolder { captions: Captions::Metadata, ..folder(empty.path(), 2) };
    assert!(missing.open().unwrap_err().to_string().contains("metadata.jsonl: "));
    let classes = ImageFolder { num_classes: Some(2), ..config };
    assert_eq!(classes.check()[0].at, ["/num_classes", "/captions"]);
}

#[test]
fn impossible_settings_are_reported_together() {
    let problems = ImageFolder { channels: 4, ..folder(FilePath::new("x"), 0) }.check();
    assert_eq!(problems.iter().map(|p| p.at[0].as_str()).collect::<Vec<_>>(), ["/image_size", "/channels"]);
    assert!(folder(FilePath::new("x"), 2).check().is_empty());
}

#[test]
fn what_is_not_taken_is_counted_with_its_reason() {
    let root = TempDir::new().unwrap();
    for name in ["cat/1.png", "cat/.cache/1.png", "cat/deep/.x.png", "dog/1.jpg", "dog/2.JFIF", "__MACOSX/cat/1.png"] {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        small().save_with_format(path, image::ImageFormat::Jpeg).unwrap();
    }
    for name in ["cat/a.avif", "cat/b.AVIF", "cat/c.ppm", "dog/plain", "Thumbs.db"] {
        fs::write(root.path().join(name), "?").unwrap();
    }
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(root.path().join(to), root.path().join(name)).unwrap();
    link("gone.png", "cat/9.png");
    link("cat", "cat/deep/loop");
    link("gone", "dog/elsewhere");
    link("dog/1.jpg", "cat/linked.jpg");
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("dog/s.png")).unwrap();
    let data = folder(root.path(), 2).open().unwrap();
    let labels: Vec<Label> = (0..data.len()).map(|i| data.plain(i).unwrap().label).collect();
    assert_eq!(labels, [Label::Class(0), Label::Class(0), Label::Class(1), Label::Class(1)]);
    warned(
        &*data,
        &[
            "2 skipped: a hidden file or folder (its name starts with a dot)",
            "1 skipped: a folder that archives of macOS contain",
            "2 skipped: an ending that is not read: .avif",
            "1 skipped: an ending that is not read: .ppm",
            "1 skipped: an ending that is not read: .db",
            "1 skipped: a name without an ending",
            "2 skipped: a link that leads nowhere",
            "1 skipped: a link to a folder that contains it",
            "1 skipped: a socket",
        ],
    );
    let classes = folder(root.path().join("cat").as_path(), 2).open();
    assert!(classes.unwrap_err().to_string().contains("1.png: is next to class folders such as"));
}

#[test]
fn a_flat_folder_with_broken_links_keeps_its_images() {
    let root = TempDir::new().unwrap();
    save(&root, "1.png", &small());
    std::os::unix::fs::symlink("gone.png", root.path().join("2.png")).unwrap();
    let data = folder(root.path(), 2).open().unwrap();
    assert_eq!((data.len(), data.source(0)), (1, root.path().join("1.png").display().to_string()));
    warned(&*data, &["1 skipped: a link that leads nowhere; the first is"]);
    assert!(data.how_to_add_classes().unwrap().contains("a sub-folder of its own"));
    let captions = ImageFolder { captions: Captions::Files, ..folder(root.path(), 2) };
    fs::write(root.path().join("1.txt"), "\u{feff}a picture").unwrap();
    fs::write(root.path().join("notes.txt"), "no caption").unwrap();
    let data = captions.open().unwrap();
    assert_eq!(captions_of(&*data), ["a picture"]);
    warned(
        &*data,
        &["1 skipped: a link that leads nowhere", "1 skipped: an ending that is not read: .txt; the first is"],
    );
}

#[test]
fn metadata_with_a_byte_order_mark_or_in_utf16_are_read() {
    let root = TempDir::new().unwrap();
    save(&root, "a.png", &small());
    save(&root, "b.png", &small());
    let lines = "\u{feff}{\"file_name\": \"a.png\", \"text\": \"first\"}\r\n{\"file_name\": \"b.png\", \"text\": \"caf\u{e9}\"}\n";
    let wide: Vec<u8> = lines.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [lines.as_bytes(), &wide] {
        fs::write(root.path().join("metadata.jsonl"), bytes).unwrap();
        let data = ImageFolder { captions: Captions::Metadata, ..folder(root.path(), 2) }.open().unwrap();
        assert_eq!(captions_of(&*data), ["first", "caf\u{e9}"]);
        warned(&*data, &[]);
    }
}

#[test]
fn a_class_folder_without_images_is_allowed_on_request() {
    let root = TempDir::new().unwrap();
    save(&root, "a/1.png", &small());
    fs::create_dir(root.path().join("b")).unwrap();
    assert!(folder(root.path(), 2).open().unwrap_err().to_string().contains("set `allow_empty_classes`"));
    let data = ImageFolder { allow_empty_classes: true, ..folder(root.path(), 2) }.open().unwrap();
    assert_eq!((data.len(), data.info().num_classes), (1, Some(2)));
}

#[test]
fn transparent_images_are_counted_once() {
    let root = TempDir::new().unwrap();
    let image = image::RgbaImage::from_pixel(2, 2, image::Rgba([0, 255, 0, 0]));
    image.save(root.path().join("a.png")).unwrap();
    save(&root, "b.png", &small());
    let config = ImageFolder { background: [255, 0, 0], ..folder(root.path(), 2) };
    let data = config.open().unwrap();
    assert_eq!(data.notes(), Vec::<String>::new());
    for _ in 0..2 {
        let item = data.plain(0).unwrap();
        assert_eq!(item.values, [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]);
        data.plain(1).unwrap();
    }
    let notes = data.notes();
    let expected = "1 image(s) have transparent pixels, which show the background [255, 0, 0]; the first is";
    assert!(notes.len() == 1 && notes[0].starts_with(expected), "{notes:?}");
}

#[test]
fn metadata_match_file_names_in_another_spelling() {
    let root = TempDir::new().unwrap();
    // The file name is decomposed, as in archives made on macOS; the line has the composed name.
    save(&root, "cafe\u{301}.png", &small());
    fs::write(root.path().join("metadata.jsonl"), "{\"file_name\": \"caf\u{e9}.png\", \"text\": \"a cafe\"}").unwrap();
    let data = ImageFolder { captions: Captions::Metadata, ..folder(root.path(), 2) }.open().unwrap();
    assert_eq!(captions_of(&*data), ["a cafe"]);
    warned(&*data, &[]);
}

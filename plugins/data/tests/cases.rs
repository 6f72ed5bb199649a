//! Files that users bring, from public reports about other tools. The files in `cases/` are small examples of each kind.

use data::{ImageFolder, WebDataset};
use framework::data::dataset::{Dataset, DatasetConfig, Label};
use framework::serde_json::{self, json};
use framework_dylib as _;
use std::path::PathBuf;

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

fn folder(name: &str, image_size: usize, captions: &str) -> Box<dyn Dataset> {
    let config: ImageFolder =
        serde_json::from_value(json!({ "path": case(name), "image_size": image_size, "captions": captions })).unwrap();
    config.open().unwrap()
}

/// Returns the colour of the pixel in column `x` and row `y`, in bytes.
fn colour(values: &[f32], size: usize, x: usize, y: usize) -> [u8; 3] {
    [0, 1, 2].map(|channel| ((values[(channel * size + y) * size + x] + 1.0) * 127.5).round() as u8)
}

#[track_caller]
fn near(got: [u8; 3], expected: [u8; 3], name: &str) {
    assert!(
        got.iter().zip(expected).all(|(got, expected)| got.abs_diff(expected) <= 6),
        "{name}: {got:?} {expected:?}"
    );
}

#[test]
fn photographs_with_an_orientation_are_upright() {
    let data = folder("exif", 32, "none");
    assert_eq!(data.len(), 10);
    for index in 0..10 {
        let (values, name) = (data.plain(index).unwrap().values, data.source(index));
        for x in [2, 29] {
            near(colour(&values, 32, x, 2), [220, 30, 30], &name);
            near(colour(&values, 32, x, 29), [30, 60, 220], &name);
        }
    }
    assert_eq!(data.notes(), Vec::<String>::new());
}

#[test]
fn colours_of_transparent_pixels_do_not_show() {
    let data = folder("alpha", 32, "none");
    assert_eq!(data.len(), 5);
    for index in 0..5 {
        let (values, name) = (data.plain(index).unwrap().values, data.source(index));
        near(colour(&values, 32, 0, 0), [255; 3], &name);
        near(colour(&values, 32, 31, 31), [255; 3], &name);
        let centre = if name.ends_with("e_la.png") { [120; 3] } else { [200, 60, 30] };
        near(colour(&values, 32, 16, 16), centre, &name);
    }
    let notes = data.notes();
    assert!(notes.len() == 1 && notes[0].starts_with("5 image(s) have transparent pixels"), "{notes:?}");
}

#[test]
fn a_jpeg_without_its_end_is_damaged() {
    let data = folder("cuts", 8, "none");
    let error = data.plain(0).unwrap_err().to_string();
    assert!(error.contains("a60.jpg: is damaged: the file ends before the image does"), "{error}");
}

#[test]
fn other_endings_are_counted() {
    let data = folder("endings", 8, "none");
    let classes: Vec<Label> = (0..data.len()).map(|index| data.plain(index).unwrap().label).collect();
    assert_eq!(classes, [vec![Label::Class(0); 6], vec![Label::Class(1); 3]].concat());
    let warnings = data.warnings();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, says) in
        warnings.iter().zip(["a name without an ending", "an ending that is not read: .avif", ".ppm"])
    {
        assert!(warning.starts_with("1 skipped: ") && warning.contains(says), "{warning}");
    }
}

#[test]
fn the_first_line_of_metadata_with_a_byte_order_mark_is_read() {
    let data = folder("meta_bom", 8, "metadata");
    let labels: Vec<Label> = (0..data.len()).map(|index| data.label(index).unwrap()).collect();
    assert_eq!(labels, [0, 1, 2].map(|i| Label::Caption(format!("picture number {i}"))));
    assert_eq!(data.warnings(), Vec::<String>::new());
}

#[test]
fn shards_that_are_packed_or_count_from_one_are_refused() {
    let refused = |name: &str| {
        let config: WebDataset = serde_json::from_value(json!({
            "shards": [case("wds").join(name)], "image_size": 8, "condition": "class", "num_classes": 2
        }))
        .unwrap();
        config.open().unwrap_err().to_string()
    };
    let packed = refused("gz_named.tar");
    assert!(packed.contains("compressed with gzip") && packed.is_ascii(), "{packed}");
    let classes = refused("onebased.tar");
    assert!(classes.contains("start at 1, not at 0") && classes.contains("subtract 1"), "{classes}");
}

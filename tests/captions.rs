//! Captions from the dataset to the samples: rows of the grid, metrics, and `sample`. The network reads the letter
//! counts that a conditioner of this test computes.

mod letters;

use framework::data::dataset::{DatasetConfig, Label};
use framework::error::Error;
use serde_json::json;
use std::fs;
use std::path::Path as FilePath;
use unguided::execute;

fn document(metrics: serde_json::Value) -> serde_json::Value {
    json!({
        "version": 1,
        "data": { "type": "shapes", "image_size": 24, "count": 30 },
        "tokenizer": { "type": "vq", "patch_size": 6, "vocabulary": 8, "channels": 3, "rounds": 2 },
        "conditioner": { "type": "letters" },
        "backbone": {
            "type": "llamagen", "dim": 8, "n_layer": 1, "n_head": 2, "vocab_size": 8, "block_size": 16,
            "model_type": "t2i", "cls_token_num": 1, "caption_dim": 26, "multiple_of": 8
        },
        "objective": { "type": "cfg" },
        "train": {
            "steps": 2, "batch_size": 4, "learning_rate": 1e-3, "sample_every": 1, "sample_columns": 2,
            "metric_samples": 20
        },
        "sampler": { "type": "autoregressive" },
        "guidance": { "type": "none" },
        "metrics": metrics
    })
}

#[track_caller]
fn refused(arguments: &[&str]) -> String {
    match execute(arguments) {
        Err(error @ Error::Input(_)) => format!("error: {error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rows_are_captions_and_given_captions_are_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    fs::write(at("a.json"), document(json!([{ "type": "caption_accuracy" }])).to_string()).unwrap();
    execute(["unguided", "train", &at("a.json"), "--run", &at("run")]).unwrap();

    // The first distinct captions of the dataset, at most eight.
    let dataset = data::Shapes { image_size: 24, count: 30, ..serde_json::from_str("{}").unwrap() }.open().unwrap();
    let mut expected: Vec<String> = Vec::new();
    for index in 0..30 {
        let Label::Caption(caption) = dataset.label(index).unwrap() else { panic!() };
        if !expected.contains(&caption) && expected.len() < 8 {
            expected.push(caption);
        }
    }
    let report = fs::read_to_string(at("run/report.md")).unwrap();
    for (row, caption) in expected.iter().enumerate() {
        assert!(report.contains(&format!("{}. {caption}\n", row + 1)), "{report}");
    }
    for part in ["caption_accuracy_of_real | 1.0000", "caption_color_accuracy", "measured on 20 samples"] {
        assert!(report.contains(part), "{part} is missing in\n{report}");
    }

    let asked = ["two small red circles", "anything at all"];
    execute([
        "unguided",
        "sample",
        &at("run"),
        "--caption",
        asked[0],
        "--caption",
        asked[1],
        "--count",
        "2",
        "--output",
        &at("grid.png"),
        "--images",
        &at("images"),
    ])
    .unwrap();
    let written: Vec<String> = (0..4).map(|i| fs::read_to_string(at(&format!("images/{i:06}.txt"))).unwrap()).collect();
    assert_eq!(written, [asked[0], asked[0], asked[1], asked[1]]);
    assert!(!FilePath::new(&at("images/000004.png")).exists());
    // Without `--caption`, `sample` uses the dataset's captions. With `--metrics`, it uses one per image.
    execute([
        "unguided",
        "sample",
        &at("run"),
        "--count",
        "1",
        "--metrics",
        "--output",
        &at("grid.png"),
        "--images",
        &at("own"),
    ])
    .unwrap();
    assert_eq!(fs::read_to_string(at("own/000000.txt")).unwrap(), expected[0]);

    let text = refused(&["unguided", "sample", &at("run"), "--classes", "3"]);
    assert!(text.contains("has no classes") && text.contains("--caption TEXT"), "{text}");
    let error =
        execute(["unguided", "sample", &at("run"), "--metrics", "--caption", "a cat", "--output", &at("cat.png")]);
    let Err(Error::Run(text)) = error else { panic!("{error:?}") };
    assert!(text.contains("cannot read the caption \"a cat\""), "{text}");
}

#[test]
fn a_class_model_takes_no_captions() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run").to_str().unwrap().to_string();
    execute(["unguided", "train", "examples/pipelines/digits-dit-gft-tiny.json", "--run", &run]).unwrap();
    let text = refused(&["unguided", "sample", &run, "--caption", "two small red circles"]);
    assert!(text.contains("--caption") && text.contains("--classes with classes 0 to 9"), "{text}");
}

#[test]
fn metrics_of_captions_need_captions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    let mut wrong = document(json!([{ "type": "caption_accuracy" }, { "type": "class_accuracy" }]));
    wrong["data"]["condition"] = json!("class");
    wrong["data"]["image_size"] = json!(16);
    wrong["tokenizer"]["patch_size"] = json!(4);
    fs::write(&path, wrong.to_string()).unwrap();
    let text = refused(&["unguided", "check", path.to_str().unwrap()]);
    assert!(text.contains("metric \"caption_accuracy\" needs captions; "), "{text}");
    assert!(text.contains("samples are 3x16x16"), "{text}");
}

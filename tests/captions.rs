//! Captions from the dataset to the samples: rows of the grid, metrics, and `sample`. The network reads the letter
//! counts that a conditioner of this test computes.

mod letters;

use framework::burn::tensor::Device;
use framework::data::dataset::{Dataset, DatasetConfig, Label};
use framework::error::Error;
use framework::pipeline::captions::Encodable;
use serde_json::json;
use std::fs;
use std::path::Path as FilePath;
use std::sync::Arc;
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
    let report = fs::read_to_string(at("run/report.html")).unwrap();
    let rows: String = expected.iter().map(|caption| format!("<li>{caption}</li>")).collect();
    assert!(report.contains(&rows), "{rows}\n{report}");
    for part in ["caption accuracy of real", "caption color accuracy", "Measured on 20 samples"] {
        assert!(report.contains(part), "{part} is missing in\n{report}");
    }
    let measured: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(at("run/report.json")).unwrap()).unwrap();
    assert_eq!(measured["caption_accuracy_of_real"], 1.0, "{measured}");

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
    assert!(text.contains("metric \"caption_accuracy\" failed; the samples are written"), "{text}");
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

#[test]
fn a_caption_that_the_conditioner_refuses_costs_one_item() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    fs::create_dir(at("images")).unwrap();
    for i in 0..10 {
        let picture = run_folder::picture::image(&[i as f32 / 10.0; 64], [1, 8, 8]);
        run_folder::picture::save(&picture, FilePath::new(&at(&format!("images/{i}.png")))).unwrap();
        // One word is misspelt, and one caption starts with a byte order mark.
        let caption = ["\u{feff}one red circle", "one rad circle", "one red circle"][i.min(2)];
        fs::write(at(&format!("images/{i}.txt")), caption).unwrap();
    }
    let document = json!({
        "version": 1,
        "data": { "type": "image_folder", "path": at("images"), "image_size": 8, "channels": 1, "captions": "files" },
        "tokenizer": { "type": "pixels" },
        "conditioner": { "type": "words", "length": 4, "words": ["one", "red", "circle"] },
        "backbone": {
            "type": "sd15", "sample_size": 8, "in_channels": 1, "block_out_channels": [8, 8], "layers_per_block": 1,
            "attention": [1], "num_heads": 2, "cross_attention_dim": 16, "norm_num_groups": 8,
            "text_encoder": { "vocab_size": 4, "length": 4, "layers": 1, "num_heads": 2 }
        },
        "objective": { "type": "cfg" },
        "train": { "steps": 10, "batch_size": 2, "learning_rate": 1e-3, "log_every": 1, "sample_columns": 1 },
        "sampler": { "type": "ddpm", "steps": 2 },
        "guidance": { "type": "none" }
    });
    fs::write(at("a.json"), document.to_string()).unwrap();
    execute(["unguided", "train", &at("a.json"), "--run", &at("run")]).unwrap();
    // Ten steps of two are two epochs; the item counts once.
    let lines = fs::read_to_string(at("run/metrics.jsonl")).unwrap();
    let skipped = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["skipped"].as_u64();
    assert_eq!(lines.lines().filter_map(skipped).sum::<u64>(), 1, "{lines}");
    let report = fs::read_to_string(at("run/report.html")).unwrap();
    assert!(report.contains("<li>one red circle</li>") && !report.contains("one rad"), "{report}");

    let mut pipeline = run_folder::document::read(FilePath::new(&at("a.json")), &[]).unwrap();
    pipeline.load(&Device::flex()).unwrap();
    let dataset = pipeline.open_data().unwrap();
    let encodable = Encodable::new(dataset, Arc::new(pipeline));
    let expected = format!(
        "of 10 captions, 1 are refused by the conditioner, so their items are skipped; the first is {}: ",
        at("images/1.png")
    );
    let survey = encodable.survey();
    assert!(survey.len() == 1 && survey[0].starts_with(&expected) && survey[0].contains("`rad`"), "{survey:?}");
    assert!(encodable.label(1).is_err() && encodable.label(0).is_ok());
}

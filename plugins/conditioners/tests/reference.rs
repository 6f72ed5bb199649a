//! Token ids and features equal the results of `transformers` 4.45.2, recorded in `tests/goldens/data` (see
//! MANIFEST.md there).

use conditioners::ClipText;
use framework::burn::store::bridge::to_data;
use framework::burn::tensor::TensorData;
use framework::checkpoint::official;
use framework::checkpoint::open::open;
use framework::checkpoint::tensor_file::save_tensors;
use framework::network::conditioner::Conditioner;
use framework::prelude::*;
use framework::serde_json::{self, json};
use framework_dylib as _;
use goldens::{Golden, close, values};

fn tiny(path: &std::path::Path) -> ClipText {
    serde_json::from_value(json!({
        "path": path, "tokenizer": "unused", "length": 12, "vocab_size": 300, "hidden_size": 24,
        "intermediate_size": 96, "num_layers": 2, "num_heads": 4
    }))
    .unwrap()
}

#[test]
fn features_equal_the_official_code_from_every_format() {
    let golden = Golden::open("sd15_clip.safetensors");
    for (file, format, tolerance) in [
        ("sd15_diffusers_text_encoder.safetensors", "diffusers", 1e-4),
        ("sd15_compvis.ckpt", "compvis", 1e-4),
        // The weights in this file are rounded to 16 bits.
        ("sd15_compvis_fp16.safetensors", "compvis", 5e-3),
    ] {
        let path = goldens::path(file);
        let clip = tiny(&path);
        let (network, report) = official::load_whole(clip.init(&Device::flex()), &clip.formats(), &path).unwrap();
        assert_eq!((report.format.as_str(), report.used.len()), (format, 36), "{report}");
        let out = network.forward(golden.ids("input_ids"));
        close(file, &values(out), &golden.numbers("last_hidden_state"), tolerance);
    }
}

#[test]
fn names_of_transformers_5_and_whole_clips_are_read() {
    let golden = Golden::open("sd15_clip.safetensors");
    let file = open(&goldens::path("sd15_diffusers_text_encoder.safetensors")).unwrap();
    let zeros = |name: &str, shape: &[usize]| {
        (name.to_string(), TensorData::new(vec![0.0_f32; shape.iter().product()], shape.to_vec()))
    };
    let named = |name: &dyn Fn(&str) -> String| -> Vec<_> {
        file.iter().map(|(own, tensor)| (name(own), to_data(tensor).unwrap())).collect()
    };
    let short = named(&|name| name.strip_prefix("text_model.").unwrap_or(name).to_string());
    let mut whole = named(&|name| name.to_string());
    whole.extend([
        zeros("vision_model.embeddings.class_embedding", &[8]),
        zeros("vision_model.encoder.layers.0.mlp.fc1.weight", &[8, 8]),
        zeros("text_projection.weight", &[8, 24]),
        zeros("visual_projection.weight", &[8, 8]),
        zeros("logit_scale", &[1]),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (tensors, format) in [(short, "transformers5"), (whole, "diffusers")] {
        save_tensors(&tensors, &path).unwrap();
        let clip = tiny(&path);
        let (network, report) = official::load_whole(clip.init(&Device::flex()), &clip.formats(), &path).unwrap();
        assert_eq!((report.format.as_str(), report.used.len()), (format, 36), "{report}");
        let out = network.forward(golden.ids("input_ids"));
        close(format, &values(out), &golden.numbers("last_hidden_state"), 1e-4);
    }
}

#[test]
fn token_ids_equal_the_published_tokenizer() {
    let (vocabulary, recorded) =
        (goldens::path("bpe_simple_vocab_16e6.txt.gz"), goldens::path("clip_tokenizer_ids.json"));
    let recorded: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(recorded).unwrap()).unwrap();
    let bpe = conditioners::Bpe::open(&vocabulary).unwrap();
    assert_eq!(bpe.vocabulary(), 49_408);
    assert!(recorded.len() > 5);
    let mut wrong = Vec::new();
    for entry in &recorded {
        let prompt = entry["prompt"].as_str().unwrap();
        let expected: Vec<usize> = serde_json::from_value(entry["ids_hf_sd15"].clone()).unwrap();
        let got = bpe.ids(prompt, 77).unwrap();
        if got != expected {
            wrong.push(format!("{prompt:?}\n  {got:?}\n  {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Encodes a batch of captions, including the null caption, with random weights.
#[test]
fn captions_become_features_and_the_negative_prompt_the_null() {
    let vocabulary = goldens::path("bpe_simple_vocab_16e6.txt.gz");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut clip: ClipText = serde_json::from_value(json!({
        "path": path, "tokenizer": vocabulary, "length": 8, "hidden_size": 4, "intermediate_size": 8,
        "num_layers": 1, "num_heads": 2, "negative": "blurry"
    }))
    .unwrap();
    let draw = |path: &str, _: &[usize]| {
        if path.contains("norm") {
            framework::nn::parameters::Init::Ones
        } else {
            framework::nn::parameters::Init::Normal(0.5)
        }
    };
    let random = framework::random::Random::new(0);
    let network = framework::nn::parameters::initialize(clip.init(&Device::flex()), &random, &draw);
    official::save(&network, &clip.formats()[0], &path).unwrap();
    clip.load(&Device::flex()).unwrap();
    // Each of these words is one token; six tokens fit between start and end.
    assert_eq!(clip.check_caption("a cat on a red mat").unwrap(), None);
    let cut = clip.check_caption("a cat on a red mat again").unwrap().unwrap();
    assert_eq!(cut, "longer than the 6 tokens that the text encoder reads, and cut there");
    let captions = ["a red circle", "blurry", "a red circle"].map(|text| Some(text.to_string()));
    let captions: Vec<Option<String>> = captions.into_iter().chain([None]).collect();
    let Condition::Text { features, null, dropped } = clip.encode(&captions).unwrap() else { panic!("no features") };
    assert_eq!((features.dims(), null.dims(), dropped), ([4, 8, 4], [1, 8, 4], vec![false, false, false, true]));
    let row = |i: usize| values(features.clone().narrow(0, i, 1));
    assert_eq!(row(0), row(2));
    assert_eq!(row(1), row(3));
    assert_eq!(row(3), values(null));
    assert_ne!(row(0), row(1));
}

//! Options of training: precision, starting weights, adapters, workers, learned tokenizers, published sizes.

use super::*;

#[test]
fn precision_and_checkpointing_train_the_same_network() {
    let folder = tempfile::tempdir().unwrap();
    let last_loss = |name: &str, set: &str| {
        let run = folder.path().join(name);
        let output = unguided(&["train", TINY, "--run", run.to_str().unwrap(), "--set", "/metrics=[]", "--set", set]);
        assert!(output.status.success(), "{}", text(&output));
        let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        serde_json::from_str::<serde_json::Value>(lines.lines().last().unwrap()).unwrap()["loss"].as_f64().unwrap()
    };
    let f32 = last_loss("f32", "/train/precision=f32");
    let bf16 = last_loss("bf16", "/train/precision=bf16");
    assert!(bf16 != f32, "bf16 changed nothing");
    // bf16 keeps 8 bits: a single result differs by up to 0.4 %, the mean over a batch by less.
    assert!((bf16 - f32).abs() < 0.004 * f32, "{bf16} against {f32}");
    let medium = last_loss("medium", "/train/stopped_matmul_precision=medium");
    assert!((medium - f32).abs() < 0.001 * f32, "{medium} against {f32}");
    let recomputed = last_loss("recomputed", "/train/gradient_checkpointing=true");
    assert!((recomputed - f32).abs() < 1e-6 * f32, "{recomputed} against {f32}");
}

#[test]
fn fine_tuning_starts_at_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (cfg, gft) = (folder.path().join("cfg"), folder.path().join("gft"));
    let train = |pipeline: &str, run: &Path, sets: &[String]| {
        let mut arguments = vec!["train", pipeline, "--run", run.to_str().unwrap(), "--set", "/metrics=[]"];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        unguided(&arguments)
    };
    let output = train("examples/pipelines/digits-dit-cfg-tiny.json", &cfg, &[]);
    assert!(output.status.success(), "{}", text(&output));
    // With a vanishing learning rate, the run ends where it started: its new guidance input changes nothing.
    let still = [
        format!("/train/from/checkpoint={}", cfg.display()),
        "/train/learning_rate=1e-12".into(),
        "/train/warmup_steps=0".into(),
        "/train/ema=null".into(),
    ];
    let output = train(TINY, &gft, &still);
    assert!(output.status.success() && text(&output).contains("starts at zero"), "{}", text(&output));
    let draw = |run: &Path, name: &str, set: &[&str]| {
        let file = folder.path().join(name);
        let picture = folder.path().join("grid.png");
        let arguments = ["sample", run.to_str().unwrap(), "--count", "1", "--tensors", file.to_str().unwrap()];
        let output = unguided(&[&arguments[..], &["--output", picture.to_str().unwrap()], set].concat());
        assert!(output.status.success(), "{}", text(&output));
        let bytes = fs::read(file).unwrap();
        let x = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("x").unwrap().data().to_vec();
        x.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let one_branch = ["--set", r#"/guidance={"type":"none"}"#];
    let (a, b) = (draw(&cfg, "a", &one_branch), draw(&gft, "b", &["--guidance", "0.3"]));
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    assert!(worst < 1e-3, "{worst}");
    // A network without a guidance input has no parameters for these weights. The message names them.
    let output = train(
        "examples/pipelines/digits-dit-cfg-tiny.json",
        &folder.path().join("back"),
        &[format!("/train/from/checkpoint={}", gft.display())],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("unknown `beta_embedder"), "{}", text(&output));
}

#[test]
fn adapters_and_frozen_parts_train_resume_and_sample() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    let output = unguided(&["train", "examples/pipelines/digits-dit-cfg-tiny.json", "--run", base.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let from = format!("/train/from/checkpoint={}", base.display());
    // Returns each parameter's name and whether training changed it between steps 5 and 15. Also resumes from step 10
    // and checks that the run ends with the same bits.
    let changed = |name: &str, set: &str| {
        let run = folder.path().join(name);
        let arguments = ["train", TINY, "--run", run.to_str().unwrap(), "--set", &from, "--set", set];
        let saved = ["--set", "/train/steps=15", "--set", "/train/save_every=5", "--set", "/train/keep_last=9"];
        let arguments = [&arguments[..], &saved, &["--set", "/metrics=[]"]].concat();
        let output = unguided(&arguments);
        assert!(output.status.success(), "{}", text(&output));
        let at = |step: usize| run.join(format!("checkpoints/step-{step:09}.safetensors"));
        let (early, last) = (tensors(&at(5)), tensors(&at(15)));
        let again = unguided(&[&arguments[..], &["--resume-from", at(10).to_str().unwrap()]].concat());
        assert!(again.status.success(), "{}", text(&again));
        assert!(tensors(&at(15)) == last, "{name}: the resumed run ends with different bits");
        let picture = folder.path().join("grid.png");
        let sampled =
            unguided(&["sample", run.to_str().unwrap(), "--count", "2", "--output", picture.to_str().unwrap()]);
        assert!(sampled.status.success() && picture.exists(), "{}", text(&sampled));
        let pairs = early.into_iter().zip(last).filter(|((name, _), _)| name.starts_with("model/"));
        pairs.map(|((name, early), (_, last))| (name, early != last)).collect::<Vec<_>>()
    };
    let trained = changed("lora", r#"/train/lora={"rank": 2, "parameters": "attn.*\\.weight$"}"#);
    let is_trained = |name: &str| name.contains(".lora.") || name.contains("beta_embedder");
    assert!(trained.iter().any(|(name, _)| name.contains(".lora.b")), "{trained:?}");
    for (name, changed) in &trained {
        assert_eq!(*changed, is_trained(name), "{name}");
    }
    let trained = changed("frozen", r#"/train/frozen=["^x_embedder", "^blocks\\.0\\."]"#);
    for (name, changed) in &trained {
        let frozen = name.starts_with("model/x_embedder") || name.starts_with("model/blocks.0.");
        let frozen = frozen || name == "model/pos_embed"; // a constant table
        assert_eq!(*changed, !frozen, "{name}");
    }
}

#[test]
fn any_number_of_workers_trains_the_same_bits_and_keeps_the_best_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, workers: &str| {
        let run = folder.path().join(name);
        let output = unguided(&[
            "train",
            TINY,
            "--run",
            run.to_str().unwrap(),
            "--set",
            "/metrics=[]",
            "--set",
            "/train/accumulate=3",
            "--set",
            "/train/save_every=5",
            "--set",
            "/train/keep_best=true",
            "--set",
            workers,
        ]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(run.join("checkpoints/best.safetensors").exists());
        tensors(&last_checkpoint(&run))
    };
    assert!(run("one", "/train/workers=1") == run("two", "/train/workers=2"), "the number of workers changes the bits");
}

#[test]
fn a_learned_tokenizer_is_kept_with_its_run() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let document = "examples/pipelines/digits-llamagen-vq-tiny.json";
    let trained = unguided(&["train", document, "--run", &at("run")]);
    assert!(trained.status.success(), "{}", text(&trained));
    assert!(text(&trained).contains("tokenizer learned in"), "{}", text(&trained));
    let codebook = at("run/tokenizer.safetensors");
    let learned = fs::read(&codebook).unwrap();
    // The run and its checkpoints sample with the codebook. A second `train` neither learns it nor trains again.
    let again = unguided(&["train", document, "--run", &at("run")]);
    assert!(again.status.success() && !text(&again).contains("tokenizer learned"), "{}", text(&again));
    let checkpoint = last_checkpoint(&folder.path().join("run"));
    for from in [&at("run"), checkpoint.to_str().unwrap()] {
        let sampled = unguided(&["sample", from, "--count", "1", "--output", &at("samples.png")]);
        assert!(sampled.status.success(), "{}", text(&sampled));
    }
    // Outside its run folder, a checkpoint needs the path of the codebook.
    let alone = at("alone.safetensors");
    fs::copy(&checkpoint, &alone).unwrap();
    let lost = unguided(&["sample", &alone, "--count", "1", "--output", &at("lost.png")]);
    assert_eq!(lost.status.code(), Some(2), "{}", text(&lost));
    assert!(text(&lost).contains("/tokenizer/path"), "{}", text(&lost));
    let set = format!("/tokenizer/path={codebook}");
    let found = unguided(&["sample", &alone, "--count", "1", "--output", &at("found.png"), "--set", &set]);
    assert!(found.status.success(), "{}", text(&found));
    // Another run can use the same file and does not change it.
    let other = unguided(&["train", document, "--run", &at("other"), "--set", &set]);
    assert!(other.status.success() && !text(&other).contains("tokenizer learned"), "{}", text(&other));
    assert!(!folder.path().join("other/tokenizer.safetensors").exists());
    assert_eq!(fs::read(&codebook).unwrap(), learned);
}

#[test]
fn published_sizes_have_the_published_numbers_of_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, document: serde_json::Value| {
        let path = folder.path().join(name);
        fs::write(&path, document.to_string()).unwrap();
        let output = unguided(&["check", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let document = |backbone: serde_json::Value, sampler: &str| {
        serde_json::json!({
            "version": 1,
            "data": { "type": "image_folder", "path": "absent", "image_size": 256, "num_classes": 1000 },
            "tokenizer": { "type": "sd_vae", "path": "absent" },
            "backbone": backbone,
            "objective": { "type": "cfg" },
            "train": { "steps": 1, "batch_size": 1, "learning_rate": 1e-4 },
            "sampler": { "type": sampler, "steps": 50 },
            "guidance": { "type": "cfg", "scale": 4.0 }
        })
    };
    let xl = |name: &str| serde_json::json!({ "type": name, "size": "XL/2", "num_classes": 1000, "learn_sigma": true });
    // Source: 675 M in arXiv:2212.09748 table 1 and arXiv:2401.08740. The count includes the constant position table.
    for (name, sampler) in [("dit", "ddim"), ("sit", "euler")] {
        let said = check(name, document(xl(name), sampler));
        assert!(said.contains("parameters   675,129,632"), "{said}");
    }
    let mut text_to_image = document(serde_json::json!({ "type": "sd15" }), "ddim");
    text_to_image["data"] = serde_json::json!({ "type": "shapes", "image_size": 512 });
    text_to_image["conditioner"] = serde_json::json!({ "type": "clip_text", "path": "absent", "tokenizer": "absent" });
    let said = check("sd15", text_to_image);
    for count in ["859,520,964\n", "83,653,863 in the frozen tokenizer\n", "123,060,480 in the frozen conditioner\n"] {
        assert!(said.contains(count), "{count} is missing in\n{said}");
    }
}

//! `export`: the names, shapes and values of every layout, and what the programs that read it predict.
//!
//! The tests that run other programs need a Python interpreter with torch, diffusers, transformers and peft. Its path
//! is in the environment variable `UNGUIDED_PYTHON`; without it, these tests are reported as skipped.

mod room;

use framework::burn::tensor::{Device, TensorData};
use framework::checkpoint::names::Layout;
use framework::checkpoint::tensor_file::save_tensors;
use framework::network::condition::Condition;
use framework::network::conditioner::Conditioner;
use goldens::{Golden, close, numbers};
use room::{Room, conditioner, inputs, python, stable_diffusion, tensors, values};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use unguided as _;

#[test]
fn a_guidance_free_stable_diffusion_opens_in_diffusers_and_samples_in_one_pass() {
    let room = Room::new();
    let document = stable_diffusion(&room, "gft", json!("scale_of_beta"), json!({}));
    let pipeline = room.write("a.json", &document);
    room.done(&["train", &pipeline, "--run", &room.at("run")]);
    inputs(&room, 0.25);
    let said = room.export("run", "diffusers", "sd", &[]);
    assert!(!said.contains("note:"), "{said}");

    // Without Python: the index, the configuration, and the names and shapes of the recorded files.
    let index = room.json("sd/model_index.json");
    assert_eq!(index["_class_name"], "StableDiffusionPipeline");
    for (part, class) in [
        ("unet", json!(["diffusers", "UNet2DConditionModel"])),
        ("vae", json!(["diffusers", "AutoencoderKL"])),
        ("text_encoder", json!(["transformers", "CLIPTextModel"])),
        ("tokenizer", json!(["transformers", "CLIPTokenizer"])),
        ("scheduler", json!(["diffusers", "DDIMScheduler"])),
        ("safety_checker", json!([null, null])),
    ] {
        assert_eq!(index[part], class, "{part}");
    }
    let config = room.json("sd/unet/config.json");
    let recorded: Value =
        serde_json::from_slice(&fs::read(goldens::path("sd15_diffusers_configs.json")).unwrap()).unwrap();
    for (key, value) in recorded["unet"].as_object().unwrap() {
        let expected = if key == "sample_size" { json!(12) } else { value.clone() };
        assert_eq!(config[key], expected, "{key}");
    }
    assert_eq!(config["time_cond_proj_dim"], 512);
    let shapes = |tensors: &BTreeMap<String, TensorData>| -> BTreeMap<String, Vec<usize>> {
        tensors.iter().map(|(name, data)| (name.clone(), data.shape().to_vec())).collect()
    };
    let mut unet = shapes(&room.tensors("sd/unet/diffusion_pytorch_model.safetensors"));
    assert_eq!(unet.remove("time_embedding.cond_proj.weight"), Some(vec![32, 512]));
    assert_eq!(unet, shapes(&tensors(&goldens::path("sd15_diffusers_unet.safetensors"))));
    let vae = room.tensors("sd/vae/diffusion_pytorch_model.safetensors");
    assert!(vae == tensors(&goldens::path("sd15_diffusers_vae.safetensors")), "the autoencoder's bits");
    let mut text = tensors(&goldens::path("sd15_diffusers_text_encoder.safetensors"));
    text.retain(|name, _| !name.ends_with("position_ids"));
    let written = room.tensors("sd/text_encoder/model.safetensors");
    assert_eq!(written.keys().collect::<Vec<_>>(), text.keys().collect::<Vec<_>>());
    assert_eq!(room.json("sd/tokenizer/vocab.json").as_object().unwrap().len(), 49_408);
    assert_eq!(fs::read_to_string(room.path("sd/tokenizer/merges.txt")).unwrap().lines().count(), 1 + 48_894);

    // Our own reader takes the folder: the document starts from it, and predicts the same bits.
    let own = room.forward("a.json", "run", "in.safetensors");
    assert_eq!(own, room.forward("a.json", "sd", "in.safetensors"));

    // The card states what the issue of a published model is asked for.
    let card = fs::read_to_string(room.path("sd/README.md")).unwrap();
    for part in [
        "library_name: diffusers\npipeline_tag: text-to-image",
        "- arxiv:2501.15420",
        "StableDiffusionPipeline.from_pretrained(\"sd\")",
        "One pass per step: the network reads `guidance_scale`",
        "- Fingerprint",
        "- 8 items",
        "| nfe | 2 |",
        "## Licence",
        "objective `gft`",
        "exponential moving average",
    ] {
        assert!(card.contains(part), "{part} is missing in\n{card}");
    }

    // The weights in training are others, and a folded scale needs no guidance input.
    room.export("run", "diffusers", "online", &["--weights", "online"]);
    let name = "unet/diffusion_pytorch_model.safetensors";
    assert!(room.tensors(&format!("online/{name}")) != room.tensors(&format!("sd/{name}")));
    room.export("run", "diffusers", "folded", &["--scale", "4"]);
    assert_eq!(room.json("folded/unet/config.json")["time_cond_proj_dim"], Value::Null);
    let mut plain = document.clone();
    plain["backbone"]["guidance_input"] = Value::Null;
    room.write("plain.json", &plain);
    close("folded", &room.forward("plain.json", "folded", "plain.safetensors"), &own, 1e-5);

    // One file for programs that read the layout of latent diffusion.
    room.export("run", "compvis", "one", &["--scale", "4"]);
    let one = room.tensors("one/model.ckpt");
    let mut recorded: Vec<String> = tensors(&goldens::path("sd15_compvis.ckpt")).into_keys().collect();
    recorded.retain(|name| ["model.diffusion", "first_stage", "cond_stage"].iter().any(|part| name.contains(part)));
    recorded.retain(|name| !name.ends_with("position_ids"));
    assert_eq!(one.keys().collect::<Vec<_>>(), recorded.iter().collect::<Vec<_>>());
    close("compvis", &room.forward("plain.json", "one/model.ckpt", "plain.safetensors"), &own, 1e-5);

    // diffusers predicts the same, and draws.
    let test = "a_guidance_free_stable_diffusion_opens_in_diffusers_and_samples_in_one_pass";
    let [sd, given, out] = ["sd", "plain.safetensors", "out.safetensors"].map(|name| room.at(name));
    if !python(test, &["unet", &sd, &given, &out, "4"]) {
        return;
    }
    close("unet", &numbers(room.tensors("out.safetensors")["prediction"].clone()), &own, 1e-5);
    python(test, &["unet", &room.at("folded"), &given, &out]);
    close("unet, folded", &numbers(room.tensors("out.safetensors")["prediction"].clone()), &own, 1e-5);
    python(test, &["draw", &sd, "two small red circles", "3", &out]);
    let drawn = room.tensors("out.safetensors");
    assert_eq!(drawn["image"].shape().to_vec(), [24, 24, 3]);
    let mut conditioner = conditioner(&room);
    conditioner.load(&Device::flex()).unwrap();
    let Condition::Text { features, .. } = conditioner.encode(&[Some("two small red circles".into())]).unwrap() else {
        panic!("a text condition")
    };
    close("text", &numbers(drawn["embeds"].clone()), &goldens::values(features), 1e-5);
    save_tensors(&[("latent".into(), drawn["latent"].clone())], &room.path("latent.safetensors")).unwrap();
    let [latent, decoded] = ["latent.safetensors", "decoded.safetensors"].map(|name| room.at(name));
    room.done(&["forward", "--tokenizer", "--pipeline", &pipeline, "--input", &latent, "--output", &decoded]);
    let ours = numbers(room.tensors("decoded.safetensors")["decoded"].clone());
    close("decoded", &numbers(drawn["decoded"].clone()), &ours, 1e-5);
    python(test, &["torch-file", &room.at("one/model.ckpt"), &out]);
    let flat: BTreeMap<String, TensorData> =
        one.into_iter().map(|(name, data)| (name.trim_start_matches("state_dict.").to_string(), data)).collect();
    assert!(room.tensors("out.safetensors") == flat, "torch reads the same bits");
}

#[test]
fn adapters_make_the_round_trip_through_diffusers_in_both_namings() {
    let room = Room::new();
    let lora = json!({ "lora": { "rank": 2, "alpha": 3.0, "parameters": "attn.*\\.weight$|proj_in\\.weight$" } });
    let document = stable_diffusion(&room, "cfg", Value::Null, lora.clone());
    let pipeline = room.write("a.json", &document);
    room.done(&["train", &pipeline, "--run", &room.at("run")]);
    inputs(&room, 1.0);
    room.export("run", "lora", "lora", &[]);
    let merged = room.forward("a.json", "run", "plain.safetensors");
    // The base: the weights that the run started from, as a pipeline.
    let unet = goldens::path("sd15_diffusers_unet.safetensors");
    let plain = stable_diffusion(&room, "cfg", Value::Null, json!({}));
    let plain = room.write("plain.json", &plain);
    room.done(&["convert", "--pipeline", &plain, unet.to_str().unwrap(), &room.at("base.safetensors")]);
    room.export("base.safetensors", "diffusers", "base", &[]);

    // Without Python: the names, the ranks, and the update W' - W = alpha / rank up down.
    let peft = room.tensors("lora/pytorch_lora_weights.safetensors");
    let kohya = room.tensors("lora/kohya.safetensors");
    let module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";
    let [down, up] = ["A", "B"].map(|factor| peft[&format!("unet.{module}.lora_{factor}.weight")].clone());
    assert_eq!((down.shape().to_vec(), up.shape().to_vec()), (vec![2, 24], vec![32, 2]));
    let named = format!("lora_unet_{}", module.replace('.', "_"));
    assert_eq!(kohya[&format!("{named}.lora_down.weight")], down);
    assert_eq!(kohya[&format!("{named}.lora_up.weight")], up);
    assert_eq!(numbers(kohya[&format!("{named}.alpha")].clone()), [3.0]);
    let convolution = "unet.mid_block.attentions.0.proj_in.lora_A.weight";
    assert_eq!(peft[convolution].shape().to_vec(), [2, 64, 1, 1]);
    room.export("run", "safetensors", "merged", &[]);
    let name = format!("{module}.weight");
    let (after, before) =
        (numbers(room.tensors("merged/model.safetensors")[&name].clone()), numbers(tensors(&unet)[&name].clone()));
    let (down, up) = (numbers(down), numbers(up));
    let update: Vec<f64> =
        (0..32 * 24).map(|i| 1.5 * (0..2).map(|r| up[i / 24 * 2 + r] * down[r * 24 + i % 24]).sum::<f64>()).collect();
    let found: Vec<f64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    assert!(update.iter().any(|value| value.abs() > 1e-4), "the adapters were trained");
    close("update", &found, &update, 1e-4);

    let test = "adapters_make_the_round_trip_through_diffusers_in_both_namings";
    let [base, lora_folder, given, out] =
        ["base", "lora", "plain.safetensors", "out.safetensors"].map(|name| room.at(name));
    if !python(test, &["lora", &base, &lora_folder, "pytorch_lora_weights.safetensors", &given, &out]) {
        return;
    }
    let predicted = || numbers(room.tensors("out.safetensors")["prediction"].clone());
    close("diffusers", &predicted(), &merged, 1e-5);
    python(test, &["lora", &base, &lora_folder, "kohya.safetensors", &given, &out]);
    close("kohya", &predicted(), &merged, 1e-5);

    // A guidance-free run also trains its guidance input, which no format of adapters holds.
    let guided = stable_diffusion(&room, "gft", json!("scale_of_beta"), lora);
    let guided = room.write("guided.json", &guided);
    room.done(&["train", &guided, "--run", &room.at("guided")]);
    let said = room.export("guided", "lora", "extra", &[]);
    assert!(said.contains("time_embedding.cond_proj.weight"), "{said}");
    inputs(&room, 0.25);
    python(test, &["extra", &base, &room.at("extra"), &given, &out, "4"]);
    close("with the guidance input", &predicted(), &room.forward("guided.json", "guided", "in.safetensors"), 1e-5);
}

#[test]
fn a_dit_with_a_folded_scale_is_the_transformer_of_diffusers() {
    let room = Room::new();
    let example = "examples/pipelines/digits-dit-gft-tiny.json";
    room.done(&["train", example, "--run", &room.at("run"), "--set", "/train/steps=4"]);
    let refused = room.refused(&["export", &room.at("run"), "--to", "diffusers", &room.at("dit")]);
    assert!(refused.contains("reads no guidance number") && refused.contains("--scale NUMBER"), "{refused}");
    let said = room.export("run", "diffusers", "dit", &["--scale", "2"]);
    assert!(said.contains("note: the run has no part that diffusers calls vae"), "{said}");
    assert!(!room.path("dit/model_index.json").exists());
    let config = room.json("dit/transformer/config.json");
    for (key, value) in [
        ("num_attention_heads", json!(4)),
        ("attention_head_dim", json!(8)),
        ("num_layers", json!(2)),
        ("num_embeds_ada_norm", json!(10)),
        ("norm_eps", json!(1e-6)),
        ("out_channels", json!(1)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let written = room.tensors("dit/transformer/diffusion_pytorch_model.safetensors");
    assert_eq!(written["transformer_blocks.1.attn1.to_v.weight"].shape().to_vec(), [32, 32]);
    assert_eq!(
        written["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"].shape().to_vec(),
        [11, 32]
    );
    assert_eq!(
        written["transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight"],
        written["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.weight"]
    );

    let mut given = vec![
        ("x".to_string(), values(&[3, 1, 8, 8], 1.0)),
        ("t".to_string(), TensorData::new(vec![0.0_f32, 10.0, 999.0], [3])),
        ("y".to_string(), TensorData::new(vec![3_i64, 10, 0], [3])),
    ];
    save_tensors(&given, &room.path("plain.safetensors")).unwrap();
    given.push(("beta".to_string(), TensorData::new(vec![0.5_f32; 3], [3])));
    save_tensors(&given, &room.path("in.safetensors")).unwrap();
    fs::copy(example, room.path("a.json")).unwrap();
    let own = room.forward("a.json", "run", "in.safetensors");
    let test = "a_dit_with_a_folded_scale_is_the_transformer_of_diffusers";
    let [dit, plain, out] = ["dit", "plain.safetensors", "out.safetensors"].map(|name| room.at(name));
    if !python(test, &["dit", &dit, &plain, &out]) {
        return;
    }
    let predicted = room.tensors("out.safetensors");
    close("dit", &numbers(predicted["prediction"].clone()), &own, 1e-5);
    // diffusers spaces the sinusoids of time in another way. The model card has the line that corrects it.
    let stock = numbers(predicted["stock"].clone());
    let apart = stock.iter().zip(&own).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart > 1e-5, "the correction is no longer needed: {apart:e}");
}

#[test]
fn a_published_dit_predicts_in_diffusers_what_the_official_code_recorded() {
    let room = Room::new();
    let document = json!({
        "version": 1, "data": { "type": "image_folder", "path": "absent", "image_size": 16 },
        "tokenizer": {
            "type": "sd_vae", "path": goldens::path("sd15_diffusers_vae.safetensors"), "block_out_channels": [32, 64],
            "layers_per_block": 1
        },
        "backbone": {
            "type": "dit", "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 3,
            "num_heads": 4, "num_classes": 10, "learn_sigma": true
        },
        "objective": { "type": "cfg" }, "train": { "steps": 1, "batch_size": 1, "learning_rate": 1e-3 },
        "sampler": { "type": "ddim", "steps": 10 }, "guidance": { "type": "none" }
    });
    let pipeline = room.write("a.json", &document);
    let published = goldens::path("dit_ckpt_plain.pt");
    room.done(&["convert", "--pipeline", &pipeline, published.to_str().unwrap(), &room.at("native.safetensors")]);
    // The official file comes back with every name and every bit.
    room.export("native.safetensors", "official", "official", &[]);
    assert!(room.tensors("official/model.pt") == tensors(&published));
    room.export("native.safetensors", "diffusers", "dit", &[]);
    assert_eq!(room.json("dit/model_index.json")["_class_name"], "DiTPipeline");
    let card = fs::read_to_string(room.path("dit/README.md")).unwrap();
    assert!(card.contains("time_proj.downscale_freq_shift = 0"), "{card}");
    let golden = Golden::open("dit_forward.safetensors");
    let given = ["x", "t", "y"].map(|name| (name.to_string(), golden.data(name).clone()));
    save_tensors(&given, &room.path("in.safetensors")).unwrap();
    let test = "a_published_dit_predicts_in_diffusers_what_the_official_code_recorded";
    let [dit, given, out] = ["dit", "in.safetensors", "out.safetensors"].map(|name| room.at(name));
    if python(test, &["dit", &dit, &given, &out]) {
        close("dit", &numbers(room.tensors("out.safetensors")["prediction"].clone()), &golden.numbers("out"), 1e-5);
        python(test, &["dit-pipeline", &dit, &out]);
        assert_eq!(room.tensors("out.safetensors")["image"].shape().to_vec(), [16, 16, 3]);
    }
}

#[test]
fn every_backbone_comes_back_bit_for_bit_from_its_official_file() {
    for name in ["dit", "sit", "llamagen", "var", "mar"] {
        let room = Room::new();
        let example = format!("examples/pipelines/digits-{name}-gft-tiny.json");
        let steps = ["--set", "/train/steps=2", "--set", "/metrics=[]", "--set", "/train/save_every=1"];
        room.done(&[&["train", &example, "--run", &room.at("run")][..], &steps].concat());
        room.export("run", "official", "official", &[]);
        let [from, file] = match name {
            "var" | "mar" => ["back.safetensors", "official/model.pth"],
            _ => ["back.safetensors", "official/model.pt"],
        };
        room.done(&["convert", "--pipeline", &example, &room.at(file), &room.at(from)]);
        room.export(from, "safetensors", "back", &["--set", "/train/ema=null"]);
        room.export("run", "safetensors", "out", &[]);
        let (out, back) = (room.tensors("out/model.safetensors"), room.tensors("back/model.safetensors"));
        assert!(!out.is_empty() && out == back, "{name}");
        let entry = match name {
            "llamagen" => "model.",
            "mar" => "model_ema.",
            _ => "",
        };
        let official = room.tensors(file);
        assert!(official.keys().all(|name| name.starts_with(entry)), "{name}");
        let [file, read] = [room.at(file), room.at("read.safetensors")];
        if python("every_backbone_comes_back_bit_for_bit_from_its_official_file", &["torch-file", &file, &read]) {
            let read = room.tensors("read.safetensors");
            assert_eq!(read.len(), official.len());
            assert!(read.iter().all(|(name, data)| official[&format!("{entry}{name}")] == *data), "{name}");
        }
    }
}

#[test]
fn peft_merges_the_adapters_of_a_network_without_a_pipeline() {
    let room = Room::new();
    let example = "examples/pipelines/digits-dit-cfg-tiny.json";
    let lora = [
        "--set",
        "/train/lora={\"rank\": 2, \"alpha\": 3}",
        "--set",
        "/train/steps=3",
        "--set",
        "/train/warmup_steps=0",
    ];
    room.done(&[&["train", example, "--run", &room.at("run")][..], &lora].concat());
    room.export("run", "lora", "lora", &[]);
    room.export("run", "safetensors", "merged", &[]);
    let config = room.json("lora/adapter_config.json");
    assert_eq!((&config["r"], &config["lora_alpha"], &config["peft_type"]), (&json!(2), &json!(3.0), &json!("LORA")));
    let adapters = room.tensors("lora/adapter_model.safetensors");
    let name = "base_model.model.blocks.0.attn.qkv.lora_A.weight";
    assert_eq!(adapters[name].shape().to_vec(), [2, 32]);
    // The base weights are those of the checkpoint, before the adapters.
    let checkpoint =
        fs::read_dir(room.path("run/checkpoints")).unwrap().map(|file| file.unwrap().path()).max().unwrap();
    let base: Vec<(String, TensorData)> = tensors(&checkpoint)
        .into_iter()
        .filter_map(|(name, data)| Some((name.strip_prefix("ema/")?.to_string(), data)))
        .filter(|(name, data)| {
            name.ends_with(".weight") && data.shape().to_vec().len() == 2 && name.starts_with("blocks")
        })
        .map(|(name, data)| (name.replace("ada_ln", "adaLN_modulation.1"), Layout::Transposed.to_foreign(data)))
        .collect();
    assert!(!base.is_empty());
    save_tensors(&base, &room.path("base.safetensors")).unwrap();
    let [base_file, lora, out] = ["base.safetensors", "lora", "out.safetensors"].map(|name| room.at(name));
    if python("peft_merges_the_adapters_of_a_network_without_a_pipeline", &["peft", &base_file, &lora, &out]) {
        let (expected, found) = (room.tensors("merged/model.safetensors"), room.tensors("out.safetensors"));
        assert!(found.len() == base.len());
        for (name, data) in found {
            close(&name, &numbers(data), &numbers(expected[&name].clone()), 1e-6);
        }
    }
}

#[test]
fn layouts_that_do_not_exist_name_those_that_do() {
    let room = Room::new();
    let example = "examples/pipelines/digits-dit-cfg-tiny.json";
    room.done(&["train", example, "--run", &room.at("run"), "--set", "/train/steps=2"]);
    let (run, out) = (room.at("run"), room.at("out"));
    let said = room.refused(&["export", &run, "--to", "lora", &out]);
    for part in ["has no adapters", "/train/lora", "--to diffusers, official, safetensors"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = room.refused(&["export", &run, "--to", "compvis", &out]);
    assert!(said.contains("no compvis format") && said.contains("--to diffusers, official, safetensors"), "{said}");
    let said = room.refused(&["export", &run, "--to", "safetensors", &out, "--scale", "2"]);
    assert!(said.contains("reads no guidance number"), "{said}");
    let said = room.refused(&["export", &room.at("none"), "--to", "official", &out]);
    assert!(said.contains("does not exist"), "{said}");
    let published = goldens::path("dit_ckpt_plain.pt");
    let said = room.refused(&["export", published.to_str().unwrap(), "--to", "official", &out]);
    assert!(said.contains("has no document") && said.contains("unguided convert"), "{said}");
    let sit = "examples/pipelines/digits-sit-cfg-tiny.json";
    room.done(&["train", sit, "--run", &room.at("sit"), "--set", "/train/steps=2"]);
    let said = room.refused(&["export", &room.at("sit"), "--to", "diffusers", &out]);
    assert!(said.contains("no pipeline that samples SiT") && said.contains("--to official, safetensors"), "{said}");
    assert!(!room.path("out").exists(), "a refused export leaves nothing");

    // Nothing is overwritten unasked.
    room.export("run", "official", "out", &[]);
    let before = fs::read(room.path("out/model.pt")).unwrap();
    let said = room.refused(&["export", &run, "--to", "safetensors", &out]);
    assert!(said.contains("contains files") && said.contains("--force"), "{said}");
    assert_eq!(fs::read(room.path("out/model.pt")).unwrap(), before);
    room.export("run", "safetensors", "out", &["--force"]);
    assert!(!room.path("out/model.pt").exists() && room.path("out/model.safetensors").exists());
    fs::write(room.path("out/mine.txt"), "precious").unwrap();
    let said = room.refused(&["export", &run, "--to", "official", &out, "--force"]);
    assert!(said.contains("mine.txt") && room.path("out/mine.txt").exists(), "{said}");
}

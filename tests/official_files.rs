//! `forward` and `convert` on official checkpoints, and on files that do not fit or are damaged.

mod torch;

use framework::burn::store::bridge;
use framework::burn::tensor::TensorData;
use framework::checkpoint::open;
use framework::checkpoint::tensor_file::save_tensors;
use goldens::{Golden, close, numbers};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use unguided as _;

fn unguided(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).output().expect("the command starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// An official checkpoint, its backbone, and the recorded tensors that are its inputs and its output.
struct Case {
    checkpoint: &'static str,
    backbone: Value,
    tokenizer: Value,
    sampler: &'static str,
    recorded: &'static str,
    /// Pairs of the name in the recorded file and the input name of `forward`.
    inputs: &'static [(&'static str, &'static str)],
    answer: &'static str,
}

fn cases() -> Vec<Case> {
    let dit = json!({
        "type": "dit", "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 3,
        "num_heads": 4, "num_classes": 10, "learn_sigma": true
    });
    let llamagen = json!({
        "type": "llamagen", "dim": 64, "n_layer": 3, "n_head": 4, "vocab_size": 64, "block_size": 16, "num_classes": 10
    });
    let mut guided = llamagen.clone();
    guided["guidance_input"] = json!("mlp");
    let var = json!({
        "type": "var", "depth": 3, "embed_dim": 64, "num_heads": 4, "patch_nums": [1, 2, 3, 4], "V": 64, "Cvae": 8,
        "num_classes": 10
    });
    let mut shared = var.clone();
    shared["shared_aln"] = json!(true);
    let (pixels, vq) = (json!({ "type": "pixels" }), json!({ "type": "vq", "vocabulary": 64, "channels": 3 }));
    let levels = json!({
        "type": "var_vqvae", "path": "absent.pth", "vocab_size": 64, "z_channels": 8, "ch_mult": [1, 2],
        "v_patch_nums": [1, 2, 3, 4]
    });
    let case = |checkpoint, backbone: &Value, tokenizer: &Value, sampler, recorded, inputs, answer| Case {
        checkpoint,
        backbone: backbone.clone(),
        tokenizer: tokenizer.clone(),
        sampler,
        recorded,
        inputs,
        answer,
    };
    let tokens: &[_] = &[("z_indices", "ids"), ("cond_idx", "y")];
    let guided_tokens: &[_] = &[("z_indices", "ids"), ("cond_idx", "y"), ("betas", "beta")];
    let features: &[_] = &[("x_BLCv_wo_first_l", "features"), ("label", "y")];
    vec![
        case("dit_ckpt_plain.pt", &dit, &pixels, "ddim", "dit_forward", &[("x", "x"), ("t", "t"), ("y", "y")], "out"),
        case("llamagen_ckpt.pt", &llamagen, &vq, "autoregressive", "llamagen", tokens, "logits_cond"),
        case("gft_llamagen_ckpt.pt", &guided, &vq, "autoregressive", "gft_llamagen_forward", guided_tokens, "logits"),
        case("var_ckpt.pth", &var, &levels, "next_level", "var", features, "logits_cond"),
        case("var_saln_ckpt.pth", &shared, &levels, "next_level", "var_saln", features, "logits_cond"),
    ]
}

impl Case {
    fn document(&self, folder: &Path) -> String {
        let guided = self.backbone.get("guidance_input").is_some();
        let sampler = match self.sampler {
            "ddim" => json!({ "type": "ddim", "steps": 10 }),
            sampler => json!({ "type": sampler }),
        };
        let path = folder.join("pipeline.json");
        let document = json!({
            "version": 1, "data": { "type": "image_folder", "path": "absent", "image_size": 8 },
            "tokenizer": self.tokenizer, "backbone": self.backbone,
            "objective": { "type": if guided { "gft" } else { "cfg" } },
            "train": { "steps": 1, "batch_size": 1, "learning_rate": 1e-3 },
            "sampler": sampler, "guidance": { "type": "none" }
        });
        fs::write(&path, document.to_string()).unwrap();
        path.to_str().unwrap().to_string()
    }
}

#[test]
fn forward_and_convert_take_official_files_and_give_them_back() {
    for case in cases() {
        let golden = Golden::open(&format!("{}.safetensors", case.recorded));
        let checkpoint = goldens::path(case.checkpoint);
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        let pipeline = case.document(folder.path());
        let inputs: Vec<_> =
            case.inputs.iter().map(|(from, to)| ((*to).to_string(), golden.data(from).clone())).collect();
        save_tensors(&inputs, Path::new(&at("in.safetensors"))).unwrap();
        let forward = |weights: &str| {
            let [input, output] = ["in.safetensors", "out.safetensors"].map(at);
            let done = unguided(&[
                "forward",
                "--pipeline",
                &pipeline,
                "--checkpoint",
                weights,
                "--input",
                &input,
                "--output",
                &output,
            ]);
            assert!(done.status.success(), "{}: {}", case.checkpoint, text(&done));
            let file = open::open(Path::new(&output)).unwrap();
            numbers(bridge::to_data(&file["prediction"]).unwrap())
        };
        let official = checkpoint.to_str().unwrap();
        close(case.checkpoint, &forward(official), &golden.numbers(case.answer), 1e-4);
        // Convert to the native format and back. The predictions stay the same to the last bit.
        let expected = forward(official);
        let mut from = official.to_string();
        for name in ["native.safetensors", "official.safetensors"] {
            let done = unguided(&["convert", "--pipeline", &pipeline, &from, &at(name)]);
            assert!(done.status.success(), "{}: {}", case.checkpoint, text(&done));
            assert_eq!(forward(&at(name)), expected, "{} as {name}", case.checkpoint);
            from = at(name);
        }
    }
}

#[test]
fn forward_refuses_a_class_that_the_network_does_not_have() {
    let case = cases().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let pipeline = case.document(folder.path());
    let golden = Golden::open(&format!("{}.safetensors", case.recorded));
    let (x, t) = (golden.data("x").clone(), golden.data("t").clone());
    let batch = t.shape()[0];
    let classes = case.backbone["num_classes"].as_f64().unwrap();
    for (class, accepted) in [(-1.0, false), (0.5, false), (classes + 1.0, false), (classes, true), (0.0, true)] {
        let y = TensorData::new(vec![class; batch], [batch]);
        let inputs = [("x", x.clone()), ("t", t.clone()), ("y", y)].map(|(name, data)| (name.to_string(), data));
        save_tensors(&inputs, Path::new(&at("in.safetensors"))).unwrap();
        let checkpoint = goldens::path(case.checkpoint);
        let done = unguided(&[
            "forward",
            "--pipeline",
            &pipeline,
            "--checkpoint",
            checkpoint.to_str().unwrap(),
            "--input",
            &at("in.safetensors"),
            "--output",
            &at(&format!("{class}.safetensors")),
        ]);
        assert_eq!(done.status.code(), Some(if accepted { 0 } else { 2 }), "{class}: {}", text(&done));
        assert_eq!(text(&done).contains(&format!("`y` contains {class}")), !accepted, "{}", text(&done));
    }
}

#[test]
fn wrong_files_are_refused_with_what_was_expected_and_found() {
    let cases = cases();
    for (i, case) in cases.iter().enumerate() {
        let (own, another) = (goldens::path(case.checkpoint), goldens::path(cases[(i + 2) % cases.len()].checkpoint));
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        let pipeline = case.document(folder.path());
        let refused = |file: &str, what: &[&str]| {
            let done = unguided(&["convert", "--pipeline", &pipeline, file, &at("out.safetensors")]);
            let said = text(&done);
            assert!(!done.status.success(), "{file} was accepted as {}", case.checkpoint);
            assert!(said.contains(file) && what.iter().any(|what| said.contains(what)), "{said}");
            assert!(!Path::new(&at("out.safetensors")).exists(), "{file} left an output file");
        };
        // A checkpoint of another network, or of other sizes.
        refused(another.to_str().unwrap(), &["holds no", "no checkpoint of", "does not fit", "missing", "unknown"]);
        // Truncated checkpoints, and an empty file.
        let bytes = fs::read(&own).unwrap();
        for cut in [0, 10, bytes.len() / 2, bytes.len() - 20] {
            fs::write(at("cut.pt"), &bytes[..cut]).unwrap();
            refused(&at("cut.pt"), &["cannot be read"]);
        }
        refused(&at("absent.pt"), &["does not exist"]);
    }
}

/// The tiny DiT of the recorded references: its document, and its tensors under the official names.
struct Dit {
    folder: tempfile::TempDir,
    pipeline: String,
    tensors: Vec<(String, TensorData)>,
}

impl Dit {
    fn new() -> Self {
        let case = cases().remove(0);
        let folder = tempfile::tempdir().unwrap();
        let pipeline = case.document(folder.path());
        let file = open::open(&goldens::path(case.checkpoint)).unwrap();
        let tensors =
            file.iter().map(|(name, tensor)| (name.clone(), bridge::to_data(tensor).unwrap())).collect::<Vec<_>>();
        Self { folder, pipeline, tensors }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_string()
    }

    /// Writes safetensors with every name under each prefix, and other tensors beside them.
    fn write(&self, name: &str, prefixes: &[&str], others: &[(&str, usize)]) {
        let zeros = |n: usize| TensorData::new(vec![0.0_f32; n], [n]);
        let mut all: Vec<_> = others.iter().map(|(name, n)| ((*name).to_string(), zeros(*n))).collect();
        for prefix in prefixes {
            all.extend(self.tensors.iter().map(|(name, data)| (format!("{prefix}{name}"), data.clone())));
        }
        save_tensors(&all, Path::new(&self.at(name))).unwrap();
    }

    /// Converts a file to safetensors under the official names. Returns what the command said, and the file's bytes.
    fn convert(&self, name: &str) -> (Output, Vec<u8>) {
        let out = self.at("converted.safetensors");
        let _ = fs::remove_file(&out);
        let done = unguided(&["convert", "--pipeline", &self.pipeline, "--to", "official", &self.at(name), &out]);
        (done, fs::read(&out).unwrap_or_default())
    }
}

#[test]
fn containers_are_recognised_by_content() {
    let dit = Dit::new();
    dit.write("plain.safetensors", &[""], &[]);
    let (done, expected) = dit.convert("plain.safetensors");
    assert!(done.status.success(), "{}", text(&done));
    for name in ["a.ckpt", "UPPER.SAFETENSORS", "a.safetensor", "a.bin", "a"] {
        fs::copy(dit.at("plain.safetensors"), dit.at(name)).unwrap();
        let (done, bytes) = dit.convert(name);
        assert!(done.status.success() && bytes == expected, "{name}: {}", text(&done));
    }
    // A file of torch.save under the name of safetensors.
    fs::copy(goldens::path("dit_ckpt_plain.pt"), dit.at("torch.safetensors")).unwrap();
    let (done, bytes) = dit.convert("torch.safetensors");
    assert!(done.status.success() && bytes == expected, "{}", text(&done));
}

#[test]
fn wrappers_are_stripped_with_a_note_and_other_tensors_are_listed() {
    let dit = Dit::new();
    dit.write("plain.safetensors", &[""], &[]);
    let (_, expected) = dit.convert("plain.safetensors");
    for (prefix, note) in [
        ("module.", "the prefix `module.` of a wrapper was stripped"),
        ("_orig_mod.", "`_orig_mod.` of a wrapper was stripped"),
        ("ema_model.", "the prefix `ema_model.` of a wrapper was stripped"),
        ("state_dict.model.", "the prefix `state_dict.model.` of a wrapper was stripped"),
    ] {
        dit.write("a.safetensors", &[prefix], &[("__index", 1), ("denoiser.sigmas", 4), ("step", 1)]);
        let (done, bytes) = dit.convert("a.safetensors");
        let said = text(&done);
        assert!(done.status.success() && bytes == expected, "{prefix}: {said}");
        assert!(said.contains(note), "{said}");
        for name in ["__index", "denoiser.sigmas", "step"] {
            assert!(said.contains(&format!("ignored  {name}: outside the network")), "{said}");
        }
    }
    // A part of the network that the document lacks is refused: without it, the network would compute something else.
    for part in ["blocks.9.attn.qkv.weight", "label_emb.weight"] {
        dit.write("a.safetensors", &["module."], &[(&format!("module.{part}"), 1)]);
        let (done, _) = dit.convert("a.safetensors");
        assert!(!done.status.success() && text(&done).contains(&format!("unknown `module.{part}`")), "{}", text(&done));
    }
}

#[test]
fn files_that_are_no_checkpoints_are_named_as_what_they_are() {
    let dit = Dit::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4f4f\nsize 4265380512\n";
    for (name, content, what) in [
        ("lfs.safetensors", pointer, "it is a Git LFS pointer"),
        ("lfs.ckpt", pointer, "it is a Git LFS pointer"),
        ("html.ckpt", "<!DOCTYPE html><html><head><title>Sign in</title></head>", "it is an HTML page"),
        ("model.gguf", "GGUF\u{3}\0\0\0", "it is a GGUF file"),
        ("empty.pt", "", "it is an empty file"),
    ] {
        fs::write(dit.at(name), content).unwrap();
        let (done, _) = dit.convert(name);
        let said = text(&done);
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(said.contains(name) && said.contains(what) && said.contains("  fix      "), "{said}");
    }
}

#[test]
fn eight_bit_floats_of_torch_are_read() {
    let replaced = |bytes: &[u8], from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|part| part == from).expect("the part is there");
        [&bytes[..at], to, &bytes[at + from.len()..]].concat()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    for (dtype, bytes, expected) in [
        ("float8_e4m3fn", [0x38, 0xb8, 0x7e, 0], [1.0, -1.0, 448.0, 0.0]),
        ("float8_e5m2", [0x3c, 0xbc, 0, 0], [1.0, -1.0, 0.0, 0.0]),
    ] {
        // torch writes a type without a storage class as an untyped storage, and the type as the last argument.
        let tensor = torch::tensor("0", 4, 0, &[2, 2], &[2, 1]);
        let tensor = replaced(&tensor, b"_rebuild_tensor_v2", b"_rebuild_tensor_v3");
        let tensor = replaced(&tensor, b"ctorch\nFloatStorage", b"ctorch.storage\nUntypedStorage");
        let last = [&b"\x89}ctorch\n"[..], dtype.as_bytes(), b"\ntR"].concat();
        let tensor = replaced(&tensor, b"\x89}tR", &last);
        let pickle = torch::whole(&torch::dictionary(&torch::text("a"), &tensor));
        let stored = |name: &str, bytes| torch::Entry { name: name.into(), bytes, hole: 0, method: 0, says: 0 };
        let entries = [("m/data.pkl", &pickle[..]), ("m/data/0", &bytes[..])];
        let entries = entries.map(|(name, bytes)| torch::Entry { says: bytes.len() as u32, ..stored(name, bytes) });
        torch::zip(&mut fs::File::create(&path).unwrap(), &entries).unwrap();
        let tensors = open::open(&path).unwrap();
        assert_eq!(numbers(bridge::to_data(&tensors["a"]).unwrap()), expected, "{dtype}");
        assert_eq!(tensors["a"].shape.to_vec(), [2, 2]);
    }
}

#[test]
fn a_folder_that_contradicts_the_document_is_refused_with_the_line_to_change() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    for name in ["model/unet", "model/scheduler"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::copy(goldens::path("sd15_diffusers_unet.safetensors"), at("model/unet/diffusion_pytorch_model.safetensors"))
        .unwrap();
    let backbone = json!({
        "type": "sd15", "sample_size": 8, "in_channels": 4, "block_out_channels": [32, 64], "layers_per_block": 1,
        "attention": [0], "num_heads": 8, "cross_attention_dim": 24, "norm_num_groups": 16
    });
    let unet = json!({
        "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64], "layers_per_block": 1,
        "attention_head_dim": 8, "cross_attention_dim": 24, "norm_num_groups": 16, "sample_size": 64,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "act_fn": "silu"
    });
    let scheduler = json!({
        "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear"
    });
    fs::write(at("document.json"), json!({ "version": 1, "backbone": backbone }).to_string()).unwrap();
    let said = |unet: &Value, scheduler: &Value| {
        fs::write(at("model/unet/config.json"), unet.to_string()).unwrap();
        fs::write(at("model/scheduler/scheduler_config.json"), scheduler.to_string()).unwrap();
        let _ = fs::remove_file(at("out.safetensors"));
        let done = unguided(&["convert", "--pipeline", &at("document.json"), &at("model"), &at("out.safetensors")]);
        (done.status.code(), text(&done))
    };
    // The files agree. The network reads latents of any size, so `sample_size` is not compared.
    let (code, agreed) = said(&unet, &scheduler);
    assert_eq!(code, Some(0), "{agreed}");
    for (file, key, value, fix) in [
        ("scheduler", "prediction_type", json!("v_prediction"), "set /backbone/process/prediction to \"v\""),
        ("scheduler", "beta_schedule", json!("linear"), "set /backbone/process/betas to \"linear\""),
        ("scheduler", "rescale_betas_zero_snr", json!(true), "set /backbone/process/zero_terminal_snr to true"),
        ("unet", "attention_head_dim", json!(4), "set /backbone/num_heads to 4"),
        ("unet", "norm_num_groups", json!(32), "set /backbone/norm_num_groups to 32"),
        ("unet", "down_block_types", json!(["DownBlock2D", "CrossAttnDownBlock2D"]), "set /backbone/attention to [1]"),
        ("unet", "act_fn", json!("gelu"), "the network computes \"silu\""),
    ] {
        let (mut unet, mut scheduler) = (unet.clone(), scheduler.clone());
        let changed = if file == "unet" { &mut unet } else { &mut scheduler };
        changed[key] = value;
        let (code, said) = said(&unet, &scheduler);
        assert_eq!(code, Some(2), "{key}: {said}");
        assert!(said.contains(fix) && said.contains("config.json says"), "{key}: {said}");
    }
}

#[test]
fn convert_writes_the_container_of_the_file_name_and_never_overwrites_unasked() {
    let dit = Dit::new();
    dit.write("plain.safetensors", &[""], &[]);
    let convert = |more: &[&str], from: &str, to: &str| {
        let (from, to) = (dit.at(from), dit.at(to));
        let done = unguided(&[&["convert", "--pipeline", &dit.pipeline][..], more, &[&from, &to]].concat());
        (done.status.code(), text(&done))
    };
    let expected: Vec<_> = dit.tensors.iter().map(|(name, data)| (name.clone(), numbers(data.clone()))).collect();
    for name in ["out.safetensors", "out.ckpt", "out.pt", "out.bin"] {
        let (code, said) = convert(&["--to", "official"], "plain.safetensors", name);
        assert_eq!(code, Some(0), "{said}");
        let start = fs::read(dit.at(name)).unwrap();
        assert_eq!(start.starts_with(b"PK"), name != "out.safetensors", "{name}");
        let read = open::open(Path::new(&dit.at(name))).unwrap();
        let read: Vec<_> =
            read.iter().map(|(name, tensor)| (name.clone(), numbers(bridge::to_data(tensor).unwrap()))).collect();
        assert!(read == expected, "{name} holds other tensors");
    }
    // An existing file stays as it is, unless --force says otherwise.
    fs::write(dit.at("mine.safetensors"), "mine").unwrap();
    let (code, said) = convert(&["--to", "official"], "plain.safetensors", "mine.safetensors");
    assert_eq!((code, fs::read(dit.at("mine.safetensors")).unwrap()), (Some(2), b"mine".to_vec()), "{said}");
    assert!(said.contains("exists already") && said.contains("--force"), "{said}");
    let (code, said) = convert(&["--to", "official", "--force"], "plain.safetensors", "mine.safetensors");
    assert_eq!(code, Some(0), "{said}");
    // Names that select no container, and a native checkpoint in a container of torch.
    for (name, more, accepts) in [
        ("dit-0.1", &["--to", "official"][..], ".safetensors, or .pt, .pth, .ckpt or .bin"),
        ("dit", &[], ".safetensors, or .pt, .pth, .ckpt or .bin"),
        ("native.ckpt", &[], "accepts  .safetensors"),
        ("absent/a.safetensors", &[], "does not exist"),
    ] {
        let (code, said) = convert(more, "plain.safetensors", name);
        assert_eq!(code, Some(2), "{name}: {said}");
        assert!(said.contains(accepts) && !Path::new(&dit.at(name)).exists(), "{name}: {said}");
    }
}

#[test]
fn a_published_network_is_taken_over_for_other_classes_and_another_size() {
    let dit = Dit::new();
    dit.write("plain.safetensors", &[""], &[]);
    let native = |backbone: &Value| {
        let mut case = cases().remove(0);
        for (key, value) in backbone.as_object().unwrap() {
            case.backbone[key] = value.clone();
        }
        let pipeline = case.document(dit.folder.path());
        let out = dit.at("native.safetensors");
        let done = unguided(&["convert", "--force", "--pipeline", &pipeline, &dit.at("plain.safetensors"), &out]);
        assert!(done.status.success(), "{}", text(&done));
        (framework::checkpoint::Checkpoint::load(Path::new(&out)).unwrap().model, text(&done))
    };
    let (same, said) = native(&json!({}));
    assert!(!said.contains("  note     "), "{said}");
    let differing = |other: &BTreeMap<String, TensorData>| -> Vec<String> {
        same.iter().filter(|(name, data)| other[*name] != **data).map(|(name, _)| name.clone()).collect()
    };
    // Three classes instead of ten. The last row of the table is the null class, and is kept.
    let (classes, said) = native(&json!({ "num_classes": 3 }));
    assert!(said.contains("the embeddings of 3 classes start anew; the null class is kept"), "{said}");
    assert_eq!(differing(&classes), ["y_embedder.embedding_table"]);
    let table = |model: &BTreeMap<String, TensorData>| numbers(model["y_embedder.embedding_table"].clone());
    let (ours, theirs) = (table(&classes), table(&same));
    assert_eq!(ours.len(), 4 * 48);
    assert_eq!(ours[3 * 48..], theirs[10 * 48..]);
    assert!(ours[..48] != theirs[..48]);
    // A latent of twice the side. The positions are computed, and all other weights are the published ones.
    let (larger, said) = native(&json!({ "input_size": 16 }));
    assert!(said.contains("is recomputed for 64 positions instead of 16"), "{said}");
    assert_eq!(differing(&larger), ["pos_embed"]);
    assert_eq!(larger["pos_embed"].shape().to_vec(), [1, 64, 48]);
}

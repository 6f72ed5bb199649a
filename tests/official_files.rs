//! `forward` and `convert` on official checkpoints, and on files that do not fit or are damaged.

use goldens::{Golden, close, numbers};
use serde_json::{Value, json};
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
        framework::checkpoint::tensor_file::save_tensors(&inputs, Path::new(&at("in.safetensors"))).unwrap();
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
            let file = framework::checkpoint::open::open(Path::new(&output)).unwrap();
            numbers(framework::burn::store::bridge::to_data(&file["prediction"]).unwrap())
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

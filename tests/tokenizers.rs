//! `forward --tokenizer` and `convert --tokenizer` on the official files in `tests/goldens/data`.

use framework::burn::tensor::TensorData;
use framework::checkpoint::tensor_file;
use goldens::{Golden, close, numbers, path, tensors};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use unguided as _;

fn unguided(arguments: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).output().expect("the command starts")
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn same(name: &str, got: &TensorData, expected: &[f64]) {
    close(name, &numbers(got.clone()), expected, 1e-4);
}

/// Writes a pipeline with this tokenizer. The backbone's latent size sets the image size when only ids are decoded.
fn document(folder: &Path, tokenizer: Value, input_size: usize) -> PathBuf {
    let path = folder.join("pipeline.json");
    let document = json!({
        "version": 1,
        "data": { "type": "latents", "path": "latents.safetensors" },
        "tokenizer": tokenizer,
        "backbone": { "type": "dit", "size": "S/2", "input_size": input_size },
        "objective": { "type": "cfg" },
        "train": { "steps": 1, "batch_size": 1, "learning_rate": 1e-4 },
        "sampler": { "type": "ddim", "steps": 5 },
        "guidance": { "type": "none" }
    });
    fs::write(&path, document.to_string()).unwrap();
    path
}

/// Runs `forward --tokenizer`. Returns its output and the file that it writes.
fn forward(pipeline: &Path, input: &Path, more: &[&Path]) -> (Output, PathBuf) {
    let output = input.with_extension("out.safetensors");
    let mut arguments = vec![Path::new("forward"), Path::new("--tokenizer"), Path::new("--pipeline"), pipeline];
    arguments.extend([Path::new("--input"), input, Path::new("--output"), &output]);
    arguments.extend(more);
    (unguided(&arguments), output)
}

fn input(folder: &Path, tensors: &[(&str, &TensorData)]) -> PathBuf {
    let path = folder.join("input.safetensors");
    let tensors: Vec<_> = tensors.iter().map(|(name, data)| (name.to_string(), (*data).clone())).collect();
    tensor_file::save_tensors(&tensors, &path).unwrap();
    path
}

#[test]
fn forward_encodes_images_and_decodes_indices() {
    let (golden, checkpoint) = (Golden::open("llamagen_vq.safetensors"), path("llamagen_vq_ckpt.pt"));
    let folder = tempfile::tempdir().unwrap();
    let pipeline = document(
        folder.path(),
        json!({ "type": "vq_f16", "path": checkpoint, "codebook_size": 64, "z_channels": 32,
                "ch": 32, "ch_mult": [2, 1] }),
        4,
    );
    let (output, file) = forward(&pipeline, &input(folder.path(), &[("img", golden.data("img"))]), &[]);
    succeeds(&output);
    let made = tensors(&file);
    assert_eq!(made["indices"].shape().to_vec(), [2, 16]);
    assert_eq!(numbers(made["indices"].clone()), golden.numbers("indices"));
    same("decoded", &made["decoded"], &golden.numbers("decoded"));
    // Decode ids alone, in the shape that `forward` writes and in the official code's flat shape.
    for indices in [&made["indices"], golden.data("indices")] {
        let (output, file) = forward(&pipeline, &input(folder.path(), &[("indices", indices)]), &[]);
        succeeds(&output);
        let decoded = tensors(&file);
        assert_eq!(decoded.keys().collect::<Vec<_>>(), ["decoded"]);
        same("decoded", &decoded["decoded"], &golden.numbers("decoded"));
    }
}

#[test]
fn forward_writes_the_levels_of_a_pyramid() {
    let (golden, checkpoint) = (Golden::open("var_vae.safetensors"), path("var_vae_ckpt.pth"));
    let folder = tempfile::tempdir().unwrap();
    let pipeline = document(
        folder.path(),
        json!({ "type": "var_vqvae", "path": "elsewhere.pth", "vocab_size": 64, "z_channels": 8, "ch": 32,
                "ch_mult": [1, 2], "num_res_blocks": 1, "v_patch_nums": [1, 2, 3, 4] }),
        4,
    );
    let more = [Path::new("--checkpoint"), &checkpoint];
    let (output, file) = forward(&pipeline, &input(folder.path(), &[("img", golden.data("img"))]), &more);
    succeeds(&output);
    let made = tensors(&file);
    let mut expected = Vec::new();
    for sample in 0..2 {
        for level in 0..4 {
            let ids = golden.numbers(&format!("idx.{level}"));
            expected.extend_from_slice(&ids[sample * ids.len() / 2..(sample + 1) * ids.len() / 2]);
        }
    }
    assert_eq!(numbers(made["indices"].clone()), expected);
    same("var_input", &made["var_input"], &golden.numbers("var_input"));
    same("decoded", &made["decoded"], &golden.numbers("rec_img.3"));
    let (output, file) = forward(&pipeline, &input(folder.path(), &[("indices", &made["indices"])]), &more);
    succeeds(&output);
    same("decoded", &tensors(&file)["decoded"], &golden.numbers("rec_img.3"));
}

#[test]
fn forward_encodes_images_and_decodes_latents() {
    let (golden, checkpoint) = (Golden::open("mar_kl16.safetensors"), path("mar_kl16_ckpt.ckpt"));
    let folder = tempfile::tempdir().unwrap();
    let pipeline = document(
        folder.path(),
        json!({ "type": "kl_f16", "path": checkpoint, "z_channels": 4, "ch": 32,
                "ch_mult": [2, 1], "num_res_blocks": 1 }),
        8,
    );
    let (output, file) = forward(&pipeline, &input(folder.path(), &[("img", golden.data("img"))]), &[]);
    succeeds(&output);
    let mean: Vec<f64> = golden.numbers("mean").into_iter().map(|v| v * 0.2325).collect();
    same("latent", &tensors(&file)["latent"], &mean);
    let sample: Vec<f32> = golden.numbers("sample").into_iter().map(|v| (v * 0.2325) as f32).collect();
    let latent = TensorData::new(sample, [2, 4, 8, 8]);
    let (output, file) = forward(&pipeline, &input(folder.path(), &[("latent", &latent)]), &[]);
    succeeds(&output);
    same("decoded", &tensors(&file)["decoded"], &golden.numbers("decoded"));

    // Refused: a wrong size, wrong channels, ids for a continuous tokenizer, an unknown name.
    let zeros = |shape: [usize; 4]| TensorData::new(vec![0.0_f32; shape.iter().product()], shape);
    let ids = TensorData::new(vec![0_i64; 32], [2, 16]);
    for (name, data, accepts) in [
        ("img", &zeros([1, 3, 15, 16]), "3 channels, height and width multiples of 2"),
        ("latent", &zeros([1, 5, 8, 8]), "latent [B, 4, H, W]"),
        ("indices", &ids, "img, or latent [B,C,H,W]"),
        ("x", &zeros([1, 4, 8, 8]), "img [B,C,H,W] in [-1,1], latent or indices"),
    ] {
        let (output, _) = forward(&pipeline, &input(folder.path(), &[(name, data)]), &[]);
        let said = refused(&output);
        assert!(said.contains(&format!("accepts  {accepts}")), "{said}");
    }
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let checkpoint = path("llamagen_vq_ckpt.pt");
    let folder = tempfile::tempdir().unwrap();
    let pipeline = document(
        folder.path(),
        json!({ "type": "vq_f16", "path": checkpoint, "codebook_size": 64, "z_channels": 32,
                "ch": 32, "ch_mult": [2, 1] }),
        4,
    );
    for (ids, shape, accepts) in
        [(vec![64_i64; 16], [1, 16], "ids from 0 to 63"), (vec![0; 15], [1, 15], "indices [B, 16]")]
    {
        let ids = TensorData::new(ids, shape);
        let (output, _) = forward(&pipeline, &input(folder.path(), &[("indices", &ids)]), &[]);
        let said = refused(&output);
        assert!(said.contains(&format!("accepts  {accepts}")), "{said}");
    }
}

#[test]
fn convert_writes_the_official_names_and_reports() {
    let from = path("var_vae_ckpt.pth");
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("vae.safetensors");
    let pipeline = document(
        folder.path(),
        json!({ "type": "var_vqvae", "path": "elsewhere.pth", "vocab_size": 64, "z_channels": 8, "ch": 32,
                "ch_mult": [1, 2], "num_res_blocks": 1, "v_patch_nums": [1, 2, 3, 4] }),
        4,
    );
    let convert = |pipeline: &Path, from: &Path| {
        let arguments = [Path::new("convert"), Path::new("--pipeline"), pipeline, Path::new("--tokenizer"), from, &to];
        unguided(&arguments)
    };
    let said = succeeds(&convert(&pipeline, &from));
    assert!(said.contains("ignored  quantize.ema_vocab_hit_SV: how often training used each code"), "{said}");
    let mut expected = tensors(&from);
    expected.remove("quantize.ema_vocab_hit_SV");
    assert_eq!(tensors(&to), expected);
    // An existing file is never overwritten without --force.
    assert!(refused(&convert(&pipeline, &from)).contains("exists already"));
    fs::remove_file(&to).unwrap();
    let pixels = document(folder.path(), json!({ "type": "pixels" }), 4);
    assert!(refused(&convert(&pixels, &from)).contains("no weights to convert"));
}

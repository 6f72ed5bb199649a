//! Official files load, and the tokenizers encode and decode like the official code. Its results are recorded
//! in `tests/goldens/data` from FoundationVision/LlamaGen ce98ec4, FoundationVision/VAR 78b9539 and LTH14/mar
//! fe470ac, with tiny configurations in f32; see MANIFEST.md there. Run with `--nocapture` to see the errors.

use framework::burn::tensor::TensorData;
use framework::checkpoint::official;
use framework::checkpoint::open;
use framework::checkpoint::tensor_file;
use framework::data::tokenizer::{ImageShape, Tokenizer};
use framework::nn::{Resampling, resize};
use framework::prelude::*;
use framework::process::Latent;
use framework_dylib as _;
use goldens::{Golden, close, numbers, path, tensors, values};
use std::collections::BTreeMap;
use std::path::Path as FilePath;
use tokenizers_builtin::{KlF16, SdVae, VarVqvae, VqF16, phi_of_levels, phi_ticks};

/// Asserts that a result equals the recorded tensor `name`, within the tolerance that the manifest states.
#[track_caller]
fn same<const D: usize>(golden: &Golden, name: &str, got: Tensor<D>) {
    close(name, &values(got), &golden.numbers(name), TOLERANCE);
}

const TOLERANCE: f64 = 1e-4;

fn entry<T: framework::serde::de::DeserializeOwned>(file: &FilePath, fields: &str) -> T {
    let text = format!("{{ \"path\": {:?}, {fields} }}", file.to_str().unwrap());
    framework::serde_json::from_str(&text).unwrap()
}

fn vq(file: &FilePath) -> VqF16 {
    entry(
        file,
        r#""codebook_size": 64, "codebook_embed_dim": 8, "z_channels": 32, "ch": 32, "ch_mult": [2, 1], "num_res_blocks": 2, "codebook_l2_norm": true"#,
    )
}

fn var(file: &FilePath) -> VarVqvae {
    entry(
        file,
        r#""vocab_size": 64, "z_channels": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "v_patch_nums": [1, 2, 3, 4], "share_quant_resi": 4, "quant_conv_ks": 3, "quant_resi": 0.5, "using_znorm": false"#,
    )
}

fn kl(file: &FilePath) -> KlF16 {
    entry(file, r#""ch": 32, "ch_mult": [2, 1], "z_channels": 4, "num_res_blocks": 1"#)
}

const VQ: &str = "llamagen_vq_ckpt.pt";
const VAR: &str = "var_vae_ckpt.pth";
const KL: &str = "mar_kl16_ckpt.ckpt";
const SD_VAE: &str = "sd15_diffusers_vae.safetensors";
const IMAGE: ImageShape = [3, 8, 8];

fn loaded<T: Tokenizer>(mut tokenizer: T) -> T {
    tokenizer.load(&Device::flex()).unwrap();
    tokenizer
}

#[test]
fn vq_f16_encodes_and_decodes_as_the_official_code() {
    let (golden, file) = (Golden::open("llamagen_vq.safetensors"), path(VQ));
    let tokenizer = vq(&file);
    let (network, report) = official::load_whole(tokenizer.init(&Device::flex()), &tokenizer.formats(), &file).unwrap();
    assert_eq!((report.nesting.as_str(), report.ignored.len()), ("model", 1), "{report}");
    assert_eq!(open::open(&file).unwrap().len(), report.used.len() + 1, "{report}");
    let features = network.encoder.forward(golden.tensor("img"));
    same(&golden, "encoder_out", features.clone());
    let features = network.quant_conv.forward(features);
    same(&golden, "h_quant_conv", features.clone());
    let ids = network.quantize(features);
    assert_eq!(numbers(ids.clone().into_data()), golden.numbers("indices"));
    same(&golden, "quant", network.codes(ids.clone(), [4, 4]));
    same(&golden, "codebook_entry", network.codes(golden.ids::<1>("indices").reshape([2, 16]), [4, 4]));

    let tokenizer = loaded(tokenizer);
    assert_eq!(tokenizer.latent_shape(IMAGE).unwrap(), LatentShape::tokens([4, 4], 64));
    let latent = tokenizer.encode(golden.tensor("img"));
    same(&golden, "decoded_from_encode", tokenizer.decode(latent.clone(), IMAGE));
    assert_eq!(numbers(latent.ids().into_data()), golden.numbers("indices"));
    same(&golden, "decoded", tokenizer.decode(Latent::Ids(golden.ids::<1>("indices").reshape([2, 16])), IMAGE));
}

#[test]
fn var_vqvae_encodes_and_decodes_as_the_official_code() {
    let (golden, file) = (Golden::open("var_vae.safetensors"), path(VAR));
    let tokenizer = var(&file);
    let (network, report) = official::load_whole(tokenizer.init(&Device::flex()), &tokenizer.formats(), &file).unwrap();
    // Five official layers fuse three of our layers, each with weight and bias.
    assert_eq!(open::open(&file).unwrap().len(), report.used.len() - 2 * 2 * 5 + 1, "{report}");
    assert_eq!(report.ignored.len(), 1, "{report}");
    let features = network.encoder.forward(golden.tensor("img"));
    same(&golden, "encoder_out", features.clone());
    let features = network.quant_conv.forward(features);
    same(&golden, "f", features.clone());
    let ids = network.quantize(features);
    let sums = network.accumulate(&ids);
    for level in 0..4 {
        assert_eq!(numbers(ids[level].to_data()), golden.numbers(&format!("idx.{level}")));
        same(&golden, &format!("f_hat.{level}"), sums[level].clone());
        same(&golden, &format!("rec_img.{level}"), network.image(sums[level].clone()).clamp(-1.0, 1.0));
    }
    same(&golden, "dec_unclamped", network.image(sums[3].clone()));
    assert_eq!(phi_ticks(4), golden.numbers("phi_ticks"));
    assert_eq!(phi_of_levels(4, 4), golden.indices("phi_index_per_scale"));

    let tokenizer = loaded(tokenizer);
    assert_eq!(tokenizer.latent_shape(IMAGE).unwrap(), LatentShape::pyramid(&[1, 2, 3, 4], 64, 8));
    let latent = tokenizer.encode(golden.tensor("img"));
    let Latent::Levels { ids: all, features } = latent.clone() else { panic!("expected levels") };
    assert_eq!(all.into_data(), Tensor::cat(ids.clone(), 1).into_data());
    same(&golden, "var_input", features.narrow(1, 1, 29));
    same(&golden, "rec_img.3", tokenizer.decode(latent, IMAGE));
    // Like a sampler, compute the features of each level from the tokens of the earlier levels.
    let codec = tokenizer.codec().unwrap();
    for (level, (first, side)) in [(1, 2), (5, 3), (14, 4)].into_iter().enumerate() {
        let next = codec.features(&ids[..=level], 2, &Device::flex());
        assert_eq!(next.dims(), [2, first + side * side, 8]);
        let next = framework::nn::from_positions(next.narrow(1, first, side * side), [side, side]);
        same(&golden, &format!("next_input.{level}"), next);
    }
    same(&golden, "next_input.3", sums[3].clone());
}

#[test]
fn images_are_resized_as_by_the_official_code() {
    let golden = Golden::open("var_vae.safetensors");
    same(&golden, "interp.bicubic", resize(golden.tensor("interp.in"), [4, 4], Resampling::Bicubic));
    for side in [1, 2, 3] {
        same(
            &golden,
            &format!("interp.area{side}"),
            resize(golden.tensor("interp.in2"), [side, side], Resampling::Area),
        );
    }
}

#[test]
fn kl_f16_encodes_and_decodes_as_the_official_code() {
    let (golden, file) = (Golden::open("mar_kl16.safetensors"), path(KL));
    let tokenizer = kl(&file);
    let (network, report) = official::load_whole(tokenizer.init(&Device::flex()), &tokenizer.formats(), &file).unwrap();
    assert_eq!((report.nesting.as_str(), report.ignored.len()), ("model", 0), "{report}");
    same(&golden, "moments", network.moments(golden.tensor("img")));

    let (tokenizer, image) = (loaded(tokenizer), [3, 16, 16]);
    assert_eq!(tokenizer.latent_shape(image).unwrap(), LatentShape::values([8, 8], 4));
    let Latent::Values(x) = tokenizer.encode(golden.tensor("img")) else { panic!("expected values") };
    same(&golden, "mean", framework::nn::from_positions(x / 0.2325, [8, 8]));
    let sample = framework::nn::to_positions(golden.tensor("sample")) * 0.2325;
    same(&golden, "decoded", tokenizer.decode(Latent::Values(sample), image));
}

fn sd_vae(path: &FilePath, posterior: &str) -> SdVae {
    framework::serde_json::from_value(framework::serde_json::json!({
        "path": path, "block_out_channels": [32, 64], "layers_per_block": 1, "posterior": posterior
    }))
    .unwrap()
}

#[test]
fn sd_vae_encodes_and_decodes_as_the_official_codes_from_every_format() {
    let golden = Golden::open("sd15_vae.safetensors");
    let [diffusers, renamed, compvis, rounded] =
        [SD_VAE, "sd15_diffusers_vae_legacy_keys.safetensors", "sd15_compvis.ckpt", "sd15_compvis_fp16.safetensors"]
            .map(path);
    let folder = tempfile::tempdir().unwrap();
    // The released file uses the attention names from before 2023.
    let legacy = folder.path().join("legacy.safetensors");
    let mut all = tensors(&diffusers);
    all.retain(|name, _| !name.contains("attentions"));
    all.extend(tensors(&renamed));
    tensor_file::save_tensors(&all.into_iter().collect::<Vec<_>>(), &legacy).unwrap();
    for (file, format, rounded) in [
        (diffusers, "diffusers", false),
        (legacy, "diffusers_legacy", false),
        (compvis, "compvis", false),
        (rounded, "compvis", true),
    ] {
        let tokenizer = sd_vae(&file, "mean");
        let (network, report) =
            official::load_whole(tokenizer.init(&Device::flex()), &tokenizer.formats(), &file).unwrap();
        assert_eq!(report.format, format, "{report}");
        if rounded {
            continue;
        }
        same(&golden, "moments", network.moments(golden.tensor("img")));
        let (tokenizer, image) = (loaded(tokenizer), [3, 8, 8]);
        assert_eq!(tokenizer.latent_shape(image).unwrap(), LatentShape::values([4, 4], 4));
        let Latent::Values(x) = tokenizer.encode(golden.tensor("img")) else { panic!("expected values") };
        same(&golden, "mean", framework::nn::from_positions(x / 0.18215, [4, 4]));
        let sample = framework::nn::to_positions(golden.tensor("sample")) * 0.18215;
        same(&golden, "decoded", tokenizer.decode(Latent::Values(sample), image));
    }
}

#[test]
fn a_draw_of_sd_vae_lies_about_the_mean_as_the_variance_says() {
    let (golden, file) = (Golden::open("sd15_vae.safetensors"), path(SD_VAE));
    let tokenizer = loaded(sd_vae(&file, "sample"));
    let draw = |images| {
        let Latent::Values(x) = tokenizer.encode(images) else { panic!("expected values") };
        framework::nn::from_positions(x / 0.18215, [4, 4])
    };
    let images: Tensor<4> = golden.tensor("img");
    let noise = values((draw(images.clone()) - golden.tensor("mean")) / golden.tensor("std"));
    let mean_square = noise.iter().map(|v| v * v).sum::<f64>() / noise.len() as f64;
    assert!((0.5..1.7).contains(&mean_square), "{mean_square}");
    assert_eq!(draw(images.clone()).into_data(), draw(images).into_data());
}

/// Asserts that a converted file holds the same values under the same names, and that it loads.
#[track_caller]
fn converts(tokenizer: &dyn Tokenizer, from: &FilePath, nesting: &str, ignored: &str) {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("converted.safetensors");
    let report = tokenizer.convert(from, &to, None).unwrap().expect("the tokenizer has weights");
    let (theirs, ours) = (tensors(from), tensors(&to));
    let kept: BTreeMap<String, TensorData> = theirs
        .into_iter()
        .map(|(name, data)| (name.strip_prefix(nesting).unwrap().to_string(), data))
        .filter(|(name, _)| name != ignored)
        .collect();
    assert_eq!(ours, kept);
    let again = tokenizer.convert(&to, &folder.path().join("again.safetensors"), None).unwrap().unwrap();
    assert_eq!((again.used.len(), again.ignored.len()), (report.used.len(), 0));
}

#[test]
fn conversion_keeps_names_and_numbers() {
    let [vq_file, var_file, kl_file] = [VQ, VAR, KL].map(path);
    converts(&vq(&vq_file), &vq_file, "model.", "quantize.codebook_used");
    converts(&var(&var_file), &var_file, "", "quantize.ema_vocab_hit_SV");
    converts(&kl(&kl_file), &kl_file, "model.", "");
}

/// Returns the error message of `load`.
fn refusal(mut tokenizer: impl Tokenizer) -> String {
    tokenizer.load(&Device::flex()).expect_err("the file is refused").to_string()
}

#[track_caller]
fn says(refusal: &str, all: &[&str]) {
    for part in all {
        assert!(refusal.contains(part), "`{part}` is not in:\n{refusal}");
    }
}

#[test]
fn another_tokenizers_file_is_refused() {
    let [vq_file, var_file, kl_file] = [VQ, VAR, KL].map(path);
    let vq_of_var = refusal(vq(&var_file));
    says(&vq_of_var, &[VAR, "missing `encoder.conv_blocks.0.res.0.norm1.weight` [32]", "unknown `decoder.mid", "more"]);
    let var_of_vq = refusal(var(&vq_file));
    says(&var_of_vq, &["holds no `encoder.conv_in.weight`", "its first tensors are [\"model.decoder.conv_blocks"]);
    let kl_of_vq = refusal(kl(&vq_file));
    says(
        &kl_of_vq,
        &["missing `model.encoder.down.0.block.0.norm1.weight` [32]", "unknown `model.decoder.conv_blocks"],
    );
    let vq_of_kl = refusal(vq(&kl_file));
    says(&vq_of_kl, &["missing `model.encoder.conv_blocks.0.res.0.norm1.weight` [32]", "unknown `model.decoder."]);
    // A file whose tensors are not weights.
    let numbers = path("mar_kl16.safetensors");
    says(&refusal(kl(&numbers)), &["holds no `encoder.conv_in.weight`", "decoded"]);
}

#[test]
fn other_sizes_are_refused() {
    let [vq_file, var_file, kl_file] = [VQ, VAR, KL].map(path);
    let mut wrong = vq(&vq_file);
    wrong.codebook_size = 128;
    says(&refusal(wrong), &["`model.quantize.embedding.weight` is [64, 8]; the document asks for [128, 8]"]);
    let mut wrong = var(&var_file);
    wrong.ch = 64;
    says(&refusal(wrong), &["`encoder.conv_in.weight` is [32, 3, 3, 3]; the document asks for [64, 3, 3, 3]", "more"]);
    let mut wrong = var(&var_file);
    wrong.share_quant_resi = 2;
    says(&refusal(wrong), &["unknown `quantize.quant_resi.qresi_ls.2.bias` [8]"]);
    let mut wrong = kl(&kl_file);
    wrong.num_res_blocks = 2;
    says(&refusal(wrong), &["missing `model.encoder.down.0.block.1.norm1.weight` [64]"]);
}

#[test]
fn truncated_and_missing_files_are_refused() {
    let [vq_file, var_file, kl_file] = [VQ, VAR, KL].map(path);
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in [(VQ, vq_file), (VAR, var_file.clone()), (KL, kl_file)] {
        let whole = std::fs::read(file).unwrap();
        for share in [0.0, 0.001, 0.5, 0.999] {
            let cut = folder.path().join(name);
            std::fs::write(&cut, &whole[..(whole.len() as f64 * share) as usize]).unwrap();
            let said = match name {
                VQ => refusal(vq(&cut)),
                VAR => refusal(var(&cut)),
                _ => refusal(kl(&cut)),
            };
            says(&said, &[name, "cannot be read as a checkpoint"]);
        }
    }
    let converted = folder.path().join("vae.safetensors");
    var(&var_file).convert(&var_file, &converted, None).unwrap();
    let whole = std::fs::read(&converted).unwrap();
    std::fs::write(&converted, &whole[..whole.len() / 2]).unwrap();
    says(&refusal(var(&converted)), &["vae.safetensors", "cannot be read as a checkpoint"]);
    says(&refusal(var(&folder.path().join("absent.pth"))), &["absent.pth", "no such file"]);
}

/// Returns a pickle that calls `system("touch MARKER")`, at its root or as the entry `encoder.conv_in.weight`
/// of a state dict.
fn hostile(marker: &FilePath, at_root: bool) -> Vec<u8> {
    let text = |text: &str| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let call = [b"cposix\nsystem\n".as_slice(), &text(&format!("touch {}", marker.display())), b"\x85R"].concat();
    let body = if at_root { call } else { [b"}", &text("encoder.conv_in.weight")[..], &call, b"s"].concat() };
    [b"\x80\x02", &body[..], b"."].concat()
}

/// Returns a zip archive with one uncompressed entry, in the layout of `torch.save`.
fn zipped(name: &str, content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(content);
    let (size, length) = ((content.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
    // Version 2.0, no flags, uncompressed, no time stamp.
    let entry = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &crc.sum().to_le_bytes()[..], &size, &size, &length].concat();
    let local = [b"PK\x03\x04", &entry[..], &[0; 2], name.as_bytes(), content].concat();
    let central = [b"PK\x01\x02\x14\x00", &entry[..], &[0; 16], name.as_bytes()].concat();
    let (start, extent) = ((local.len() as u32).to_le_bytes(), (central.len() as u32).to_le_bytes());
    let end = [b"PK\x05\x06", &[0, 0, 0, 0, 1, 0, 1, 0][..], &extent, &start, &[0; 2]].concat();
    [local, central, end].concat()
}

#[test]
fn code_in_a_pickle_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("it-ran");
    for at_root in [true, false] {
        let pickle = hostile(&marker, at_root);
        for (name, bytes) in [("plain.pt", pickle.clone()), ("zip.pt", zipped("archive/data.pkl", &pickle))] {
            let file = folder.path().join(name);
            std::fs::write(&file, bytes).unwrap();
            let expected = match (name, at_root) {
                ("plain.pt", _) => "neither a zip nor a legacy file of torch.save",
                (_, true) => "Expected a dictionary at the root of the PyTorch file, found posix.system",
                // The pickle has the call in place of the tensor, so the tensor is missing.
                (_, false) => "encoder.conv_in.weight",
            };
            for said in [refusal(vq(&file)), refusal(var(&file)), refusal(kl(&file))] {
                says(&said, &[name, expected]);
            }
            assert!(!marker.exists(), "{name} ran its code");
        }
    }
}

/// Checks that the pickle is hostile: Python executes it.
#[test]
fn the_hostile_pickle_runs_in_python() {
    let folder = tempfile::tempdir().unwrap();
    let (marker, file) = (folder.path().join("it-ran"), folder.path().join("hostile.pkl"));
    std::fs::write(&file, hostile(&marker, false)).unwrap();
    let script = format!("import pickle; pickle.load(open({:?}, 'rb'))", file.to_str().unwrap());
    match std::process::Command::new("python3").args(["-c", &script]).status() {
        Ok(status) if status.success() => assert!(marker.exists()),
        _ => goldens::skipped("the_hostile_pickle_runs_in_python", "python3 is missing"),
    }
}

//! Official files load, and encode and decode as the official code does, recorded in `shared/goldens`
//! (FoundationVision/LlamaGen ce98ec4, FoundationVision/VAR 78b9539 and LTH14/mar fe470ac, tiny configurations, f32; see
//! MANIFEST.md there). Run with `--nocapture` to see the errors.

use framework::burn::store::bridge;
use framework::burn::tensor::TensorData;
use framework::foreign;
use framework::nn::{Resampling, resize};
use framework::prelude::*;
use framework::process::Latent;
use framework::tokenizer::{ImageShape, Tokenizer};
use framework_dylib as _;
use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use tokenizers_builtin::{KlF16, SdVae, VarVqvae, VqF16};

fn goldens() -> Option<PathBuf> {
    let folder = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/goldens");
    if folder.exists() {
        return Some(folder);
    }
    eprintln!("skipped: {} is absent", folder.display());
    None
}

struct Golden(BTreeMap<String, TensorData>);

impl Golden {
    fn read(path: &FilePath) -> Self {
        let file = foreign::open(path).unwrap();
        Self(file.iter().map(|(name, tensor)| (name.clone(), bridge::to_data(tensor).unwrap())).collect())
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        self.0[name].clone().convert::<f64>().try_into_vec::<f64>().unwrap()
    }

    fn image(&self, name: &str) -> Tensor<4> {
        Tensor::from_data(self.0[name].clone(), &Device::flex())
    }

    fn ids(&self, name: &str, batch: usize) -> Tensor<2, Int> {
        let ids: Vec<i64> = self.numbers(name).into_iter().map(|id| id as i64).collect();
        let length = ids.len() / batch;
        Tensor::from_data(TensorData::new(ids, [batch, length]), &Device::flex())
    }

    /// The manifest's tolerance for forward passes: relative to the largest number of the reference.
    #[track_caller]
    fn close(&self, name: &str, got: impl Into<Numbers>) {
        let (got, expected) = (got.into().0, self.numbers(name));
        assert_eq!(got.len(), expected.len(), "{name}");
        let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        let worst = got.iter().zip(&expected).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
        eprintln!("{name:<22} {:.1e} of {TOLERANCE:.0e}", worst / largest);
        assert!(worst <= TOLERANCE * largest, "{name}: {worst:e} against {largest:e}");
    }

    #[track_caller]
    fn exact(&self, name: &str, got: impl Into<Numbers>) {
        assert_eq!(got.into().0, self.numbers(name), "{name}");
    }
}

const TOLERANCE: f64 = 1e-4;

struct Numbers(Vec<f64>);

impl<const D: usize, K: framework::burn::tensor::kind::Basic> From<Tensor<D, K>> for Numbers {
    fn from(x: Tensor<D, K>) -> Self {
        Self(x.into_data().convert::<f64>().try_into_vec().unwrap())
    }
}

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
const IMAGE: ImageShape = [3, 8, 8];

fn loaded<T: Tokenizer>(mut tokenizer: T) -> T {
    tokenizer.load(&Device::flex()).unwrap();
    tokenizer
}

#[test]
fn vq_f16_encodes_and_decodes_as_the_official_code() {
    let Some(goldens) = goldens() else { return };
    let golden = Golden::read(&goldens.join("llamagen_vq.safetensors"));
    let tokenizer = vq(&goldens.join(VQ));
    let (network, report) =
        foreign::load_whole(tokenizer.init(&Device::flex()), &tokenizer.formats(), &goldens.join(VQ)).unwrap();
    assert_eq!((report.nesting.as_str(), report.ignored.len()), ("model", 1), "{report}");
    assert_eq!(foreign::open(&goldens.join(VQ)).unwrap().len(), report.used.len() + 1, "{report}");
    let features = network.encoder.forward(golden.image("img"));
    golden.close("encoder_out", features.clone());
    let features = network.quant_conv.forward(features);
    golden.close("h_quant_conv", features.clone());
    let ids = network.quantize(features);
    golden.exact("indices", ids.clone());
    golden.close("quant", network.codes(ids.clone(), [4, 4]));
    golden.close("codebook_entry", network.codes(golden.ids("indices", 2), [4, 4]));

    let tokenizer = loaded(tokenizer);
    assert_eq!(tokenizer.latent_shape(IMAGE).unwrap(), LatentShape::tokens([4, 4], 64));
    let latent = tokenizer.encode(golden.image("img"));
    golden.close("decoded_from_encode", tokenizer.decode(latent.clone(), IMAGE));
    golden.exact("indices", latent.ids());
    golden.close("decoded", tokenizer.decode(Latent::Ids(golden.ids("indices", 2)), IMAGE));
}

#[test]
fn var_vqvae_encodes_and_decodes_as_the_official_code() {
    let Some(goldens) = goldens() else { return };
    let golden = Golden::read(&goldens.join("var_vae.safetensors"));
    let tokenizer = var(&goldens.join(VAR));
    let (network, report) =
        foreign::load_whole(tokenizer.init(&Device::flex()), &tokenizer.formats(), &goldens.join(VAR)).unwrap();
    // Three parameters of each of five fused tensors, weight and bias.
    assert_eq!(foreign::open(&goldens.join(VAR)).unwrap().len(), report.used.len() - 2 * 2 * 5 + 1, "{report}");
    assert_eq!(report.ignored.len(), 1, "{report}");
    let features = network.encoder.forward(golden.image("img"));
    golden.close("encoder_out", features.clone());
    let features = network.quant_conv.forward(features);
    golden.close("f", features.clone());
    let ids = network.quantize(features);
    let sums = network.accumulate(&ids);
    for level in 0..4 {
        golden.exact(&format!("idx.{level}"), ids[level].clone());
        golden.close(&format!("f_hat.{level}"), sums[level].clone());
        golden.close(&format!("rec_img.{level}"), network.image(sums[level].clone()).clamp(-1.0, 1.0));
    }
    golden.close("dec_unclamped", network.image(sums[3].clone()));
    golden.exact("phi_ticks", Ticks(tokenizers_builtin::phi_ticks(4)));
    golden.exact(
        "phi_index_per_scale",
        Ticks(tokenizers_builtin::phi_of_levels(4, 4).into_iter().map(|i| i as f64).collect()),
    );

    let tokenizer = loaded(tokenizer);
    assert_eq!(tokenizer.latent_shape(IMAGE).unwrap(), LatentShape::pyramid(&[1, 2, 3, 4], 64, 8));
    let latent = tokenizer.encode(golden.image("img"));
    let Latent::Levels { ids: all, features } = latent.clone() else { panic!("levels") };
    assert_eq!(Numbers::from(all).0, Numbers::from(Tensor::cat(ids.clone(), 1)).0);
    golden.close("var_input", features.narrow(1, 1, 29));
    golden.close("rec_img.3", tokenizer.decode(latent, IMAGE));
    // One level after another, as a sampler asks: from the tokens so far to what the next level reads.
    let codec = tokenizer.codec().unwrap();
    for (level, (first, side)) in [(1, 2), (5, 3), (14, 4)].into_iter().enumerate() {
        let next = codec.features(&ids[..=level], 2, &Device::flex());
        assert_eq!(next.dims(), [2, first + side * side, 8]);
        let next = framework::nn::from_positions(next.narrow(1, first, side * side), [side, side]);
        golden.close(&format!("next_input.{level}"), next);
    }
    golden.close("next_input.3", sums[3].clone());
}

struct Ticks(Vec<f64>);

impl From<Ticks> for Numbers {
    fn from(Ticks(ticks): Ticks) -> Self {
        Self(ticks)
    }
}

#[test]
fn images_are_resized_as_by_the_official_code() {
    let Some(goldens) = goldens() else { return };
    let golden = Golden::read(&goldens.join("var_vae.safetensors"));
    golden.close("interp.bicubic", resize(golden.image("interp.in"), [4, 4], Resampling::Bicubic));
    for side in [1, 2, 3] {
        golden.close(&format!("interp.area{side}"), resize(golden.image("interp.in2"), [side, side], Resampling::Area));
    }
}

#[test]
fn kl_f16_encodes_and_decodes_as_the_official_code() {
    let Some(goldens) = goldens() else { return };
    let golden = Golden::read(&goldens.join("mar_kl16.safetensors"));
    let tokenizer = kl(&goldens.join(KL));
    let (network, report) =
        foreign::load_whole(tokenizer.init(&Device::flex()), &tokenizer.formats(), &goldens.join(KL)).unwrap();
    assert_eq!((report.nesting.as_str(), report.ignored.len()), ("model", 0), "{report}");
    golden.close("moments", network.moments(golden.image("img")));

    let (tokenizer, image) = (loaded(tokenizer), [3, 16, 16]);
    assert_eq!(tokenizer.latent_shape(image).unwrap(), LatentShape::values([8, 8], 4));
    let Latent::Values(x) = tokenizer.encode(golden.image("img")) else { panic!("numbers") };
    golden.close("mean", framework::nn::from_positions(x / 0.2325, [8, 8]));
    let sample = framework::nn::to_positions(golden.image("sample")) * 0.2325;
    golden.close("decoded", tokenizer.decode(Latent::Values(sample), image));
}

fn sd_vae(path: &FilePath, posterior: &str) -> SdVae {
    framework::serde_json::from_value(framework::serde_json::json!({
        "path": path, "block_out_channels": [32, 64], "layers_per_block": 1, "posterior": posterior
    }))
    .unwrap()
}

#[test]
fn sd_vae_encodes_and_decodes_as_the_official_codes_from_every_format() {
    let Some(goldens) = goldens() else { return };
    let golden = Golden::read(&goldens.join("sd15_vae.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    // The released file: attention under the names it had then.
    let legacy = folder.path().join("legacy.safetensors");
    let mut all = Golden::read(&goldens.join("sd15_diffusers_vae.safetensors")).0;
    all.retain(|name, _| !name.contains("attentions"));
    all.extend(Golden::read(&goldens.join("sd15_diffusers_vae_legacy_keys.safetensors")).0);
    foreign::save_tensors(&all.into_iter().collect::<Vec<_>>(), &legacy).unwrap();
    for (file, format, rounded) in [
        (goldens.join("sd15_diffusers_vae.safetensors"), "diffusers", false),
        (legacy, "diffusers_legacy", false),
        (goldens.join("sd15_compvis.ckpt"), "compvis", false),
        (goldens.join("sd15_compvis_fp16.safetensors"), "compvis", true),
    ] {
        let tokenizer = sd_vae(&file, "mean");
        let (network, report) =
            foreign::load_whole(tokenizer.init(&Device::flex()), &tokenizer.formats(), &file).unwrap();
        assert_eq!(report.format, format, "{report}");
        if rounded {
            continue;
        }
        golden.close("moments", network.moments(golden.image("img")));
        let (tokenizer, image) = (loaded(tokenizer), [3, 8, 8]);
        assert_eq!(tokenizer.latent_shape(image).unwrap(), LatentShape::values([4, 4], 4));
        let Latent::Values(x) = tokenizer.encode(golden.image("img")) else { panic!("numbers") };
        golden.close("mean", framework::nn::from_positions(x / 0.18215, [4, 4]));
        let sample = framework::nn::to_positions(golden.image("sample")) * 0.18215;
        golden.close("decoded", tokenizer.decode(Latent::Values(sample), image));
    }
}

#[test]
fn a_draw_of_sd_vae_lies_about_the_mean_as_the_variance_says() {
    let Some(goldens) = goldens() else { return };
    let golden = Golden::read(&goldens.join("sd15_vae.safetensors"));
    let file = goldens.join("sd15_diffusers_vae.safetensors");
    let tokenizer = loaded(sd_vae(&file, "sample"));
    let draw = |images| {
        let Latent::Values(x) = tokenizer.encode(images) else { panic!("numbers") };
        framework::nn::from_positions(x / 0.18215, [4, 4])
    };
    let images: framework::prelude::Tensor<4> = golden.image("img");
    let noise = (draw(images.clone()) - golden.image("mean")) / golden.image("std");
    let noise = noise.into_data().convert::<f64>().try_into_vec::<f64>().unwrap();
    let mean_square = noise.iter().map(|v| v * v).sum::<f64>() / noise.len() as f64;
    assert!((0.5..1.7).contains(&mean_square), "{mean_square}");
    assert_eq!(draw(images.clone()).into_data(), draw(images).into_data());
}

/// Converted, a file holds the same numbers under the same names, and loads as before.
#[track_caller]
fn converts(tokenizer: &dyn Tokenizer, from: &FilePath, nesting: &str, ignored: &str) {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("converted.safetensors");
    let report = tokenizer.convert(from, &to, None).unwrap().expect("it has weights");
    let (theirs, ours) = (Golden::read(from).0, Golden::read(&to).0);
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
    let Some(goldens) = goldens() else { return };
    let [vq_file, var_file, kl_file] = [VQ, VAR, KL].map(|name| goldens.join(name));
    converts(&vq(&vq_file), &vq_file, "model.", "quantize.codebook_used");
    converts(&var(&var_file), &var_file, "", "quantize.ema_vocab_hit_SV");
    converts(&kl(&kl_file), &kl_file, "model.", "");
}

/// What loading says.
fn refusal(mut tokenizer: impl Tokenizer) -> String {
    tokenizer.load(&Device::flex()).expect_err("it is refused").to_string()
}

#[track_caller]
fn says(refusal: &str, all: &[&str]) {
    for part in all {
        assert!(refusal.contains(part), "`{part}` is not in:\n{refusal}");
    }
}

#[test]
fn another_tokenizers_file_is_refused() {
    let Some(goldens) = goldens() else { return };
    let vq_of_var = refusal(vq(&goldens.join(VAR)));
    says(&vq_of_var, &[VAR, "missing `encoder.conv_blocks.0.res.0.norm1.weight` [32]", "unknown `decoder.mid", "more"]);
    let var_of_vq = refusal(var(&goldens.join(VQ)));
    says(&var_of_vq, &["holds no `encoder.conv_in.weight`", "its first tensors are [\"model.decoder.conv_blocks"]);
    let kl_of_vq = refusal(kl(&goldens.join(VQ)));
    says(
        &kl_of_vq,
        &["missing `model.encoder.down.0.block.0.norm1.weight` [32]", "unknown `model.decoder.conv_blocks"],
    );
    let vq_of_kl = refusal(vq(&goldens.join(KL)));
    says(&vq_of_kl, &["missing `model.encoder.conv_blocks.0.res.0.norm1.weight` [32]", "unknown `model.decoder."]);
    // A file of numbers that are no weights.
    says(&refusal(kl(&goldens.join("mar_kl16.safetensors"))), &["holds no `encoder.conv_in.weight`", "decoded"]);
}

#[test]
fn other_sizes_are_refused() {
    let Some(goldens) = goldens() else { return };
    let mut wrong = vq(&goldens.join(VQ));
    wrong.codebook_size = 128;
    says(&refusal(wrong), &["`model.quantize.embedding.weight` is [64, 8]; the document asks for [128, 8]"]);
    let mut wrong = var(&goldens.join(VAR));
    wrong.ch = 64;
    says(&refusal(wrong), &["`encoder.conv_in.weight` is [32, 3, 3, 3]; the document asks for [64, 3, 3, 3]", "more"]);
    let mut wrong = var(&goldens.join(VAR));
    wrong.share_quant_resi = 2;
    says(&refusal(wrong), &["unknown `quantize.quant_resi.qresi_ls.2.bias` [8]"]);
    let mut wrong = kl(&goldens.join(KL));
    wrong.num_res_blocks = 2;
    says(&refusal(wrong), &["missing `model.encoder.down.0.block.1.norm1.weight` [64]"]);
}

#[test]
fn truncated_and_missing_files_are_refused() {
    let Some(goldens) = goldens() else { return };
    let folder = tempfile::tempdir().unwrap();
    for name in [VQ, VAR, KL] {
        let whole = std::fs::read(goldens.join(name)).unwrap();
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
    var(&goldens.join(VAR)).convert(&goldens.join(VAR), &converted, None).unwrap();
    let whole = std::fs::read(&converted).unwrap();
    std::fs::write(&converted, &whole[..whole.len() / 2]).unwrap();
    says(&refusal(var(&converted)), &["vae.safetensors", "cannot be read as a checkpoint"]);
    says(&refusal(var(&folder.path().join("absent.pth"))), &["absent.pth", "no such file"]);
}

/// A pickle of `system("touch MARKER")`: at its root, or as the entry `encoder.conv_in.weight` of a state dict.
fn hostile(marker: &FilePath, at_root: bool) -> Vec<u8> {
    let text = |text: &str| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let call = [b"cposix\nsystem\n".as_slice(), &text(&format!("touch {}", marker.display())), b"\x85R"].concat();
    let body = if at_root { call } else { [b"}", &text("encoder.conv_in.weight")[..], &call, b"s"].concat() };
    [b"\x80\x02", &body[..], b"."].concat()
}

/// A zip archive of one stored entry, as `torch.save` lays it out.
fn zipped(name: &str, content: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in content {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
    }
    let (size, length) = ((content.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
    // Version 2.0, no flags, stored, no time.
    let entry = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &(!crc).to_le_bytes()[..], &size, &size, &length].concat();
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
                // The call stands where a tensor should be, so there is none.
                (_, false) => "encoder.conv_in.weight",
            };
            for said in [refusal(vq(&file)), refusal(var(&file)), refusal(kl(&file))] {
                says(&said, &[name, expected]);
            }
            assert!(!marker.exists(), "{name} ran its code");
        }
    }
}

/// The hostile pickle really is one: Python runs it.
#[test]
fn the_hostile_pickle_runs_in_python() {
    let folder = tempfile::tempdir().unwrap();
    let (marker, file) = (folder.path().join("it-ran"), folder.path().join("hostile.pkl"));
    std::fs::write(&file, hostile(&marker, false)).unwrap();
    let script = format!("import pickle; pickle.load(open({:?}, 'rb'))", file.to_str().unwrap());
    match std::process::Command::new("python3").args(["-c", &script]).status() {
        Ok(status) if status.success() => assert!(marker.exists()),
        _ => eprintln!("skipped: no python3, or no posix"),
    }
}

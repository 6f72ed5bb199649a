//! Compares the forward pass, gradients, losses and greedy decoding with recordings of the official code:
//! FoundationVision/VAR 78b9539 and thu-ml/CCA 7d5a073, tiny configurations, f32.
//! `tests/goldens/data/MANIFEST.md` describes the recordings.

use framework::burn::module::Module;
use framework::burn::tensor::DType;
use framework::data::tokenizer::Tokenizer;
use framework::network::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::nn::parameters;
use framework::prelude::*;
use framework::process::Latent;
use framework::random::Random;
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::guidance::Guidance;
use framework::sampling::sampler::{Sampler, SamplerStep, SeededNoise};
use framework::serde_json::from_str;
use framework_dylib as _;
use goldens::{Draws, Golden, Recorded, close, gradients, load, overridden, same_gradients, values};
use guidance::{Cfg, NoGuidance};
use objectives::Cca;
use samplers::NextLevel;
use tokenizers_builtin::VarVqvae;
use var::VarConfig;

fn tiny(more: &str) -> VarConfig {
    from_str(&format!(
        r#"{{"num_classes": 10, "depth": 3, "embed_dim": 64, "num_heads": 4, "patch_nums": [1, 2, 3, 4], "V": 64, "Cvae": 8{more}}}"#
    ))
    .unwrap()
}

/// Returns the two recorded configurations: one modulation layer per block, and a shared modulation layer.
fn forms() -> [(&'static str, VarConfig); 2] {
    [("var", tiny("")), ("var_saln", tiny(r#", "shared_aln": true"#))]
}

/// Returns the recorded features, with a zero row for the first level, which the network does not read.
fn features(golden: &Golden, name: &str) -> Tensor<3> {
    let features: Tensor<3> = golden.tensor(name);
    let [batch, _, channels] = features.dims();
    Tensor::cat(vec![Tensor::zeros([batch, 1, channels], &features.device()), features], 1)
}

#[test]
fn forward_equals_the_official_code() {
    for (name, config) in forms() {
        let golden = Golden::open(&format!("{name}.safetensors"));
        let (network, report) = load(&config, &format!("{name}_ckpt.pth"), &Device::flex());
        assert_eq!(report.ignored.len(), 5, "{report}");
        let input = Input::Levels { features: features(&golden, "x_BLCv_wo_first_l") };
        let condition = golden.classes("label", 10);
        for (what, condition) in [("logits_null", condition.null()), ("logits_cond", condition)] {
            let got = values(network.predict(&input, &condition, &Control::default()));
            close(&format!("{name} {what}"), &got, &golden.numbers(what), 1e-4);
        }
    }
}

#[test]
fn the_tensors_of_an_official_file_that_are_no_parameters_are_the_recorded_ones() {
    for (name, config) in forms() {
        let recorded = goldens::tensors(&goldens::path(&format!("{name}_ckpt.pth")));
        let file = config.official_file();
        let official = config.formats()[0].clone();
        let mut names: Vec<String> = file.buffers.iter().map(|(name, _)| name.clone()).collect();
        let network = config.init(&Device::flex());
        names.extend(parameters::parameters(&network).iter().map(|(path, ..)| (official.of)(path).name));
        names.sort();
        assert_eq!(names, recorded.keys().cloned().collect::<Vec<_>>(), "{name}");
        for (buffer, data) in file.buffers {
            assert_eq!(data, recorded[&buffer], "{name}: {buffer}");
        }
    }
}

fn example(config: &VarConfig, ids: Tensor<2, Int>, features: Tensor<3>) -> Example {
    config.process().corrupt(&Latent::Levels { ids, features }, &Random::new(0), 0)
}

#[test]
fn gradients_equal_the_official_code() {
    for (name, config) in forms() {
        let golden = Golden::open(&format!("{name}.safetensors"));
        let device = Device::flex().autodiff();
        let (network, _) = load(&config, &format!("{name}_ckpt.pth"), &device);
        let example = example(&config, golden.ids("gt_idx"), features(&golden, "x_BLCv_wo_first_l"));
        let prediction = network.predict(&example.input, &golden.classes("label", 10), &Control::default());
        let loss = config.process().loss(prediction, &example).mean();
        close("ce_mean", &values(loss.clone().inner()), &golden.numbers("ce_mean"), 1e-5);
        same_gradients("", &gradients(&config.formats()[0], &network, loss), &golden, &|_| None, 53);
    }
}

/// Loads the recorded tokenizer.
fn tokenizer() -> VarVqvae {
    let path = goldens::path("var_vae_ckpt.pth");
    let mut tokenizer: VarVqvae = from_str(&format!(
        r#"{{"path": {path:?}, "vocab_size": 64, "z_channels": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1,
            "v_patch_nums": [1, 2, 3, 4]}}"#
    ))
    .unwrap();
    tokenizer.load(&Device::flex()).unwrap();
    tokenizer
}

#[test]
fn greedy_decoding_equals_the_official_code_with_cache_and_without() {
    let tokenizer = tokenizer();
    for (name, config) in forms() {
        let golden = Golden::open(&format!("{name}.safetensors"));
        let (network, _) = load(&config, &format!("{name}_ckpt.pth"), &Device::flex());
        let (condition, process, shape) = (golden.classes("label", 10), config.process(), config.latent_shape());
        // The official cfg value grows linearly with the level, from 0. Our scale is 1 + cfg level / (levels - 1).
        let ramp: Cfg = from_str(r#"{"scale": 2.5, "schedule": {"type": "linear"}}"#).unwrap();
        let none: NoGuidance = from_str("{}").unwrap();
        let rules: [(&str, &dyn Guidance); 2] = [("infer.cfg0.0", &none), ("infer.cfg1.5", &ramp)];
        for (run, rule) in rules {
            for cache in [true, false] {
                let sampler: NextLevel = from_str(&format!(r#"{{"temperature": 0.0, "cache": {cache}}}"#)).unwrap();
                let mut model = Denoiser::new(&network, &*process, rule, GuidanceNumbers::NONE, &condition, &shape)
                    .with_codec(tokenizer.codec());
                let (random, device) = (Random::new(0), Device::flex());
                let mut noise =
                    SeededNoise { random, first: 0, count: 2, shape: shape.clone(), dtype: DType::F32, device };
                let ids = sampler.sample(&mut model, &mut noise, &mut |_: &SamplerStep<'_>| {}).ids();
                let mut from = 0;
                for (k, side) in shape.levels.iter().enumerate() {
                    let level = ids.clone().narrow(1, from, side * side);
                    let expected = golden.numbers(&format!("{run}.idx.{k}"));
                    assert_eq!(goldens::numbers(level.into_data()), expected, "{name} {run} level {k}, cache {cache}");
                    from += side * side;
                }
                // The official images have values in [0, 1].
                let image = tokenizer.decode(Latent::Ids(ids), [3, 8, 8]).clamp(-1.0, 1.0) * 0.5 + 0.5;
                close(run, &values(image), &golden.numbers(&format!("{run}.img")), 1e-4);
            }
        }
    }
}

#[test]
fn cca_has_the_official_loss_gradients_and_log_probabilities() {
    let tokenizer = tokenizer();
    let negatives = |lambda: f64, more: &str| format!(r#""negatives": {{"lambda": {lambda}{more}}}"#);
    for (file, variant) in [
        ("cca_var_cca", format!(r#"{{"type": "contrast", "beta": 0.02, {}}}"#, negatives(50.0, ""))),
        (
            "cca_var_cca_nouncond",
            format!(
                r#"{{"type": "contrast", "beta": 0.02, {}}}"#,
                negatives(50.0, r#", "divide": false, "same_condition": "negative""#)
            ),
        ),
        ("cca_var_dpo", r#"{"type": "dpo", "beta": 0.02}"#.into()),
        ("cca_var_unlearning", format!(r#"{{"type": "unlearning", {}}}"#, negatives(0.5, ""))),
    ] {
        let golden = Golden::open(&format!("{file}.safetensors"));
        let (config, device) = (tiny(""), Device::flex().autodiff());
        let (network, _) = load(&config, "var_ckpt.pth", &device);
        let reference = network.valid();
        let network = overridden(network, &config.formats()[0], &golden, "policy_override.");
        let Latent::Levels { ids, features } = tokenizer.encode(golden.tensor("img")) else { panic!("no levels") };
        assert_eq!(goldens::numbers(ids.clone().into_data()), golden.numbers("gt_BL"), "{file}: tokens");
        let (example, process) = (example(&config, ids, features), config.process());
        let condition = golden.classes("label", 10);
        let has = |name: &str| golden.names().any(|known| known == name);
        let dropped = if has("TBM") { golden.flags("TBM") } else { vec![false; 6] };
        let negative = condition.select(&[1, 2, 3, 4, 5, 0]);
        let of = |network: &BoxBackbone, name: &str, condition: &Condition| {
            let prediction = network.predict(&example.input, &condition.dropped(&dropped), &Control::default());
            close(name, &values(process.log_likelihood(prediction, &example)), &golden.numbers(name), 1e-5);
        };
        of(&network.valid(), "img_logps", &condition);
        of(&network.valid(), "negative_img_logps", &negative);
        of(&reference, "img_ref_logps", &condition);
        of(&reference, "negative_img_ref_logps", &negative);
        let models = Recorded { other: reference, online: network.clone() };
        let draws = Draws { uniform: Vec::new(), dropped, negative: Some(negative) };
        let context = Context::new(&example, (&condition, Some(10)), &*process, &models, &draws, (0, 1));
        let cca: Cca = from_str(&format!(r#"{{"variant": {variant}, "drop_probability": 0.3}}"#)).unwrap();
        let loss = cca.loss(&context).mean();
        close(file, &values(loss.clone().inner()), &golden.numbers("loss"), 1e-4);
        let least = golden.names().filter(|name| name.starts_with("grad")).count();
        assert!(least > 0, "{file} records no gradient");
        same_gradients("", &gradients(&config.formats()[0], &network, loss), &golden, &|_| None, least);
    }
}

#[test]
fn a_guided_network_starts_at_the_published_model() {
    let golden = Golden::open("var.safetensors");
    let config = tiny(r#", "guidance_input": "mlp""#);
    let (network, report) = load(&config, "var_ckpt.pth", &Device::flex());
    assert_eq!(report.fresh.len(), 4, "{report}");
    let input = Input::Levels { features: features(&golden, "x_BLCv_wo_first_l") };
    let control = Control::guided(Some(vec![0.3; 2]));
    let got = values(network.predict(&input, &golden.classes("label", 10), &control));
    close("logits", &got, &golden.numbers("logits_cond"), 1e-4);
}

#[test]
fn published_sizes_count_the_published_parameters() {
    // Source: arXiv:2404.02905 table 1 prints 310 M, 600 M, 1.0 B, 2.0 B and 2.3 B. The tolerances are its rounding. A
    // block has 18 width^2 parameters (6 of them in the modulation), and the width is 64 depth. No other choice fits
    // within half a percent.
    let published = [("d16", 310.0, 0.5), ("d20", 600.0, 1.0), ("d24", 1000.0, 50.0), ("d30", 2000.0, 50.0)];
    for (size, millions, rounding) in published.into_iter().chain([("d36-s", 2300.0, 51.0)]) {
        let config: VarConfig = from_str(&format!(r#"{{"size": "{size}"}}"#)).unwrap();
        assert!(config.check().is_empty());
        let parameters = parameters::parameters(&config.init(&Device::flex()));
        let count: usize = parameters.iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        assert!((count as f64 / 1e6 - millions).abs() <= rounding, "{size}: {count}");
    }
}

//! Compares the forward pass, gradients, losses and greedy decoding with recordings of the official code:
//! FoundationVision/LlamaGen ce98ec4, thu-ml/GFT 9bf5ee4 and thu-ml/CCA 7d5a073, tiny configurations, f32.
//! `tests/goldens/data/MANIFEST.md` describes the recordings.

use framework::burn::module::Module;
use framework::network::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::nn::parameters;
use framework::prelude::*;
use framework::process::Latent;
use framework::random::Random;
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::sampler::{NoiseSource, Sampler, SamplerStep, SeededNoise};
use framework::serde_json::from_str;
use framework_dylib as _;
use goldens::{Draws, Golden, Recorded, close, gradients, load, same_gradients, values};
use guidance::Cfg;
use llamagen::LlamaGenConfig;
use objectives::{Cca, Gft};
use samplers::Autoregressive;

const TINY: &str = r#""dim": 64, "n_layer": 3, "n_head": 4, "vocab_size": 64, "block_size": 16, "num_classes": 10"#;

fn plain() -> LlamaGenConfig {
    from_str(&format!("{{{TINY}}}")).unwrap()
}

fn guided() -> LlamaGenConfig {
    from_str(&format!(r#"{{{TINY}, "guidance_input": "mlp"}}"#)).unwrap()
}

fn logits(network: &BoxBackbone, golden: &Golden, condition: &Condition, beta: Option<Vec<f64>>) -> Tensor<3> {
    network.predict(&Input::Tokens { ids: golden.ids("z_indices") }, condition, &Control::guided(beta))
}

#[test]
fn forward_equals_the_official_code() {
    let golden = Golden::open("llamagen.safetensors");
    for (file, ignored) in [("llamagen_ckpt.pt", 0), ("llamagen_ckpt_fsdp.pt", 1)] {
        let (network, report) = load(&plain(), file, &Device::flex());
        assert_eq!((report.used.len(), report.ignored.len()), (25, ignored), "{file}: {report}");
        let condition = golden.classes("cond_idx", 10);
        let cond = values(logits(&network, &golden, &condition, None));
        close("logits_cond", &cond, &golden.numbers("logits_cond"), 1e-4);
        let null = values(logits(&network, &golden, &condition.null(), None));
        close("logits_null", &null, &golden.numbers("logits_null"), 1e-4);
    }
}

#[test]
fn guidance_input_equals_the_official_code() {
    let golden = Golden::open("gft_llamagen_forward.safetensors");
    let (network, report) = load(&guided(), "gft_llamagen_ckpt.pt", &Device::flex());
    assert!(report.fresh.is_empty(), "{report}");
    let condition = golden.classes("cond_idx", 10);
    let with = values(logits(&network, &golden, &condition, Some(golden.numbers("betas"))));
    close("logits", &with, &golden.numbers("logits"), 1e-4);
    let without = values(logits(&network, &golden, &condition, None));
    close("logits_nobeta", &without, &golden.numbers("logits_nobeta"), 1e-4);
}

#[test]
fn plain_checkpoint_starts_a_guided_network_at_the_published_model() {
    let golden = Golden::open("llamagen.safetensors");
    let (network, report) = load(&guided(), "llamagen_ckpt.pt", &Device::flex());
    assert_eq!(report.fresh.len(), 4, "{report}");
    for beta in [0.1, 1.0] {
        let got = values(logits(&network, &golden, &golden.classes("cond_idx", 10), Some(vec![beta; 3])));
        close("logits", &got, &golden.numbers("logits_cond"), 1e-4);
    }
}

/// Builds a training example from the recorded tokens.
fn example(config: &LlamaGenConfig, golden: &Golden) -> Example {
    config.process().corrupt(&Latent::Ids(golden.ids("z_indices")), &Random::new(0), 0)
}

#[test]
fn gradients_equal_the_official_code() {
    let golden = Golden::open("llamagen.safetensors");
    let config = plain();
    let (network, _) = load(&config, "llamagen_ckpt.pt", &Device::flex().autodiff());
    let example = example(&config, &golden);
    let prediction = network.predict(&example.input, &golden.classes("cond_idx", 10), &Control::default());
    let loss = config.process().loss(prediction, &example).mean();
    close("ce_cond", &values(loss.clone().inner()), &golden.numbers("ce_cond"), 1e-5);
    same_gradients("", &gradients(&config.formats()[0], &network, loss), &golden, &|_| None, 32);
}

#[test]
fn gft_has_the_official_loss_and_gradients() {
    let golden = Golden::open("gft_llamagen_objective.safetensors");
    let config = guided();
    let (network, _) = load(&config, "gft_llamagen_ckpt.pt", &Device::flex().autodiff());
    let (example, condition, process) = (example(&config, &golden), golden.classes("c_indices", 10), config.process());
    let models = Recorded { other: network.valid(), online: network.clone() };
    let draws = Draws { uniform: golden.numbers("betas"), dropped: golden.flags("drop_ids"), negative: None };
    let context = Context::new(&example, (&condition, Some(10)), &*process, &models, &draws, (0, 1));
    let loss = from_str::<Gft>("{}").unwrap().loss(&context).mean();
    close("loss", &values(loss.clone().inner()), &golden.numbers("loss"), 1e-5);
    let least = golden.names().filter(|name| name.starts_with("grad")).count();
    assert!(least > 5, "{least} gradients recorded");
    same_gradients("", &gradients(&config.formats()[0], &network, loss), &golden, &|_| None, least);
}

#[test]
fn gft_at_a_fixed_beta_has_the_official_loss() {
    let golden = Golden::open("gft_llamagen_objective_fixedbeta.safetensors");
    let (network, _) = load(&guided(), "gft_llamagen_ckpt.pt", &Device::flex());
    // At a fixed beta, the official code gives the network no guidance number. The mixture is the same.
    let (example, condition) = (example(&guided(), &golden), golden.classes("c_indices", 10));
    let beta = golden.numbers("beta")[0];
    let predict = |condition: &Condition| network.predict(&example.input, condition, &Control::default());
    let mixed = predict(&condition) * beta + predict(&condition.null()) * (1.0 - beta);
    close("logits", &values(mixed.clone()), &golden.numbers("logits"), 1e-4);
    let loss = guided().process().loss(mixed, &example).mean();
    close("loss", &values(loss), &golden.numbers("loss"), 1e-5);
}

#[test]
fn cca_has_the_official_loss_gradients_and_log_probabilities() {
    let negatives = |lambda: f64| format!(r#""negatives": {{"lambda": {lambda}}}"#);
    let contrast = |beta: f64, lambda: f64| format!(r#"{{"type": "contrast", "beta": {beta}, {}}}"#, negatives(lambda));
    for (file, variant) in [
        ("cca_llamagen_cca.safetensors", contrast(0.02, 300.0)),
        ("cca_llamagen_cca_lowlambda.safetensors", contrast(0.1, 0.5)),
        // If no condition is dropped, the official script's "CCA" is the unlearning loss without the division.
        (
            "cca_llamagen_nouncond.safetensors",
            r#"{"type": "unlearning", "negatives": {"lambda": 300.0, "divide": false, "same_condition": "negative"}}"#
                .into(),
        ),
        ("cca_llamagen_dpo.safetensors", r#"{"type": "dpo", "beta": 0.02}"#.into()),
    ] {
        let golden = Golden::open(file);
        let config = plain();
        let device = Device::flex().autodiff();
        let (guided_network, _) = load(&guided(), "gft_llamagen_ckpt.pt", &device);
        // The trained network has the weights of the guidance-free network, without its guidance input.
        let mut weights = parameters::export(&guided_network);
        weights.retain(|path, _| !path.starts_with("t_embedder"));
        let (fresh, _) = load(&config, "llamagen_ckpt.pt", &device);
        let reference = fresh.valid();
        let network = parameters::restore(fresh, weights).unwrap();
        let (example, process) = (example(&config, &golden), config.process());
        let condition = golden.classes("c_indices", 10);
        let has = |name: &str| golden.names().any(|known| known == name);
        let dropped = if has("TBM") { golden.flags("TBM") } else { vec![false; 6] };
        // The official negatives are the labels, rolled by one sample.
        let negative = Some(condition.select(&[1, 2, 3, 4, 5, 0]));
        let likelihood = |network: &BoxBackbone, condition: &Condition| {
            let prediction = network.predict(&example.input, &condition.dropped(&dropped), &Control::default());
            values(process.log_likelihood(prediction, &example))
        };
        let of = |network: &BoxBackbone, name: &str, condition: &Condition| {
            close(name, &likelihood(network, condition), &golden.numbers(name), 1e-5);
        };
        of(&network.valid(), "img_logps", &condition);
        of(&network.valid(), "negative_img_logps", negative.as_ref().unwrap());
        of(&reference, "img_ref_logps", &condition);
        of(&reference, "negative_img_ref_logps", negative.as_ref().unwrap());
        let models = Recorded { other: reference, online: network.clone() };
        let draws = Draws { uniform: Vec::new(), dropped, negative };
        let context = Context::new(&example, (&condition, Some(10)), &*process, &models, &draws, (0, 1));
        let cca: Cca = from_str(&format!(r#"{{"variant": {variant}, "drop_probability": 0.3}}"#)).unwrap();
        let loss = cca.loss(&context).mean();
        close(file, &values(loss.clone().inner()), &golden.numbers("loss"), 1e-4);
        let least = golden.names().filter(|name| name.starts_with("grad")).count();
        assert!(least > 0, "{file} records no gradient");
        same_gradients("", &gradients(&config.formats()[0], &network, loss), &golden, &|_| None, least);
    }
}

/// Returns a noise source for greedy decoding, which uses no noise.
fn silent(count: usize, shape: &LatentShape) -> SeededNoise {
    let (random, dtype) = (Random::new(0), framework::burn::tensor::DType::F32);
    SeededNoise { random, first: 0, count, shape: shape.clone(), dtype, device: Device::flex() }
}

/// Decodes greedily and returns the tokens.
fn greedy(
    config: &LlamaGenConfig,
    network: &BoxBackbone,
    golden: &Golden,
    scale: f64,
    beta: Option<f64>,
    cache: bool,
) -> Vec<f64> {
    let sampler: Autoregressive = from_str(&format!(r#"{{"temperature": 0.0, "cache": {cache}}}"#)).unwrap();
    let (condition, shape, process) = (golden.classes("greedy.cond", 10), config.latent_shape(), config.process());
    let number = |_: f64| beta;
    let cfg: Cfg = from_str(&format!(r#"{{"scale": {scale}}}"#)).unwrap();
    let none: guidance::NoGuidance = from_str("{}").unwrap();
    let rule: &dyn framework::sampling::guidance::Guidance = if scale == 1.0 { &none } else { &cfg };
    let mut model = Denoiser::new(
        network,
        &*process,
        rule,
        GuidanceNumbers { of_scale: &number, null: number(1.0) },
        &condition,
        &shape,
    );
    let mut noise = silent(condition.len(), &shape);
    assert_eq!(noise.count(), 3);
    let ids = sampler.sample(&mut model, &mut noise, &mut |_: &SamplerStep<'_>| {}).ids();
    goldens::numbers(ids.into_data())
}

#[test]
fn greedy_decoding_equals_the_official_code_with_cache_and_without() {
    let golden = Golden::open("llamagen.safetensors");
    let (network, _) = load(&plain(), "llamagen_ckpt.pt", &Device::flex());
    for (name, scale) in [("greedy.cfg1.0", 1.0), ("greedy.cfg1.75", 1.75)] {
        for cache in [true, false] {
            let ids = greedy(&plain(), &network, &golden, scale, None, cache);
            assert_eq!(ids, golden.numbers(&format!("{name}.idx")), "{name}, cache {cache}");
        }
    }
    let golden = Golden::open("gft_llamagen_forward.safetensors");
    let (network, _) = load(&guided(), "gft_llamagen_ckpt.pt", &Device::flex());
    for beta in [1.0, 0.66] {
        let ids = greedy(&guided(), &network, &golden, 1.0, Some(beta), true);
        assert_eq!(ids, golden.numbers(&format!("greedy.beta{beta:?}.idx")), "beta {beta}");
    }
}

#[test]
fn filters_equal_the_official_code() {
    let golden = Golden::open("llamagen.safetensors");
    let logits = golden.numbers("filter.logits");
    for (name, top_k, top_p) in [("k5.p1.0", 5, 1.0), ("k0.p0.8", 0, 0.8), ("k10.p0.6", 10, 0.6)] {
        let how = samplers::categorical::Categorical { temperature: 1.0, top_k, top_p };
        let keep: Vec<bool> = logits.chunks(40).flat_map(|row| how.keep(row)).collect();
        assert_eq!(keep, golden.flags(&format!("filter.keep.{name}")), "{name}");
    }
}

#[test]
fn published_sizes_count_the_published_parameters() {
    // Source: arXiv:2406.06525 table 2 and the released class-conditional checkpoints.
    for (size, millions) in [("B", 111.0), ("L", 343.0), ("XL", 775.0), ("XXL", 1411.0), ("3B", 3096.0)] {
        let config: LlamaGenConfig = from_str(&format!(r#"{{"size": "{size}"}}"#)).unwrap();
        assert!(config.check().is_empty());
        let parameters = parameters::parameters(&config.init(&Device::flex()));
        let count: usize = parameters.iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        assert!((count as f64 / (millions * 1e6) - 1.0).abs() < 0.005, "{size}: {count}");
    }
}

//! Compares the encoder, decoder, head, losses, gradients and whole decodings with recordings of the official code:
//! LTH14/mar fe470ac, a tiny configuration, f32. `tests/goldens/data/MANIFEST.md` describes the recordings.

use framework::burn::tensor::DType;
use framework::network::backbone::{Backbone, BackboneConfig, Control};
use framework::nn::gather;
use framework::nn::parameters;
use framework::prelude::*;
use framework::process::Latent;
use framework::process::diffusion::VpConfig;
use framework::random::tensor;
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::guidance::Guidance;
use framework::sampling::sampler::{NoiseSource, Sampler, SamplerStep};
use framework_dylib as _;
use goldens::{Golden, close, gradients, load, same_gradients, values};
use mar::{Mar, MarConfig, Pass};

/// Sizes of the recorded tensors.
const SAMPLES: usize = 2;
const TOKENS: usize = 16;
const CHANNELS: usize = 6;

/// Returns the recorded latents as `[B, position, channel]`, and their classes.
fn latents(golden: &Golden) -> (Tensor<3>, Condition) {
    let x = golden.tensor::<4>("latent").reshape([SAMPLES, CHANNELS, TOKENS]).swap_dims(1, 2);
    (x, golden.classes("labels", usize::MAX))
}

fn json<T: for<'a> Deserialize<'a>>(text: &str) -> T {
    framework::serde_json::from_str(text).unwrap()
}

fn config() -> MarConfig {
    json(
        r#"{
            "img_size": 64, "vae_stride": 16, "patch_size": 1, "vae_embed_dim": 6, "class_num": 10, "buffer_size": 4,
            "encoder_embed_dim": 48, "encoder_depth": 2, "encoder_num_heads": 4,
            "decoder_embed_dim": 48, "decoder_depth": 2, "decoder_num_heads": 4,
            "mlp_ratio": 4, "diffloss_d": 2, "diffloss_w": 64, "diffusion_batch_mul": 4
        }"#,
    )
}

const FILE: &str = "mar_ckpt.pth";

#[test]
fn checkpoint_is_read_whole() {
    let (_, report) = load(&config(), FILE, &Device::flex());
    assert_eq!((report.used.len(), report.nesting.as_str(), report.fresh.len()), (92, "model_ema", 0), "{report}");
    assert_eq!(report.ignored.iter().filter(|(_, why)| why.contains("`model`")).count(), 92);
}

#[test]
fn encoder_and_decoder_equal_the_official_code() {
    let (golden, config) = (Golden::open("mar.safetensors"), config());
    let (network, _) = load(&config, FILE, &Device::flex());
    let network = parameters::restore(Mar::new(&config, &Device::flex()), parameters::export(&network)).unwrap();
    let (x, condition) = latents(&golden);
    let tokens = config.masked().patches.cut(x);
    assert_eq!(values(tokens.clone()), golden.numbers("patchified"));
    let (orders, count) = (golden.indices("orders"), golden.indices("num_masked")[0]);
    let hidden = golden.flags("mask");
    for (mask, order) in hidden.chunks(TOKENS).zip(orders.chunks(TOKENS)) {
        assert!((0..TOKENS).all(|place| mask[place] == order[..count].contains(&place)));
    }
    for (prefix, condition) in [("", condition.clone()), ("null.", condition.null())] {
        let class = network.condition(&condition, None, &Device::flex());
        let encoded = network.encode(tokens.clone(), &hidden, class, &Pass::default());
        let name = |part: &str| format!("{prefix}{part}");
        close(&name("encoder_out"), &values(encoded.clone()), &golden.numbers(&name("encoder_out")), 1e-4);
        let decoded = network.decode(encoded, &hidden, &Pass::default());
        close(&name("decoder_out"), &values(decoded), &golden.numbers(&name("decoder_out")), 1e-4);
    }
}

/// Builds the input that evaluates the head on every token, at the recorded times and noise.
fn whole(config: &MarConfig, golden: &Golden) -> Input {
    Input::Masked {
        x: config.masked().patches.cut(latents(golden).0),
        hidden: golden.flags("mask"),
        places: (0..SAMPLES).flat_map(|_| 0..TOKENS).collect(),
        x_t: golden.tensor::<2>("head.x_t").reshape([SAMPLES, TOKENS, CHANNELS]),
        t: golden.numbers("head.t").into_iter().map(|t| config.t_of_native(t)).collect(),
    }
}

#[test]
fn head_and_its_losses_equal_the_official_code() {
    let (golden, config) = (Golden::open("mar.safetensors"), config());
    let (network, _) = load(&config, FILE, &Device::flex());
    let (x, condition) = latents(&golden);
    let out = network.predict(&whole(&config, &golden), &condition, &Control::default());
    close("head.out", &values(out.clone()), &golden.numbers("head.out"), 1e-4);
    // Make each token a sample of its own, to get one loss per token.
    let rows = SAMPLES * TOKENS;
    let out = out.reshape([rows, 1, 2 * CHANNELS]);
    let t: Vec<f64> = golden.numbers("head.t").into_iter().map(|t| config.t_of_native(t)).collect();
    let loss = |variance_loss: bool| {
        let vp = VpConfig { betas: config.process.betas, variance_loss, ..VpConfig::default() }.process();
        let noise = golden.tensor::<2>("head.noise").reshape([rows, 1, CHANNELS]);
        let example = vp.example(x.clone().reshape([rows, 1, CHANNELS]), noise, t.clone());
        let Input::Noisy { x_t, .. } = &example.input else { unreachable!() };
        close("head.x_t", &values(x_t.clone()), &golden.numbers("head.x_t"), 1e-5);
        values(vp.loss(out.clone(), &example))
    };
    let (mse, both) = (loss(false), loss(true));
    let bound: Vec<f64> = both.iter().zip(&mse).map(|(both, mse)| both - mse).collect();
    close("head.mse", &mse, &golden.numbers("head.mse"), 1e-5);
    close("head.vb", &bound, &golden.numbers("head.vb"), 1e-5);
    close("head.loss", &both, &golden.numbers("head.loss"), 1e-5);
}

#[test]
fn loss_and_gradients_equal_the_official_code() {
    let (golden, config) = (Golden::open("mar.safetensors"), config());
    let (network, _) = load(&config, FILE, &Device::flex().autodiff());
    let (x, condition) = latents(&golden);
    let process = config.masked();
    let (orders, count) = (golden.indices("orders"), golden.indices("num_masked")[0]);
    let hidden: Vec<usize> = orders.chunks(TOKENS).flat_map(|order| order[..count].to_vec()).collect();
    // The recording holds all tokens of all samples, repeated. The official loss gives weight zero to tokens that are
    // not hidden, so select the rows of the hidden tokens.
    let recorded: Vec<usize> = (0..SAMPLES)
        .flat_map(|sample| (0..process.repeats).map(move |repeat| (repeat * SAMPLES + sample) * TOKENS))
        .zip(hidden.chunks(count).flat_map(|hidden| vec![hidden; process.repeats]))
        .flat_map(|(first, hidden)| hidden.iter().map(move |place| first + place))
        .collect();
    let t = golden.numbers("full.t");
    let t = recorded.iter().map(|row| config.t_of_native(t[*row])).collect();
    let noise = golden.tensor::<2>("full.noise").unsqueeze();
    let noise = gather(noise, &recorded).reshape([SAMPLES, process.repeats * count, CHANNELS]);
    let example = process.example(process.patches.cut(x), &hidden, noise, t);
    let prediction = network.predict(&example.input, &condition, &Control::default());
    let loss = process.loss(prediction, &example).mean();
    close("full.loss", &[f64::from(loss.clone().into_scalar::<f32>())], &golden.numbers("full.loss"), 1e-5);
    let got = gradients(&config.formats()[0], &network, loss);
    same_gradients("", &got, &golden, &|_| None, 92 + 7);
}

#[test]
fn official_file_starts_a_guided_network_at_the_published_model() {
    let golden = Golden::open("mar.safetensors");
    let config = MarConfig { guidance_input: Some(mar::GuidanceInput::Mlp), ..config() };
    let (network, report) = load(&config, FILE, &Device::flex());
    assert_eq!(report.fresh.len(), 4, "{report}");
    for beta in [0.1, 0.5, 1.0] {
        let control = Control::guided(Some(vec![beta; SAMPLES]));
        let out = network.predict(&whole(&config, &golden), &latents(&golden).1, &control);
        close("head.out", &values(out), &golden.numbers("head.out"), 1e-4);
    }
}

/// Noise source that returns the recorded orders, and the recorded noise at the position of each token.
struct Recorded<'a> {
    golden: &'a Golden,
    key: &'a str,
    /// Number of tokens that are hidden after each iteration.
    hidden: [usize; 4],
}

impl NoiseSource for Recorded<'_> {
    fn normal(&mut self, draw: usize) -> Tensor<3> {
        let orders = self.golden.indices("orders");
        let mut noise = vec![0.0; SAMPLES * TOKENS * CHANNELS];
        let mut before = TOKENS;
        for (i, after) in self.hidden.into_iter().enumerate() {
            let mut places: Vec<usize> = (0..SAMPLES)
                .flat_map(|sample| orders[sample * TOKENS..][after..before].iter().map(move |p| sample * TOKENS + p))
                .collect();
            places.sort_unstable();
            let name = format!("{}.iter{i}.{}", self.key, if draw == 0 { "init_noise" } else { "step_noise" });
            // With guidance, the rows of the null half follow the rows of the conditional half.
            let rows = self.golden.data(&name).shape().to_vec()[usize::from(draw > 0)];
            let recorded = &self.golden.numbers(&name)[draw.saturating_sub(1) * rows * CHANNELS..];
            for (place, row) in places.into_iter().zip(recorded.chunks(CHANNELS)) {
                noise[place * CHANNELS..][..CHANNELS].copy_from_slice(row);
            }
            before = after;
        }
        tensor(&noise, [SAMPLES, TOKENS, CHANNELS], DType::F32, &Device::flex())
    }

    fn uniform(&mut self, _: usize, n: usize) -> Vec<f64> {
        let mut keys = vec![0.0; SAMPLES * n];
        for (keys, order) in keys.chunks_mut(n).zip(self.golden.indices("orders").chunks(n)) {
            order.iter().enumerate().for_each(|(i, place)| keys[*place] = i as f64);
        }
        keys
    }

    fn count(&self) -> usize {
        SAMPLES
    }

    fn device(&self) -> Device {
        Device::flex()
    }
}

#[test]
fn whole_decodings_equal_the_official_code() {
    let (golden, config) = (Golden::open("mar_sample.safetensors"), config());
    let (network, _) = load(&config, FILE, &Device::flex());
    let sampler: samplers::Masked = json(
        r#"{ "iterations": 4, "temperature": 0.95, "head": { "type": "ddpm", "steps": 8, "variance": "learned_range" } }"#,
    );
    let process = config.process();
    assert!(sampler.check().is_empty() && sampler.check_process(&*process).is_empty());
    let condition = golden.classes("labels", usize::MAX);
    let rule = |text: &str| json::<guidance::Cfg>(text);
    for (key, rule, nfe) in [
        ("cfg1.0.linear", rule(r#"{ "scale": 1.0 }"#), 4),
        ("cfg2.5.linear", rule(r#"{ "scale": 2.5, "schedule": { "type": "linear" } }"#), 8),
        ("cfg2.5.constant", rule(r#"{ "scale": 2.5 }"#), 8),
    ] {
        let rule: &dyn Guidance = &rule;
        let mut model =
            Denoiser::new(&network, &*process, rule, GuidanceNumbers::NONE, &condition, &config.latent_shape());
        let mut noise = Recorded { golden: &golden, key, hidden: [14, 11, 6, 0] };
        let mut steps = 0;
        let latent = sampler.sample(&mut model, &mut noise, &mut |_: &SamplerStep<'_>| steps += 1);
        let Latent::Values(x) = latent else { unreachable!() };
        close(key, &values(x.swap_dims(1, 2)), &golden.numbers(&format!("{key}.tokens")), 1e-3);
        assert_eq!((steps, model.nfe()), (4, nfe), "{key}");
    }
}

#[test]
fn published_sizes_count_the_published_parameters() {
    // Source: arXiv:2406.11838, in millions.
    for (size, published) in [("B", 208.0), ("L", 479.0), ("H", 943.0)] {
        let config: MarConfig = json(&format!(r#"{{"size": "{size}"}}"#));
        assert!(config.check().is_empty());
        let parameters = parameters::parameters(&config.init(&Device::flex()));
        let count: usize = parameters.iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        let millions = count as f64 / 1e6;
        println!("{size}: {millions}");
        assert!((millions - published).abs() < 0.005 * published, "{size}: {millions}");
    }
}

//! Compares whole sampling trajectories of tiny networks with recordings of the official samplers:
//! facebookresearch/DiT ed81ce2, willisma/SiT 947f95b and thu-ml/GFT 9bf5ee4. `tests/goldens/data/MANIFEST.md`
//! describes the recordings under `dit_sample`, `sit_sample` and `gft_dit_dpm_sample`.

use dit::{DitConfig, SitConfig};
use framework::burn::tensor::{DType, TensorData};
use framework::network::backbone::{BackboneConfig, BoxBackbone};
use framework::prelude::*;
use framework::process::Latent;
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::guidance::Guidance;
use framework::sampling::sampler::{NoiseSource, Sampler, SamplerStep};
use framework_dylib as _;
use goldens::{Golden, close, load, values};

/// Returns two consecutive latents of a recorded stack of `[4, 8, 8]` latents, starting at index `first`, as
/// `[2, 64, 4]`.
fn state(golden: &Golden, name: &str, first: usize) -> Tensor<3> {
    let values = golden.numbers(name)[first * 256..(first + 2) * 256].to_vec();
    let data = TensorData::new(values, [2, 4, 8, 8]).convert_dtype(DType::F32);
    Tensor::<4>::from_data(data, &Device::flex()).permute([0, 2, 3, 1]).reshape([2, 64, 4])
}

struct Recorded<'a> {
    golden: &'a Golden,
    noise: Option<&'a str>,
    /// Number of latents per recorded entry. It is 2, or 4 if the official code ran a conditional and a null half.
    stride: usize,
}

impl NoiseSource for Recorded<'_> {
    fn normal(&mut self, draw: usize) -> Tensor<3> {
        match draw {
            0 => state(self.golden, "z", 0),
            _ => state(self.golden, self.noise.expect("no step noise is recorded"), (draw - 1) * self.stride),
        }
    }
    fn uniform(&mut self, _: usize, _: usize) -> Vec<f64> {
        unreachable!("no sampler in this file uses uniform random numbers")
    }
    fn count(&self) -> usize {
        unreachable!("no sampler in this file reads the batch size")
    }
    fn device(&self) -> Device {
        Device::flex()
    }
}

/// Compares every state of a trajectory with the recording `key`. Entry `k` of the recording starts at latent
/// `k * stride`. The first `skip` entries precede the first step.
#[track_caller]
fn compare(
    config: &dyn BackboneConfig,
    network: &BoxBackbone,
    sampler: &dyn Sampler,
    rule: &dyn Guidance,
    mut noise: Recorded<'_>,
    key: &str,
    skip: usize,
) {
    let process = config.process();
    let classes = noise.golden.numbers("y").iter().map(|y| Some(*y as usize)).collect();
    let condition = Condition::Class(classes);
    let guided = config.accepts().guidance_input;
    let number = |scale: f64| guided.then_some(1.0 / scale);
    let mut model = Denoiser::new(
        network,
        &*process,
        rule,
        GuidanceNumbers { of_scale: &number, null: number(1.0) },
        &condition,
        &LatentShape::values([8, 8], 4),
    );
    let mut states = Vec::new();
    let mut observer = |progress: &SamplerStep<'_>| states.push(progress.state.expect("a continuous sampler").clone());
    let Latent::Values(_) = sampler.sample(&mut model, &mut noise, &mut observer) else { unreachable!() };
    assert!(states.len() >= 5);
    for (k, got) in states.into_iter().enumerate() {
        let expected = state(noise.golden, key, (k + skip) * noise.stride);
        close(&format!("{key} step {k}"), &values(got), &values(expected), 1e-3);
    }
}

fn json<T: for<'a> Deserialize<'a>>(text: &str) -> T {
    framework::serde_json::from_str(text).unwrap()
}

#[test]
fn ddpm_ddim_and_three_channel_guidance_of_the_official_dit() {
    let config: DitConfig = json(
        r#"{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 3, "num_heads": 4, "num_classes": 10, "learn_sigma": true}"#,
    );
    let (network, _) = load(&config, "dit_ckpt_plain.pt", &Device::flex());
    let golden = Golden::open("dit_sample.safetensors");
    let ddpm: samplers::Ddpm = json(r#"{"steps": 25, "variance": "learned_range"}"#);
    let ddim: samplers::Ddim = json(r#"{"steps": 25}"#);
    let none = guidance::NoGuidance { scale: 1.0, ..Default::default() };
    let recorded = |noise, stride| Recorded { golden: &golden, noise, stride };
    compare(&config, &network, &ddpm, &none, recorded(Some("noise"), 2), "samples", 0);
    compare(&config, &network, &ddim, &none, recorded(None, 2), "ddim.samples", 0);
    let scale = golden.numbers("cfg.scale")[0];
    let cfg: guidance::Cfg = json(&format!(r#"{{"scale": {scale}, "guided_channels": 3}}"#));
    compare(&config, &network, &ddpm, &cfg, recorded(Some("cfg.noise"), 4), "cfg.samples", 0);
}

#[test]
fn one_pass_sampling_of_the_official_gft_dit() {
    let config: DitConfig = json(
        r#"{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 4, "num_classes": 1000, "learn_sigma": true, "guidance_input": "linear"}"#,
    );
    let (network, _) = load(&config, "gft_dit_linear_ckpt.pt", &Device::flex());
    let golden = Golden::open("gft_dit_dpm_sample.safetensors");
    let solver: samplers::DpmSolverPp = json(r#"{"steps": 20, "spacing": {"type": "timesteps", "network_offset": 1}}"#);
    let rule = guidance::NoGuidance { scale: 1.0 / golden.numbers("beta")[0], ..Default::default() };
    compare(&config, &network, &solver, &rule, Recorded { golden: &golden, noise: None, stride: 2 }, "xs", 1);
}

#[test]
fn euler_and_heun_of_the_official_sit() {
    let config: SitConfig = json(
        r#"{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 3, "num_classes": 10, "learn_sigma": true}"#,
    );
    let (network, _) = load(&config, "sit_ckpt_plain.pt", &Device::flex());
    let golden = Golden::open("sit_sample.safetensors");
    let euler: samplers::Euler = json(r#"{"steps": 5}"#);
    let heun: samplers::Heun = json(r#"{"steps": 5}"#);
    let none = guidance::NoGuidance { scale: 1.0, ..Default::default() };
    let cfg: guidance::Cfg = json(r#"{"scale": 1.5, "guided_channels": 3}"#);
    let recorded = |stride| Recorded { golden: &golden, noise: None, stride };
    for (name, sampler) in [("euler", &euler as &dyn Sampler), ("heun2", &heun)] {
        compare(&config, &network, sampler, &none, recorded(2), &format!("{name}.xs"), 1);
        compare(&config, &network, sampler, &cfg, recorded(4), &format!("cfg.{name}.xs"), 1);
    }
}

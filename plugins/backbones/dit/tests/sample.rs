//! Whole trajectories of the tiny networks equal those of the official samplers, recorded in `shared/goldens`
//! (facebookresearch/DiT ed81ce2, thu-ml/GFT 9bf5ee4; `dit_sample` and `gft_dit_dpm_sample` in MANIFEST.md there).

use dit::DitConfig;
use framework::backbone::{BackboneConfig, BoxBackbone};
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, TensorData};
use framework::foreign;
use framework::guidance::{Denoiser, Guidance};
use framework::prelude::*;
use framework::process::Latent;
use framework::random::Random;
use framework::sampler::{NoiseSource, Progress, Sampler};
use framework::weights;
use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};

fn goldens() -> Option<PathBuf> {
    let folder = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/goldens");
    if folder.exists() {
        return Some(folder);
    }
    eprintln!("skipped: {} is absent", folder.display());
    None
}

struct Golden(BTreeMap<String, TensorData>);

impl Golden {
    fn numbers(&self, name: &str) -> Vec<f64> {
        self.0[name].clone().convert::<f64>().try_into_vec::<f64>().unwrap()
    }

    /// Two latents `[4, 8, 8]`, those numbered `first` and after it in a flat stack, as positions.
    fn state(&self, name: &str, first: usize) -> Tensor<3> {
        let values = self.numbers(name)[first * 256..(first + 2) * 256].to_vec();
        let data = TensorData::new(values, [2, 4, 8, 8]).convert_dtype(DType::F32);
        Tensor::<4>::from_data(data, &Device::flex()).permute([0, 2, 3, 1]).reshape([2, 64, 4])
    }
}

struct Recorded<'a> {
    golden: &'a Golden,
    start: &'a str,
    noise: Option<&'a str>,
    /// Latents in one entry of the noise: four where the official code runs both halves of guidance.
    stride: usize,
}

impl NoiseSource for Recorded<'_> {
    fn normal(&mut self, draw: usize) -> Tensor<3> {
        match draw {
            0 => self.golden.state(self.start, 0),
            _ => self.golden.state(self.noise.expect("a deterministic sampler"), (draw - 1) * self.stride),
        }
    }
    fn uniform(&mut self, _: usize, _: usize) -> Vec<f64> {
        unreachable!("no sampler here draws uniform numbers")
    }
    fn count(&self) -> usize {
        unreachable!("no sampler here asks for it")
    }
    fn device(&self) -> Device {
        Device::flex()
    }
}

fn load(config: &DitConfig, path: &FilePath) -> BoxBackbone {
    let init = |path: &str, shape: &[usize]| config.initializer(path, shape);
    let network = weights::initialize(config.init(&Device::flex()), &Random::new(0), &init);
    foreign::load(network, &config.foreign_names(), path).unwrap().0
}

fn open(path: &FilePath) -> Golden {
    let read = |(name, tensor): (&String, _)| (name.clone(), bridge::to_data(tensor).unwrap());
    Golden(foreign::open(path).unwrap().iter().map(read).collect())
}

/// Every state is compared; entry `k` of `key` starts at latent `k * stride`, and `skip` entries come before the first step.
#[track_caller]
fn compare(
    config: &DitConfig,
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
    let guided = config.guidance_input.is_some();
    let number = |scale: f64| guided.then_some(1.0 / scale);
    let mut model = Denoiser::new(network, &*process, rule, &number, &condition, &LatentShape::values([8, 8], 4));
    let mut states = Vec::new();
    let mut observer = |progress: &Progress<'_>| states.push(progress.state.expect("a continuous sampler").clone());
    let Latent::Values(_) = sampler.sample(&mut model, &mut noise, &mut observer) else { unreachable!() };
    assert!(states.len() >= 20);
    for (k, state) in states.iter().enumerate() {
        let expected = noise.golden.state(key, (k + skip) * noise.stride);
        let largest = expected.clone().abs().max().into_scalar::<f32>();
        let worst = (state.clone() - expected).abs().max().into_scalar::<f32>();
        assert!(worst <= 1e-3 * largest, "{key} step {k}: {worst:e} against {largest:e}");
    }
}

fn json<T: for<'a> Deserialize<'a>>(text: &str) -> T {
    framework::serde_json::from_str(text).unwrap()
}

#[test]
fn ddpm_ddim_and_three_channel_guidance_of_the_official_dit() {
    let Some(goldens) = goldens() else { return };
    let config: DitConfig = json(
        r#"{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 3, "num_heads": 4, "num_classes": 10, "learn_sigma": true}"#,
    );
    let network = load(&config, &goldens.join("dit_ckpt_plain.pt"));
    let golden = open(&goldens.join("dit_sample.safetensors"));
    let ddpm: samplers::Ddpm = json(r#"{"steps": 25, "variance": "learned_range"}"#);
    let ddim: samplers::Ddim = json(r#"{"steps": 25}"#);
    let none = guidance::NoGuidance { scale: 1.0 };
    let recorded = |noise, stride| Recorded { golden: &golden, start: "z", noise, stride };
    compare(&config, &network, &ddpm, &none, recorded(Some("noise"), 2), "samples", 0);
    compare(&config, &network, &ddim, &none, recorded(None, 2), "ddim.samples", 0);
    let scale = golden.numbers("cfg.scale")[0];
    let cfg: guidance::Cfg = json(&format!(r#"{{"scale": {scale}, "guided_channels": 3}}"#));
    compare(&config, &network, &ddpm, &cfg, recorded(Some("cfg.noise"), 4), "cfg.samples", 0);
}

#[test]
fn one_pass_sampling_of_the_official_gft_dit() {
    let Some(goldens) = goldens() else { return };
    let config: DitConfig = json(
        r#"{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 4, "num_classes": 1000, "learn_sigma": true, "guidance_input": "linear"}"#,
    );
    let network = load(&config, &goldens.join("gft_dit_linear_ckpt.pt"));
    let golden = open(&goldens.join("gft_dit_dpm_sample.safetensors"));
    let solver: samplers::DpmSolverPp = json(r#"{"steps": 20, "spacing": {"type": "timesteps", "network_offset": 1}}"#);
    let rule = guidance::NoGuidance { scale: 1.0 / golden.numbers("beta")[0] };
    let noise = Recorded { golden: &golden, start: "z", noise: None, stride: 2 };
    compare(&config, &network, &solver, &rule, noise, "xs", 1);
}

//! Our trajectories equal the official samplers' trajectories on an analytic Gaussian mixture. The recordings are in
//! `tests/goldens/data` (guided-diffusion 22e0df8, dpm-solver 52bc3fb, diffusers 0.32.2, CompVis DDIM; see MANIFEST.md
//! there).

use framework::burn::tensor::{DType, TensorData, activation};
use framework::network::backbone::Backbone;
use framework::prelude::*;
use framework::process::Latent;
use framework::process::diffusion::{Vp, VpConfig};
use framework::process::flow::InterpolantConfig;
use framework::process::path::{Pair, join};
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::guidance::Guidance;
use framework::sampling::sampler::{NoiseSource, Sampler, SamplerStep};
use framework_dylib as _;
use goldens::{Golden, close};

/// Returns entry `which` of a stack of `[B, C, H, W]` states, as positions.
fn state(golden: &Golden, name: &str, which: usize) -> Tensor<3> {
    positions(&golden.numbers(name)[which * 24..(which + 1) * 24])
}

fn positions(values: &[f64]) -> Tensor<3> {
    let x = Tensor::<4>::from_data(TensorData::new(values.to_vec(), [3, 2, 2, 2]), (&Device::flex(), DType::F64));
    x.permute([0, 2, 3, 1]).reshape([3, 4, 2])
}

fn numbers(x: &Tensor<3>) -> Vec<f64> {
    x.to_data().try_into_vec::<f64>().unwrap()
}

/// The exact prediction of a Gaussian mixture. A class selects one component; null selects the whole mixture.
#[derive(Debug)]
struct Mixture<P = Vp> {
    path: P,
    weights: Vec<f64>,
    means: Vec<Tensor<3>>,
    stds: Vec<f64>,
    learned_variance: bool,
    /// Difference between the time passed to the network and the time of the schedule.
    offset: f64,
}

impl<P> Mixture<P> {
    fn new(golden: &Golden, path: P) -> Self {
        let means = golden.numbers("mix.means");
        let mean = |k: usize| {
            let one: Vec<f64> = means[k * 8..(k + 1) * 8].to_vec();
            let x = Tensor::<4>::from_data(TensorData::new(one, [1, 2, 2, 2]), (&Device::flex(), DType::F64));
            x.permute([0, 2, 3, 1]).reshape([1, 4, 2])
        };
        Self {
            path,
            weights: golden.numbers("mix.weights"),
            means: (0..2).map(mean).collect(),
            stds: golden.numbers("mix.stds"),
            learned_variance: false,
            offset: 0.0,
        }
    }
}

impl<P: NoisePath> Backbone for Mixture<P> {
    fn predict(&self, input: &Input, condition: &Condition, _: &framework::network::backbone::Control) -> Tensor<3> {
        let Input::Noisy { x_t, t } = input else { unreachable!() };
        let at = self.path.at(t[0] - self.offset);
        let batch = x_t.dims()[0];
        let Condition::Class(classes) = condition else { unreachable!() };
        let (mut logs, mut eps) = (Vec::new(), Vec::new());
        for k in 0..2 {
            let variance = at.alpha.powi(2) * self.stds[k].powi(2) + at.sigma.powi(2);
            let away = x_t.clone() - self.means[k].clone() * at.alpha;
            let square = (away.clone() * away.clone()).sum_dim(1).sum_dim(2).reshape([batch, 1]);
            logs.push(square * (-0.5 / variance) + (self.weights[k].ln() - 4.0 * variance.ln()));
            eps.push(away * (at.sigma / variance));
        }
        let posterior = activation::softmax(Tensor::cat(logs, 1), 1);
        let share: Vec<f64> = posterior.into_data().try_into_vec::<f64>().unwrap();
        // A class selects a single component.
        let share: Vec<f64> = (0..2 * batch)
            .map(|i| classes[i / 2].map_or(share[i], |class| f64::from(u8::from(class == i % 2))))
            .collect();
        let share = |k: usize| {
            let one: Vec<f64> = (0..batch).map(|b| share[2 * b + k]).collect();
            Tensor::<3>::from_data(TensorData::new(one, [batch, 1, 1]), (&Device::flex(), DType::F64))
        };
        let eps = eps[0].clone() * share(0) + eps[1].clone() * share(1);
        // Compute the clean latent from its own posterior, because at pure noise it does not follow from eps.
        let clean = |k: usize| {
            let variance = at.alpha.powi(2) * self.stds[k].powi(2) + at.sigma.powi(2);
            let away = x_t.clone() - self.means[k].clone() * at.alpha;
            self.means[k].clone() + away * (at.alpha * self.stds[k].powi(2) / variance)
        };
        let x = clean(0) * share(0) + clean(1) * share(1);
        let out = join(self.path.prediction(), Pair { x, eps }, at);
        if self.learned_variance { Tensor::cat(vec![out, x_t.clone().sin()], 2) } else { out }
    }
}

struct Recorded<'a> {
    golden: &'a Golden,
    noise: Option<String>,
}

impl NoiseSource for Recorded<'_> {
    fn normal(&mut self, draw: usize) -> Tensor<3> {
        match draw {
            0 => state(self.golden, "z", 0),
            _ => state(self.golden, self.noise.as_ref().expect("a deterministic sampler adds no noise"), draw - 1),
        }
    }
    fn uniform(&mut self, _: usize, _: usize) -> Vec<f64> {
        unreachable!("no sampler in this file needs uniform random numbers")
    }
    fn count(&self) -> usize {
        unreachable!("no sampler in this file asks for the count")
    }
    fn device(&self) -> Device {
        Device::flex()
    }
}

/// Runs a sampler given as JSON and compares every state with `KEY.xs`.
#[track_caller]
fn compare<S: Sampler + for<'a> Deserialize<'a>, P: NoisePath + Process>(
    golden: &Golden,
    network: &Mixture<P>,
    json: &str,
    key: &str,
    rule: &dyn Guidance,
    condition: &Condition,
    tolerance: f64,
) {
    compare_as::<S, P>(golden, network, json, key, rule, condition, tolerance, &|_, recorded| recorded);
}

/// As `compare`, for recordings in another convention. `ours` converts recorded state k (0 = the start) to our state.
#[track_caller]
#[allow(clippy::too_many_arguments)]
fn compare_as<S: Sampler + for<'a> Deserialize<'a>, P: NoisePath + Process>(
    golden: &Golden,
    network: &Mixture<P>,
    json: &str,
    key: &str,
    rule: &dyn Guidance,
    condition: &Condition,
    tolerance: f64,
    ours: &dyn Fn(usize, Tensor<3>) -> Tensor<3>,
) {
    let sampler: S = framework::serde_json::from_str(json).unwrap();
    assert!(sampler.check().is_empty() && sampler.check_process(&network.path).is_empty(), "{json}");
    let noise = golden.holds(&format!("{key}.noise")).then(|| format!("{key}.noise"));
    let mut model =
        Denoiser::new(network, &network.path, rule, GuidanceNumbers::NONE, condition, &LatentShape::values([1, 1], 2));
    let mut states = Vec::new();
    let mut observer = |progress: &SamplerStep<'_>| states.push(progress.state.expect("a continuous sampler").clone());
    let Latent::Values(end) = sampler.sample(&mut model, &mut Recorded { golden, noise }, &mut observer) else {
        unreachable!()
    };
    let expected = format!("{key}.xs");
    let count = golden.data(&expected).shape().to_vec()[0] - 1;
    // Without a last step, the official code records the same state twice.
    let repeated = usize::from(key.ends_with(".None"));
    assert_eq!(states.len() + repeated, count, "{key}: number of steps");
    assert_eq!(numbers(&end), numbers(&states[states.len() - 1]), "{key}: the last state differs from the result");
    for (k, found) in states.iter().enumerate() {
        let expected = numbers(&ours(k + 1, state(golden, &expected, k + 1)));
        close(&format!("{key} step {k}"), &numbers(found), &expected, tolerance);
    }
}

fn unconditional() -> Condition {
    Condition::Class(vec![None; 3])
}

fn none() -> guidance::NoGuidance {
    guidance::NoGuidance { scale: 1.0, ..Default::default() }
}

fn linear() -> Vp {
    VpConfig::default().process()
}

fn scaled_linear() -> Vp {
    framework::serde_json::from_str::<VpConfig>(r#"{"betas": "scaled_linear"}"#).unwrap().process()
}

#[test]
fn ddpm_equals_guided_diffusion() {
    let golden = Golden::open("samplers_guided_diffusion.safetensors");
    let mut network = Mixture::new(&golden, linear());
    for (json, key) in [
        (r#"{"steps": 25, "variance": "fixed_large"}"#, "ddpm25.fixed_large"),
        (r#"{"steps": 25, "variance": "fixed_small"}"#, "ddpm25.fixed_small"),
        (r#"{"steps": 25, "variance": "fixed_small", "clip": true}"#, "ddpm25.fixed_small_clip"),
        (r#"{"steps": 25, "spacing": {"type": "sections", "counts": [10, 10, 5]}}"#, "ddpm_sections"),
    ] {
        compare::<samplers::Ddpm, _>(&golden, &network, json, key, &none(), &unconditional(), 1e-9);
    }
    network.learned_variance = true;
    let json = r#"{"steps": 25, "variance": "learned_range"}"#;
    compare::<samplers::Ddpm, _>(&golden, &network, json, "ddpm25.learned_range", &none(), &unconditional(), 1e-9);
}

#[test]
fn ddim_equals_guided_diffusion() {
    let golden = Golden::open("samplers_guided_diffusion.safetensors");
    let network = Mixture::new(&golden, linear());
    for (json, key) in [
        (r#"{"steps": 25, "spacing": {"type": "stride"}}"#, "ddim25.eta0"),
        (r#"{"steps": 25, "eta": 0.7, "spacing": {"type": "stride"}}"#, "ddim25.eta0.7"),
        (r#"{"steps": 25}"#, "ddim_respace25.eta0"),
    ] {
        compare::<samplers::Ddim, _>(&golden, &network, json, key, &none(), &unconditional(), 1e-9);
    }
}

#[test]
fn dpm_solver_pp_equals_the_official_solver() {
    let golden = Golden::open("samplers_dpm_solver.safetensors");
    let network = Mixture::new(&golden, linear());
    for (json, key) in [
        (r#"{"steps": 20}"#, "dpmpp_2m_20.time_uniform"),
        (r#"{"steps": 20, "spacing": {"type": "log_snr"}}"#, "dpmpp_2m_20.logSNR"),
        (r#"{"steps": 20, "spacing": {"type": "quadratic"}}"#, "dpmpp_2m_20.quadratic"),
        (r#"{"steps": 8}"#, "dpmpp_2m_8.time_uniform"),
        (r#"{"steps": 20, "order": 3}"#, "dpmpp_3m_20.time_uniform"),
        (r#"{"steps": 20, "order": 1}"#, "dpmpp_1_20.time_uniform"),
        (r#"{"steps": 20, "denoise_to_zero": true}"#, "dpmpp_2m_20_tozero"),
    ] {
        compare::<samplers::DpmSolverPp, _>(&golden, &network, json, key, &none(), &unconditional(), 1e-9);
    }
}

#[test]
fn samplers_equal_the_pipelines_of_diffusers_and_compvis() {
    let golden = Golden::open("samplers_sd.safetensors");
    let dit = Mixture::new(&golden, linear());
    let json = r#"{"steps": 20, "spacing": {"type": "timesteps"}}"#;
    compare::<samplers::DpmSolverPp, _>(&golden, &dit, json, "dpmpp_gft_dit", &none(), &unconditional(), 1e-4);
    let sd = Mixture::new(&golden, scaled_linear());
    compare::<samplers::DpmSolverPp, _>(&golden, &sd, json, "dpmpp_sd15", &none(), &unconditional(), 1e-4);
    let ddim = r#"{"steps": 20, "spacing": {"type": "leading", "offset": 1}, "end_at_first_time": true}"#;
    compare::<samplers::Ddim, _>(&golden, &sd, ddim, "ddim_sd15", &none(), &unconditional(), 1e-4);
    let condition = Condition::Class(golden.numbers("compvis_ddim.cond").iter().map(|c| Some(*c as usize)).collect());
    let rule =
        |scale: f64| framework::serde_json::from_str::<guidance::Cfg>(&format!(r#"{{"scale": {scale}}}"#)).unwrap();
    // The official code computes its coefficients in f32.
    compare::<samplers::Ddim, _>(&golden, &sd, ddim, "compvis_ddim.eta0.cfg1", &rule(1.0), &condition, 2e-6);
    compare::<samplers::Ddim, _>(&golden, &sd, ddim, "compvis_ddim.eta0.cfg3", &rule(3.0), &condition, 2e-6);
    let noisy = ddim.replace("\"steps\"", "\"eta\": 0.5, \"steps\"");
    compare::<samplers::Ddim, _>(&golden, &sd, &noisy, "compvis_ddim.eta0.5.cfg3", &rule(3.0), &condition, 2e-6);
}

#[test]
fn flow_matching_and_plms_equal_diffusers() {
    let golden = Golden::open("samplers_sd.safetensors");
    let flow = Mixture::new(&golden, InterpolantConfig::default().process());
    let euler = r#"{"steps": 10, "shift": 3, "spacing": {"type": "discrete"}}"#;
    compare::<samplers::Euler, _>(&golden, &flow, euler, "flow_match_euler_shift3", &none(), &unconditional(), 1e-4);
    let sd = Mixture::new(&golden, scaled_linear());
    let plms = r#"{"steps": 20, "spacing": {"type": "leading", "offset": 1}, "end_at_first_time": true}"#;
    compare::<samplers::Pndm, _>(&golden, &sd, plms, "pndm_sd15", &none(), &unconditional(), 1e-4);
}

#[test]
fn every_method_and_its_levels_equal_k_diffusion() {
    let golden = Golden::open("samplers_k_diffusion.safetensors");
    let sigmas = golden.numbers("sigmas_karras20");
    let range = format!(r#""steps": 20, "least": {}, "greatest": {}"#, sigmas[19], sigmas[0]);
    let flow = Mixture::new(&golden, InterpolantConfig::default().process());
    for (more, recorded, tolerance) in [
        (range.clone(), "sigmas_karras20", 1e-12),
        (format!(r#"{range}, "sigmas": {{"type": "exponential"}}"#), "sigmas_exponential20", 1e-12),
        (format!(r#"{range}, "sigmas": {{"type": "polyexponential", "rho": 1.5}}"#), "sigmas_polyexp20_rho1.5", 1e-12),
        (r#""steps": 20, "sigmas": {"type": "vp"}"#.to_string(), "sigmas_vp20", 1e-12),
    ] {
        let sampler: samplers::KDiffusion = framework::serde_json::from_str(&format!("{{{more}}}")).unwrap();
        let got = sampler.sigmas(&flow.path);
        let expected = golden.numbers(recorded);
        assert_eq!(got.len(), expected.len(), "{recorded}");
        for (ours, theirs) in got.iter().zip(&expected) {
            assert!((ours - theirs).abs() <= tolerance * theirs.max(1e-3), "{recorded}: {got:?} {expected:?}");
        }
    }
    // k-diffusion records unscaled states. On the straight path, alpha = 1 / (1 + s).
    let scale: Vec<f64> = sigmas.iter().map(|s| 1.0 + s).collect();
    let churn = r#", "churn": {"amount": 10, "from": 0.1, "to": 10, "noise": 1.003}"#;
    for (method, key, more) in [
        ("euler", "sample_euler", ""),
        ("heun", "sample_heun", ""),
        ("dpm2", "sample_dpm_2", ""),
        ("dpmpp2m", "sample_dpmpp_2m", ""),
        ("lms", "sample_lms", ""),
        ("euler_ancestral", "sample_euler_ancestral", ""),
        ("dpmpp2s_ancestral", "sample_dpmpp_2s_ancestral", ""),
        ("heun", "sample_heun_churn", churn),
    ] {
        let json = format!(r#"{{{range}, "method": "{method}"{more}}}"#);
        // k-diffusion records the network's input, which already contains the churn noise of the step.
        let churned = |k: usize, recorded: Tensor<3>| {
            let grown = sigmas[k] * 2.0_f64.sqrt();
            let noisy = !more.is_empty() && (0.1..=10.0).contains(&sigmas[k]);
            let noise =
                || state(&golden, &format!("{key}.noise"), k) * (1.003 * (grown.powi(2) - sigmas[k].powi(2)).sqrt());
            let recorded = if noisy { recorded - noise() } else { recorded };
            recorded / scale[k]
        };
        let (rule, everything) = (none(), unconditional());
        compare_as::<samplers::KDiffusion, _>(&golden, &flow, &json, key, &rule, &everything, 1e-9, &churned);
    }
    // The table of Stable Diffusion. k-diffusion computes its times in f32.
    let sd = Mixture::new(&golden, scaled_linear());
    let levels = golden.numbers("sd.get_sigmas20");
    let scale: Vec<f64> = levels.iter().map(|s| (1.0 + s * s).sqrt()).collect();
    for (key, more) in [("sd.sample_euler", ""), ("sd.sample_euler.quantize", r#", "quantize": true"#)] {
        let json = format!(r#"{{"steps": 20, "sigmas": {{"type": "table"}}{more}}}"#);
        let sampler: samplers::KDiffusion = framework::serde_json::from_str(&json).unwrap();
        for (ours, theirs) in sampler.sigmas(&sd.path).iter().zip(&levels) {
            assert!((ours - theirs).abs() <= 1e-5 * theirs.max(1e-3), "{ours} {theirs}");
        }
        let (rule, everything) = (none(), unconditional());
        let unscaled = |k: usize, recorded: Tensor<3>| recorded / scale[k];
        compare_as::<samplers::KDiffusion, _>(&golden, &sd, &json, key, &rule, &everything, 1e-4, &unscaled);
    }
}

#[test]
fn first_order_dpm_solver_pp_is_ddim() {
    let golden = Golden::open("samplers_sd.safetensors");
    let table: VpConfig = framework::serde_json::from_str(r#"{"timesteps": 101}"#).unwrap();
    let network = Mixture::new(&golden, table.process());
    let condition = unconditional();
    let run = |sampler: &dyn Sampler| {
        let rule = none();
        let mut model = Denoiser::new(
            &network,
            &network.path,
            &rule,
            GuidanceNumbers::NONE,
            &condition,
            &LatentShape::values([1, 1], 2),
        );
        let mut noise = Recorded { golden: &golden, noise: None };
        let Latent::Values(x) = sampler.sample(&mut model, &mut noise, &mut |_: &SamplerStep<'_>| {}) else {
            unreachable!()
        };
        numbers(&x)
    };
    // Both samplers visit indices 100, 95, .. 5 of 0..101 and end at clean data.
    let solver: samplers::DpmSolverPp =
        framework::serde_json::from_str(r#"{"steps": 20, "order": 1, "spacing": {"type": "timesteps"}}"#).unwrap();
    let ddim: samplers::Ddim =
        framework::serde_json::from_str(r#"{"steps": 20, "spacing": {"type": "leading", "offset": 5}}"#).unwrap();
    for (a, b) in run(&solver).iter().zip(&run(&ddim)) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }
}

#[test]
fn flows_equal_the_official_sit() {
    let golden = Golden::open("samplers_sit.safetensors");
    let flow = |path: &str, prediction: &str| -> Mixture<_> {
        let (path, kind) = (path.to_lowercase(), if prediction == "noise" { "eps" } else { prediction });
        let config = format!(r#"{{"path": "{path}", "prediction": "{kind}"}}"#);
        let config: InterpolantConfig = framework::serde_json::from_str(&config).unwrap();
        Mixture::new(&golden, config.process())
    };
    for (path, prediction) in
        [("Linear", "velocity"), ("GVP", "velocity"), ("Linear", "noise"), ("Linear", "score"), ("VP", "noise")]
    {
        let network = flow(path, prediction);
        let key = |solver: &str| format!("ode.{path}.{prediction}.{solver}");
        let (json, everything) = (r#"{"steps": 20}"#, unconditional());
        compare::<samplers::Euler, _>(&golden, &network, json, &key("euler"), &none(), &everything, 1e-9);
        compare::<samplers::Heun, _>(&golden, &network, json, &key("heun2"), &none(), &everything, 1e-9);
    }
    let norm = r#", "diffusion_norm": 0.8"#;
    for (key, steps, more) in [
        ("Linear.velocity.Euler.sigma.Mean", 25, String::new()),
        ("Linear.velocity.Heun.sigma.Mean", 25, r#", "method": "heun""#.into()),
        ("Linear.velocity.Euler.linear.Mean", 15, format!(r#", "diffusion": "linear"{norm}"#)),
        ("Linear.velocity.Euler.decreasing.Mean", 15, format!(r#", "diffusion": "decreasing"{norm}"#)),
        (
            "Linear.velocity.Euler.inccreasing-decreasing.Mean",
            15,
            format!(r#", "diffusion": "increasing_decreasing"{norm}"#),
        ),
        ("Linear.velocity.Euler.constant.Mean", 15, format!(r#", "diffusion": "constant"{norm}"#)),
        ("Linear.velocity.Euler.sigma.Tweedie", 15, r#", "last_step": "tweedie""#.into()),
        ("Linear.velocity.Euler.sigma.Euler", 15, r#", "last_step": "euler""#.into()),
        ("Linear.velocity.Euler.sigma.None", 14, r#", "last_step": "none""#.into()),
        ("Linear.noise.Euler.SBDM.Mean", 25, r#", "diffusion": "sbdm""#.into()),
        ("GVP.velocity.Euler.sigma.Mean", 25, String::new()),
    ] {
        let mut parts = key.split('.');
        let network = flow(parts.next().unwrap(), parts.next().unwrap());
        let json = format!(r#"{{"steps": {steps}{more}}}"#);
        let key = format!("sde.{key}");
        compare::<samplers::EulerMaruyama, _>(&golden, &network, &json, &key, &none(), &unconditional(), 1e-9);
    }
}

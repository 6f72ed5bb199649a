//! The forward pass and gradients equal those of the official code, recorded in `shared/goldens`
//! (facebookresearch/DiT ed81ce2 and thu-ml/GFT 9bf5ee4, tiny configurations, f32; see MANIFEST.md there).

use dit::DitConfig;
use framework::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::burn::module::Module;
use framework::burn::optim::GradientsParams;
use framework::burn::store::bridge;
use framework::burn::tensor::TensorData;
use framework::foreign::{self, Layout, Report};
use framework::prelude::*;
use framework::random::Random;
use framework::vp::{Vp, VpConfig};
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

fn tensors(path: &FilePath) -> BTreeMap<String, TensorData> {
    foreign::open(path).unwrap().iter().map(|(name, tensor)| (name.clone(), bridge::to_data(tensor).unwrap())).collect()
}

fn numbers(data: &TensorData) -> Vec<f64> {
    data.clone().convert::<f64>().try_into_vec::<f64>().unwrap()
}

/// The manifest's tolerance: relative to the largest number of the reference.
#[track_caller]
fn close(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(expected).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= tolerance * largest, "{name}: {worst:e} against {largest:e}");
}

fn config(json: &str) -> DitConfig {
    framework::serde_json::from_str(json).unwrap()
}

fn plain() -> DitConfig {
    config(
        r#"{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 3, "num_heads": 4, "num_classes": 10, "learn_sigma": true}"#,
    )
}

fn guided(form: &str) -> DitConfig {
    config(&format!(
        r#"{{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 4, "num_classes": 1000, "learn_sigma": true, "guidance_input": "{form}"}}"#
    ))
}

fn load(config: &DitConfig, path: &FilePath, device: &Device) -> (BoxBackbone, Report) {
    let init = |path: &str, shape: &[usize]| config.initializer(path, shape);
    let network = weights::initialize(config.init(device), &Random::new(0), &init);
    foreign::load(network, &config.foreign_names(), path).unwrap()
}

fn positions(data: &TensorData) -> Tensor<3> {
    let x = Tensor::<4>::from_data(data.clone(), &Device::flex());
    let [b, c, h, w] = x.dims();
    x.permute([0, 2, 3, 1]).reshape([b, h * w, c])
}

/// In the official layout `[B, C, H, W]`, flat.
fn official(prediction: Tensor<3>) -> Vec<f64> {
    let [b, l, c] = prediction.dims();
    let side = l.isqrt();
    numbers(&prediction.reshape([b, side, side, c]).permute([0, 3, 1, 2]).into_data())
}

fn classes(y: &[f64], null: usize) -> Condition {
    Condition::Class(y.iter().map(|y| Some(*y as usize).filter(|y| *y < null)).collect())
}

fn run(
    config: &DitConfig,
    network: &BoxBackbone,
    x: &TensorData,
    t: &[f64],
    condition: &Condition,
    beta: Option<Vec<f64>>,
) -> Vec<f64> {
    let t = t.iter().map(|t| config.t_of_native(*t)).collect();
    official(network.predict(&Input::Noisy { x_t: positions(x), t }, condition, &Control::guided(beta)))
}

#[test]
fn forward_equals_the_official_code() {
    let Some(goldens) = goldens() else { return };
    let config = plain();
    let golden = tensors(&goldens.join("dit_forward.safetensors"));
    for file in ["dit_ckpt_plain.pt", "dit_ckpt_train.pt"] {
        let (network, report) = load(&config, &goldens.join(file), &Device::flex());
        assert_eq!(report.used.len(), 42, "{file}: {report}");
        let get = |name: &str| numbers(&golden[name]);
        let y = classes(&get("y"), 10);
        let out = run(&config, &network, &golden["x"], &get("t"), &y, None);
        close(file, &out, &get("out"), 1e-4);
        for t in ["0", "250", "999"] {
            let at = vec![t.parse::<f64>().unwrap(); 4];
            let cond = classes(&get("y_cond"), 10);
            let out = run(&config, &network, &golden["x"], &at, &cond, None);
            close(t, &out, &get(&format!("out_cond.t{t}")), 1e-4);
            let out = run(&config, &network, &golden["x"], &at, &cond.null(), None);
            close(t, &out, &get(&format!("out_null.t{t}")), 1e-4);
        }
        let out = run(&config, &network, &golden["x"], &get("t_frac"), &classes(&get("y_cond"), 10), None);
        close("fractional t", &out, &get("out_t_frac"), 1e-4);
    }
}

#[test]
fn training_container_reports_what_it_ignores() {
    let Some(goldens) = goldens() else { return };
    let (_, report) = load(&plain(), &goldens.join("dit_ckpt_train.pt"), &Device::flex());
    assert_eq!(report.nesting, "ema");
    assert_eq!(report.ignored.iter().filter(|(_, why)| why.contains("`model`")).count(), 42);
}

#[test]
fn guidance_inputs_equal_the_official_code() {
    let Some(goldens) = goldens() else { return };
    for form in ["linear", "mlp"] {
        let config = guided(form);
        let (network, report) = load(&config, &goldens.join(format!("gft_dit_{form}_ckpt.pt")), &Device::flex());
        assert!(report.fresh.is_empty(), "{report}");
        let golden = tensors(&goldens.join(format!("gft_dit_{form}_forward.safetensors")));
        let get = |name: &str| numbers(&golden[name]);
        let y = classes(&get("y"), 1000);
        for (name, beta) in [("out", Some(get("beta"))), ("out_beta1", Some(vec![1.0; 4])), ("out_nobeta", None)] {
            let out = run(&config, &network, &golden["x"], &get("t"), &y, beta);
            close(&format!("{form} {name}"), &out, &get(name), 1e-4);
        }
    }
}

#[test]
fn plain_checkpoint_starts_a_guided_network_at_the_published_model() {
    let Some(goldens) = goldens() else { return };
    let golden = tensors(&goldens.join("dit_forward.safetensors"));
    let get = |name: &str| numbers(&golden[name]);
    for form in ["linear", "mlp"] {
        let mut config = plain();
        config.guidance_input = framework::serde_json::from_str(&format!("\"{form}\"")).unwrap();
        let (network, report) = load(&config, &goldens.join("dit_ckpt_plain.pt"), &Device::flex());
        assert!(!report.fresh.is_empty());
        for beta in [0.1, 0.5, 1.0] {
            let out = run(&config, &network, &golden["x"], &get("t"), &classes(&get("y"), 10), Some(vec![beta; 4]));
            close(form, &out, &get("out"), 1e-4);
        }
    }
}

/// Gradient of a scalar by official parameter name, in the official layout.
fn gradients(config: &DitConfig, network: &BoxBackbone, loss: Tensor<1>) -> BTreeMap<String, Vec<f64>> {
    use framework::burn::module::{ModuleVisitor, Param};
    struct Read<'a>(Vec<String>, GradientsParams, &'a DitConfig, BTreeMap<String, Vec<f64>>);
    impl ModuleVisitor for Read<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.0.join(".");
            let Some(grad) = self.1.get::<D>(param.id) else { return };
            let name = (self.2.foreign_names().of)(&path);
            let grad = match name.layout {
                Layout::Transposed => grad.swap_dims(0, 1),
                Layout::PatchConv { patch } => {
                    let [rows, out] = grad.dims()[..] else { unreachable!() };
                    let conv = grad.reshape([patch * patch, rows / patch / patch, out]).permute([2, 1, 0]);
                    self.3.insert(name.name, numbers(&conv.into_data()));
                    return;
                }
                _ => grad,
            };
            self.3.insert(name.name, numbers(&grad.into_data()));
        }
    }
    let grads = GradientsParams::from_grads(loss.backward(), network);
    let mut read = Read(Vec::new(), grads, config, BTreeMap::new());
    network.visit(&mut read);
    read.3
}

#[track_caller]
fn same_gradients(prefix: &str, got: &BTreeMap<String, Vec<f64>>, golden: &BTreeMap<String, TensorData>) {
    let mut compared = 0;
    for (name, expected) in golden {
        if let Some(name) = name.strip_prefix(&format!("{prefix}grad_norm.")) {
            let expected = numbers(expected)[0];
            let norm = got.get(name).map_or(0.0, |g| g.iter().map(|v| v * v).sum::<f64>().sqrt());
            assert!((norm - expected).abs() <= 1e-3 * expected + 1e-6, "{name}: {norm} against {expected}");
            compared += 1;
        } else if let Some(name) = name.strip_prefix(&format!("{prefix}grad.")) {
            let expected = numbers(expected);
            match name {
                "t_embedder.cond_proj.weight.rows0to8" => {
                    close(name, &got["t_embedder.cond_proj.weight"][..8 * 512], &expected, 1e-3)
                }
                "y_embedder.rows" => {
                    let table = &got["y_embedder.embedding_table.weight"];
                    let rows: Vec<f64> =
                        [0, 1, 2, 3, 7, 9, 1000].iter().flat_map(|r| table[r * 48..(r + 1) * 48].to_vec()).collect();
                    close(name, &rows, &expected, 1e-3);
                }
                _ => close(name, &got[name], &expected, 1e-3),
            }
            compared += 1;
        }
    }
    assert!(compared > 30, "{compared} gradients compared");
}

#[test]
fn gradients_equal_the_official_code() {
    let Some(goldens) = goldens() else { return };
    let config = plain();
    let device = Device::flex().autodiff();
    let (network, _) = load(&config, &goldens.join("dit_ckpt_plain.pt"), &device);
    let golden = tensors(&goldens.join("dit_grad.safetensors"));
    let get = |name: &str| numbers(&golden[name]);
    let t: Vec<f64> = get("t").iter().map(|t| config.t_of_native(*t)).collect();
    let vp: Vp = config.process.process();
    let example = vp.example(positions(&golden["x_start"]), positions(&golden["noise"]), t);
    let Input::Noisy { x_t, .. } = &example.input else { unreachable!() };
    close("x_t", &official(x_t.clone()), &get("x_t"), 1e-5);
    let prediction = network.predict(&example.input, &classes(&get("y"), 10), &Control::default());
    let loss = vp.loss(prediction, &example).mean();
    close("loss", &[f64::from(loss.clone().into_scalar::<f32>())], &get("mse.loss"), 1e-5);
    same_gradients("mse.", &gradients(&config, &network, loss), &golden);

    // The whole loss of the official training: the squared error and the bound that trains the variance.
    let vp: Vp = VpConfig { variance_loss: true, ..config.process.clone() }.process();
    let prediction = network.predict(&example.input, &classes(&get("y"), 10), &Control::default());
    let losses = vp.loss(prediction, &example);
    close("official.loss", &numbers(&losses.clone().inner().into_data()), &get("official.loss"), 1e-5);
    same_gradients("official.", &gradients(&config, &network, losses.mean()), &golden);
}

#[test]
fn gft_mixture_has_the_official_loss_and_gradients() {
    let Some(goldens) = goldens() else { return };
    let config = guided("linear");
    let device = Device::flex().autodiff();
    let (network, _) = load(&config, &goldens.join("gft_dit_linear_ckpt.pt"), &device);
    let golden = tensors(&goldens.join("gft_dit_objective_gft.safetensors"));
    let get = |name: &str| numbers(&golden[name]);
    let t: Vec<f64> = get("t").iter().map(|t| config.t_of_native(*t)).collect();
    let vp = config.process.process();
    let example = vp.example(positions(&golden["x_start"]), positions(&golden["noise"]), t);
    let condition = classes(&get("y"), 1000);
    // The objective itself, with the recorded draws in place of random ones.
    let models = Recorded { stopped: network.valid(), online: network.clone() };
    let draws = Draws { beta: get("beta"), drop: get("drop_ids").iter().map(|d| *d > 0.5).collect() };
    let context = Context::new(&example, (&condition, Some(1000)), &vp, &models, &draws, (0, 1));
    let losses = framework::serde_json::from_str::<objectives::Gft>("{}").unwrap().loss(&context);
    close("losses", &numbers(&losses.clone().inner().into_data()), &get("loss"), 1e-5);
    let loss = losses.mean();
    close("mean", &[f64::from(loss.clone().into_scalar::<f32>())], &get("loss_mean"), 1e-5);
    same_gradients("", &gradients(&config, &network, loss), &golden);
}

#[test]
fn distillation_has_the_official_loss_and_gradients() {
    let Some(goldens) = goldens() else { return };
    let config = guided("linear");
    let device = Device::flex().autodiff();
    let (network, _) = load(&config, &goldens.join("gft_dit_linear_ckpt.pt"), &device);
    let golden = tensors(&goldens.join("gft_dit_objective_distill.safetensors"));
    let get = |name: &str| numbers(&golden[name]);
    // The teacher is the same network without guidance input, with some weights of its own.
    let mut weights = weights::export(&network.valid());
    for (name, data) in &golden {
        let Some(official) = name.strip_prefix("teacher_override.") else { continue };
        let names = config.foreign_names();
        let (own, shape) = weights
            .iter()
            .map(|(own, data)| (own.clone(), data.shape().to_vec()))
            .find(|(own, _)| (names.of)(own).name == official)
            .unwrap_or_else(|| panic!("no parameter for {official}"));
        weights.insert(own.clone(), (names.of)(&own).layout.to_own(data.clone(), &shape).unwrap());
    }
    let teacher = weights::restore(network.valid(), weights).unwrap();
    let t: Vec<f64> = get("t").iter().map(|t| config.t_of_native(*t)).collect();
    let vp = config.process.process();
    let example = vp.example(positions(&golden["x_start"]), positions(&golden["noise"]), t);
    let condition = classes(&get("y"), 1000);
    let models = Recorded { stopped: teacher, online: network.clone() };
    let draws = Draws { beta: get("beta"), drop: Vec::new() };
    let context = Context::new(&example, (&condition, Some(1000)), &vp, &models, &draws, (0, 1));
    let losses = framework::serde_json::from_str::<objectives::Distill>("{}").unwrap().loss(&context);
    // Scales of up to 5 give sinusoids of 5,000, which the official code computes in f32: its embedding is off by 3e-4.
    // With the same rounding on our side the losses agree to 1e-5.
    close("losses", &numbers(&losses.clone().inner().into_data()), &get("loss"), 2e-5);
    same_gradients("", &gradients(&config, &network, losses.mean()), &golden);
}

struct Recorded {
    online: BoxBackbone,
    stopped: BoxBackbone,
}

impl framework::objective::Models for Recorded {
    fn predict(
        &self,
        role: framework::objective::Role,
        input: &Input,
        condition: &Condition,
        control: &Control,
    ) -> Tensor<3> {
        match role {
            framework::objective::Role::Online => self.online.predict(input, condition, control),
            _ => self.stopped.predict(input, condition, control),
        }
    }
}

struct Draws {
    beta: Vec<f64>,
    drop: Vec<bool>,
}

impl framework::objective::Draw for Draws {
    fn uniform(&self, _: &str, _: f64, _: f64, _: usize) -> Vec<f64> {
        self.beta.clone()
    }
    fn choice(&self, _: &str, _: &[f64], _: usize) -> Vec<usize> {
        self.drop.iter().map(|drop| usize::from(!drop)).collect()
    }
    fn negative(&self, _: &str, _: &Condition) -> Condition {
        unreachable!("gft and distill ask for no negatives")
    }
}

#[test]
fn published_sizes_count_the_published_parameters() {
    // Table 1 of arXiv:2212.09748 rounds to millions; positions are no parameters there.
    for (size, published) in [("S/2", 33.0), ("B/2", 130.0), ("L/2", 458.0), ("XL/2", 675.0)] {
        let config = config(&format!(r#"{{"size": "{size}", "learn_sigma": true}}"#));
        let parameters = weights::parameters(&config.init(&Device::flex()));
        let count: usize = parameters
            .iter()
            .filter(|(path, ..)| path != "pos_embed")
            .map(|(_, shape, _)| shape.iter().product::<usize>())
            .sum();
        let millions = count as f64 / 1e6;
        assert!((millions - published).abs() < 0.005 * published + 0.5, "{size}: {millions}");
    }
}

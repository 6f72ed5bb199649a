//! Compares the forward pass and the gradients with recordings of the official code: facebookresearch/DiT ed81ce2
//! and thu-ml/GFT 9bf5ee4, tiny configurations, f32. `tests/goldens/data/MANIFEST.md` describes the recordings.

use dit::DitConfig;
use framework::burn::module::Module;
use framework::network::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::nn::parameters;
use framework::prelude::*;
use framework::process::diffusion::{Vp, VpConfig};
use framework_dylib as _;
use goldens::{Draws, Golden, Gradients, Recorded, close, gradients, load, overridden, values};

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

fn positions(x: Tensor<4>) -> Tensor<3> {
    let [b, c, h, w] = x.dims();
    x.permute([0, 2, 3, 1]).reshape([b, h * w, c])
}

/// Returns the prediction in the official layout `[B, C, H, W]`, flattened.
fn official(prediction: Tensor<3>) -> Vec<f64> {
    let [b, l, c] = prediction.dims();
    let side = l.isqrt();
    values(prediction.reshape([b, side, side, c]).permute([0, 3, 1, 2]))
}

fn run(
    config: &DitConfig,
    network: &BoxBackbone,
    x: Tensor<4>,
    t: &[f64],
    condition: &Condition,
    beta: Option<Vec<f64>>,
) -> Vec<f64> {
    let t = t.iter().map(|t| config.t_of_native(*t)).collect();
    official(network.predict(&Input::Noisy { x_t: positions(x), t }, condition, &Control::guided(beta)))
}

#[test]
fn forward_equals_the_official_code() {
    let golden = Golden::open("dit_forward.safetensors");
    let config = plain();
    for file in ["dit_ckpt_plain.pt", "dit_ckpt_train.pt"] {
        let (network, report) = load(&config, file, &Device::flex());
        assert_eq!(report.used.len(), 42, "{file}: {report}");
        let run = |t: &[f64], condition: &Condition| run(&config, &network, golden.tensor("x"), t, condition, None);
        close(file, &run(&golden.numbers("t"), &golden.classes("y", 10)), &golden.numbers("out"), 1e-4);
        let y = golden.classes("y_cond", 10);
        for t in ["0", "250", "999"] {
            let at = vec![t.parse::<f64>().unwrap(); 4];
            close(t, &run(&at, &y), &golden.numbers(&format!("out_cond.t{t}")), 1e-4);
            close(t, &run(&at, &y.null()), &golden.numbers(&format!("out_null.t{t}")), 1e-4);
        }
        close("fractional t", &run(&golden.numbers("t_frac"), &y), &golden.numbers("out_t_frac"), 1e-4);
    }
}

#[test]
fn training_container_reports_what_it_ignores() {
    let (_, report) = load(&plain(), "dit_ckpt_train.pt", &Device::flex());
    assert_eq!(report.nesting, "ema");
    assert_eq!(report.ignored.iter().filter(|(_, why)| why.contains("`model`")).count(), 42);
}

#[test]
fn guidance_inputs_equal_the_official_code() {
    for form in ["linear", "mlp"] {
        let golden = Golden::open(&format!("gft_dit_{form}_forward.safetensors"));
        let config = guided(form);
        let (network, report) = load(&config, &format!("gft_dit_{form}_ckpt.pt"), &Device::flex());
        assert!(report.fresh.is_empty(), "{report}");
        let (t, y) = (golden.numbers("t"), golden.classes("y", 1000));
        for (name, beta) in
            [("out", Some(golden.numbers("beta"))), ("out_beta1", Some(vec![1.0; 4])), ("out_nobeta", None)]
        {
            let out = run(&config, &network, golden.tensor("x"), &t, &y, beta);
            close(&format!("{form} {name}"), &out, &golden.numbers(name), 1e-4);
        }
    }
}

#[test]
fn plain_checkpoint_starts_a_guided_network_at_the_published_model() {
    let golden = Golden::open("dit_forward.safetensors");
    for form in ["linear", "mlp"] {
        let mut config = plain();
        config.guidance_input = framework::serde_json::from_str(&format!("\"{form}\"")).unwrap();
        let (network, report) = load(&config, "dit_ckpt_plain.pt", &Device::flex());
        assert!(!report.fresh.is_empty());
        let (t, y) = (golden.numbers("t"), golden.classes("y", 10));
        for beta in [0.1, 0.5, 1.0] {
            let out = run(&config, &network, golden.tensor("x"), &t, &y, Some(vec![beta; 4]));
            close(form, &out, &golden.numbers("out"), 1e-4);
        }
    }
}

/// Compares the gradients. For two large tables, only some rows are recorded.
#[track_caller]
fn same_gradients(prefix: &str, got: &Gradients, golden: &Golden) {
    let part = |name: &str| match name {
        "t_embedder.cond_proj.weight.rows0to8" => Some(got["t_embedder.cond_proj.weight"][..8 * 512].to_vec()),
        "y_embedder.rows" => {
            let table = &got["y_embedder.embedding_table.weight"];
            Some([0, 1, 2, 3, 7, 9, 1000].iter().flat_map(|r| table[r * 48..(r + 1) * 48].to_vec()).collect())
        }
        _ => None,
    };
    goldens::same_gradients(prefix, got, golden, &part, 31);
}

/// Builds the recorded training example, with its times converted to ours.
fn example(config: &DitConfig, vp: &Vp, golden: &Golden) -> Example {
    let t = golden.numbers("t").iter().map(|t| config.t_of_native(*t)).collect();
    vp.example(positions(golden.tensor("x_start")), positions(golden.tensor("noise")), t)
}

#[test]
fn gradients_equal_the_official_code() {
    let golden = Golden::open("dit_grad.safetensors");
    let config = plain();
    let (network, _) = load(&config, "dit_ckpt_plain.pt", &Device::flex().autodiff());
    let vp: Vp = config.process.process();
    let example = example(&config, &vp, &golden);
    let Input::Noisy { x_t, .. } = &example.input else { unreachable!() };
    close("x_t", &official(x_t.clone()), &golden.numbers("x_t"), 1e-5);
    let predict = || network.predict(&example.input, &golden.classes("y", 10), &Control::default());
    let loss = vp.loss(predict(), &example).mean();
    close("loss", &values(loss.clone().inner()), &golden.numbers("mse.loss"), 1e-5);
    same_gradients("mse.", &gradients(&config.formats()[0], &network, loss), &golden);

    // The full loss of the official training adds the variational bound, which trains the variance.
    let vp: Vp = VpConfig { variance_loss: true, ..config.process.clone() }.process();
    let losses = vp.loss(predict(), &example);
    close("official.loss", &values(losses.clone().inner()), &golden.numbers("official.loss"), 1e-5);
    same_gradients("official.", &gradients(&config.formats()[0], &network, losses.mean()), &golden);
}

#[test]
fn gft_mixture_has_the_official_loss_and_gradients() {
    let golden = Golden::open("gft_dit_objective_gft.safetensors");
    let config = guided("linear");
    let (network, _) = load(&config, "gft_dit_linear_ckpt.pt", &Device::flex().autodiff());
    let vp = config.process.process();
    let (example, condition) = (example(&config, &vp, &golden), golden.classes("y", 1000));
    // Run the objective itself on the recorded random choices.
    let models = Recorded { other: network.valid(), online: network.clone() };
    let draws = Draws { uniform: golden.numbers("beta"), dropped: golden.flags("drop_ids"), negative: None };
    let context = Context::new(&example, (&condition, Some(1000)), &vp, &models, &draws, (0, 1));
    let losses = framework::serde_json::from_str::<objectives::Gft>("{}").unwrap().loss(&context);
    close("losses", &values(losses.clone().inner()), &golden.numbers("loss"), 1e-5);
    let loss = losses.mean();
    close("mean", &values(loss.clone().inner()), &golden.numbers("loss_mean"), 1e-5);
    same_gradients("", &gradients(&config.formats()[0], &network, loss), &golden);
}

#[test]
fn distillation_has_the_official_loss_and_gradients() {
    let golden = Golden::open("gft_dit_objective_distill.safetensors");
    let config = guided("linear");
    let (network, _) = load(&config, "gft_dit_linear_ckpt.pt", &Device::flex().autodiff());
    // The teacher is the same network with some weights replaced. The objective gives it no guidance number.
    let teacher = overridden(network.valid(), &config.formats()[0], &golden, "teacher_override.");
    let vp = config.process.process();
    let (example, condition) = (example(&config, &vp, &golden), golden.classes("y", 1000));
    let models = Recorded { other: teacher, online: network.clone() };
    let draws = Draws { uniform: golden.numbers("beta"), ..Draws::default() };
    let context = Context::new(&example, (&condition, Some(1000)), &vp, &models, &draws, (0, 1));
    let losses = framework::serde_json::from_str::<objectives::Distill>("{}").unwrap().loss(&context);
    // Scales up to 5 give sinusoid arguments up to 5,000. The official code computes the sinusoids in f32, so its
    // embedding has an error of 3e-4. If our code rounds the same way, the losses agree to 1e-5.
    close("losses", &values(losses.clone().inner()), &golden.numbers("loss"), 2e-5);
    same_gradients("", &gradients(&config.formats()[0], &network, losses.mean()), &golden);
}

#[test]
fn published_sizes_count_the_published_parameters() {
    // Table 1 of arXiv:2212.09748 rounds to millions and does not count the position table.
    for (size, published) in [("S/2", 33.0), ("B/2", 130.0), ("L/2", 458.0), ("XL/2", 675.0)] {
        let config = config(&format!(r#"{{"size": "{size}", "learn_sigma": true}}"#));
        let parameters = parameters::parameters(&config.init(&Device::flex()));
        let count: usize = parameters
            .iter()
            .filter(|(path, ..)| path != "pos_embed")
            .map(|(_, shape, _)| shape.iter().product::<usize>())
            .sum();
        let millions = count as f64 / 1e6;
        assert!((millions - published).abs() < 0.005 * published + 0.5, "{size}: {millions}");
    }
}

//! The forward pass and gradients equal those of the official code, recorded in `shared/goldens`
//! (facebookresearch/DiT ed81ce2 and thu-ml/GFT 9bf5ee4, tiny configurations, f32; see MANIFEST.md there).

use dit::DitConfig;
use framework::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::burn::module::Module;
use framework::prelude::*;
use framework::vp::{Vp, VpConfig};
use framework::weights;
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

/// In the official layout `[B, C, H, W]`, flat.
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
    let Some(golden) = Golden::open("dit_forward.safetensors") else { return };
    let config = plain();
    for file in ["dit_ckpt_plain.pt", "dit_ckpt_train.pt"] {
        let Some((network, report)) = load(&config, file, &Device::flex()) else { return };
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
    let Some((_, report)) = load(&plain(), "dit_ckpt_train.pt", &Device::flex()) else { return };
    assert_eq!(report.nesting, "ema");
    assert_eq!(report.ignored.iter().filter(|(_, why)| why.contains("`model`")).count(), 42);
}

#[test]
fn guidance_inputs_equal_the_official_code() {
    for form in ["linear", "mlp"] {
        let Some(golden) = Golden::open(&format!("gft_dit_{form}_forward.safetensors")) else { return };
        let config = guided(form);
        let Some((network, report)) = load(&config, &format!("gft_dit_{form}_ckpt.pt"), &Device::flex()) else {
            return;
        };
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
    let Some(golden) = Golden::open("dit_forward.safetensors") else { return };
    for form in ["linear", "mlp"] {
        let mut config = plain();
        config.guidance_input = framework::serde_json::from_str(&format!("\"{form}\"")).unwrap();
        let Some((network, report)) = load(&config, "dit_ckpt_plain.pt", &Device::flex()) else { return };
        assert!(!report.fresh.is_empty());
        let (t, y) = (golden.numbers("t"), golden.classes("y", 10));
        for beta in [0.1, 0.5, 1.0] {
            let out = run(&config, &network, golden.tensor("x"), &t, &y, Some(vec![beta; 4]));
            close(form, &out, &golden.numbers("out"), 1e-4);
        }
    }
}

/// Rows of gradients that were recorded in part.
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

/// The recorded training example, on our clock.
fn example(config: &DitConfig, vp: &Vp, golden: &Golden) -> Example {
    let t = golden.numbers("t").iter().map(|t| config.t_of_native(*t)).collect();
    vp.example(positions(golden.tensor("x_start")), positions(golden.tensor("noise")), t)
}

#[test]
fn gradients_equal_the_official_code() {
    let Some(golden) = Golden::open("dit_grad.safetensors") else { return };
    let config = plain();
    let Some((network, _)) = load(&config, "dit_ckpt_plain.pt", &Device::flex().autodiff()) else { return };
    let vp: Vp = config.process.process();
    let example = example(&config, &vp, &golden);
    let Input::Noisy { x_t, .. } = &example.input else { unreachable!() };
    close("x_t", &official(x_t.clone()), &golden.numbers("x_t"), 1e-5);
    let predict = || network.predict(&example.input, &golden.classes("y", 10), &Control::default());
    let loss = vp.loss(predict(), &example).mean();
    close("loss", &values(loss.clone().inner()), &golden.numbers("mse.loss"), 1e-5);
    same_gradients("mse.", &gradients(&config.formats()[0], &network, loss), &golden);

    // The whole loss of the official training: the squared error and the bound that trains the variance.
    let vp: Vp = VpConfig { variance_loss: true, ..config.process.clone() }.process();
    let losses = vp.loss(predict(), &example);
    close("official.loss", &values(losses.clone().inner()), &golden.numbers("official.loss"), 1e-5);
    same_gradients("official.", &gradients(&config.formats()[0], &network, losses.mean()), &golden);
}

#[test]
fn gft_mixture_has_the_official_loss_and_gradients() {
    let Some(golden) = Golden::open("gft_dit_objective_gft.safetensors") else { return };
    let config = guided("linear");
    let Some((network, _)) = load(&config, "gft_dit_linear_ckpt.pt", &Device::flex().autodiff()) else { return };
    let vp = config.process.process();
    let (example, condition) = (example(&config, &vp, &golden), golden.classes("y", 1000));
    // The objective itself, with the recorded draws in place of random ones.
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
    let Some(golden) = Golden::open("gft_dit_objective_distill.safetensors") else { return };
    let config = guided("linear");
    let Some((network, _)) = load(&config, "gft_dit_linear_ckpt.pt", &Device::flex().autodiff()) else { return };
    // The teacher is the same network without guidance input, with some weights of its own.
    let teacher = overridden(network.valid(), &config.formats()[0], &golden, "teacher_override.");
    let vp = config.process.process();
    let (example, condition) = (example(&config, &vp, &golden), golden.classes("y", 1000));
    let models = Recorded { other: teacher, online: network.clone() };
    let draws = Draws { uniform: golden.numbers("beta"), ..Draws::default() };
    let context = Context::new(&example, (&condition, Some(1000)), &vp, &models, &draws, (0, 1));
    let losses = framework::serde_json::from_str::<objectives::Distill>("{}").unwrap().loss(&context);
    // Scales of up to 5 give sinusoids of 5,000, which the official code computes in f32: its embedding is off by 3e-4.
    // With the same rounding on our side the losses agree to 1e-5.
    close("losses", &values(losses.clone().inner()), &golden.numbers("loss"), 2e-5);
    same_gradients("", &gradients(&config.formats()[0], &network, losses.mean()), &golden);
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

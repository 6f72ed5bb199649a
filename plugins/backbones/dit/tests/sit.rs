//! Compares the forward pass, the losses and the gradients of SiT with recordings of the official code: willisma/SiT
//! 947f95b, a tiny configuration, f32. `tests/goldens/data/MANIFEST.md` describes the recordings.
//!
//! The official time is 1 - t, and the official velocities have the opposite sign. The squared error does not depend
//! on the sign, because it changes in the prediction and in the target.

use dit::SitConfig;
use framework::network::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::nn::parameters;
use framework::nn::{from_positions, to_positions};
use framework::prelude::*;
use framework::process::flow::InterpolantConfig;
use framework::process::path::convert;
use framework_dylib as _;
use goldens::{Golden, close, gradients, load, same_gradients, values};

fn config(path: &str, prediction: &str, weighting: &str) -> SitConfig {
    let process = format!(r#"{{"path": "{path}", "prediction": "{prediction}", "weighting": "{weighting}"}}"#);
    framework::serde_json::from_str(&format!(
        r#"{{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 3,
            "num_classes": 10, "learn_sigma": true, "process": {process}}}"#
    ))
    .unwrap()
}

fn flow() -> SitConfig {
    config("linear", "velocity", "none")
}

/// Returns the prediction at the official times `t`, in the official layout and sign.
fn run(config: &SitConfig, network: &BoxBackbone, x: Tensor<4>, t: &[f64], condition: &Condition) -> Vec<f64> {
    let t = t.iter().map(|t| config.t_of_native(*t)).collect();
    let input = Input::Noisy { x_t: to_positions(x), t };
    let prediction = config.to_native(network.predict(&input, condition, &Control::default()));
    values(from_positions(prediction, [8, 8]))
}

#[test]
fn forward_equals_the_official_code() {
    let (config, golden) = (flow(), Golden::open("sit_forward.safetensors"));
    for file in ["sit_ckpt_plain.pt", "sit_ckpt_ema.pt"] {
        let (network, report) = load(&config, file, &Device::flex());
        assert_eq!(report.used.len(), 32, "{file}: {report}");
        let run = |t: &[f64], condition: &Condition| run(&config, &network, golden.tensor("x"), t, condition);
        close(file, &run(&golden.numbers("t"), &golden.classes("y", 10)), &golden.numbers("out"), 1e-4);
        let y = golden.classes("y_cond", 10);
        for t in ["0.0", "0.3", "0.95"] {
            let at = vec![t.parse::<f64>().unwrap(); 4];
            close(t, &run(&at, &y), &golden.numbers(&format!("out_cond.t{t}")), 1e-4);
            close(t, &run(&at, &y.null()), &golden.numbers(&format!("out_null.t{t}")), 1e-4);
        }
    }
}

/// Computes the loss of every recorded path, prediction and weighting from the recorded data, noise and times.
#[test]
fn losses_equal_the_official_transport() {
    let golden = Golden::open("sit_loss_grad.safetensors");
    let [x, eps] = ["x1", "x0_noise"].map(|name| to_positions(golden.tensor(name)));
    for (path, their_path) in [("linear", "Linear"), ("gvp", "GVP"), ("vp", "VP")] {
        for (prediction, their_prediction) in [("velocity", "velocity"), ("eps", "noise"), ("score", "score")] {
            for weighting in ["none", "velocity", "likelihood"] {
                let suffix = if weighting == "none" { String::new() } else { format!(".w_{weighting}") };
                let name = format!("{their_path}.{their_prediction}{suffix}");
                if !golden.names().any(|recorded| recorded == format!("{name}.loss")) {
                    continue;
                }
                let config = config(path, prediction, weighting);
                let (network, _) = load(&config, "sit_ckpt_plain.pt", &Device::flex());
                let t = golden.numbers(&format!("{name}.t")).iter().map(|t| config.t_of_native(*t)).collect();
                let process = config.process.process();
                let example = process.example(x.clone(), eps.clone(), t);
                let Input::Noisy { x_t, .. } = &example.input else { unreachable!() };
                if weighting == "none" {
                    let x_t = values(from_positions(x_t.clone(), [8, 8]));
                    close(&name, &x_t, &golden.numbers(&format!("{name}.xt")), 1e-5);
                }
                let prediction = network.predict(&example.input, &golden.classes("y", 10), &Control::default());
                let losses = values(process.loss(prediction, &example));
                for (ours, theirs) in losses.iter().zip(golden.numbers(&format!("{name}.loss"))) {
                    assert!((ours - theirs).abs() <= 1e-5 * theirs, "{name}: {losses:?}");
                }
            }
        }
    }
}

#[test]
fn gradients_equal_the_official_transport() {
    let (config, golden) = (flow(), Golden::open("sit_loss_grad.safetensors"));
    let (network, _) = load(&config, "sit_ckpt_plain.pt", &Device::flex().autodiff());
    let [x, eps] = ["x1", "x0_noise"].map(|name| to_positions(golden.tensor(name)));
    let t = golden.numbers("Linear.velocity.t").iter().map(|t| config.t_of_native(*t)).collect();
    let process = config.process.process();
    let example = process.example(x, eps, t);
    let prediction = network.predict(&example.input, &golden.classes("y", 10), &Control::default());
    let loss = process.loss(prediction, &example).mean();
    let got = gradients(&config.formats()[0], &network, loss);
    same_gradients("Linear.velocity.", &got, &golden, &|_| None, 31);
}

#[test]
fn conversions_equal_the_official_sampler() {
    let golden = Golden::open("sit_loss_grad.safetensors");
    use Prediction::{Eps, Score, Velocity};
    let ([v, x], t) = (["conv.v", "conv.x"].map(|name| golden.tensor::<4>(name)), golden.numbers("conv.t"));
    for (path, theirs) in [("linear", "Linear"), ("gvp", "GVP"), ("vp", "VP")] {
        let json = format!(r#"{{"path": "{path}"}}"#);
        let process = framework::serde_json::from_str::<InterpolantConfig>(&json).unwrap().process();
        for (from, to, name) in [
            (Velocity, Score, "score_from_velocity"),
            (Velocity, Eps, "noise_from_velocity"),
            (Score, Velocity, "velocity_from_score"),
        ] {
            let sign = |kind| if kind == Velocity { -1.0 } else { 1.0 };
            let one = |i: usize| {
                let at = process.at(1.0 - t[i]);
                let [v, x] = [&v, &x].map(|all| all.clone().narrow(0, i, 1));
                values(convert(from, to, v * sign(from), x, at) * sign(to))
            };
            let got: Vec<f64> = (0..t.len()).flat_map(one).collect();
            close(&format!("{theirs}.{name}"), &got, &golden.numbers(&format!("conv.{theirs}.{name}")), 1e-4);
        }
    }
}

#[test]
fn published_sizes_count_the_published_parameters() {
    // Table 1 of arXiv:2401.08740 rounds to millions and does not count the position table.
    for (size, published) in [("S/2", 33.0), ("B/2", 130.0), ("L/2", 458.0), ("XL/2", 675.0)] {
        let config: SitConfig =
            framework::serde_json::from_str(&format!(r#"{{"size": "{size}", "learn_sigma": true}}"#)).unwrap();
        let parameters = parameters::parameters(&config.init(&Device::flex()));
        let trained = parameters.iter().filter(|(path, ..)| path != "pos_embed");
        let count: usize = trained.map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        let millions = count as f64 / 1e6;
        assert!((millions - published).abs() < 0.005 * published + 0.5, "{size}: {millions}");
    }
}

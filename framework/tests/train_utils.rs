//! Optimizer, clipping, schedules and averages equal PyTorch and diffusers, recorded in `tests/goldens/data`
//! (torch 2.15, diffusers 0.32.2; `train_utils.safetensors` in MANIFEST.md there).

use framework::burn;
use framework::burn::module::{Module, Param};
use framework::burn::optim::GradientsParams;
use framework::burn::tensor::{Device, Tensor};
use framework::nn::parameters;
use framework::optimization::optimizer::{
    LearningRateDecay, OptimizerConfig, WeightDecayGroup, clip_global_norm, learning_rate,
};
use framework::pipeline::train_config::EmaConfig;
use framework_dylib as _;
use goldens::{Golden, close, numbers};

#[derive(Module, Debug)]
struct Two {
    w: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
}

const FILE: &str = "train_utils.safetensors";

/// Runs six steps with the recorded gradients. The weights after each step and the final average must equal
/// the recording.
fn trajectory(golden: &Golden, key: &str, optimizer: &str, groups: &[WeightDecayGroup], clip: Option<f64>) {
    let device = Device::flex().autodiff();
    let load = |name: &str| golden.data(name).clone();
    let mut model = Two {
        w: Param::from_tensor(Tensor::from_data(load("w0"), &device).require_grad()),
        b: Param::from_tensor(Tensor::from_data(load("b0"), &device).require_grad()),
    };
    let mut average = model.valid();
    let config: OptimizerConfig = framework::serde_json::from_str(optimizer).unwrap();
    let mut optimizer = config.init(groups).unwrap();
    let rates = golden.numbers(&format!("{key}.lr"));
    for (i, rate) in rates.iter().enumerate() {
        let mut grads = GradientsParams::new();
        let plain = Device::flex();
        grads.register::<2>(model.w.id, Tensor::from_data(load(&format!("grad_w.{i}")), &plain));
        grads.register::<1>(model.b.id, Tensor::from_data(load(&format!("grad_b.{i}")), &plain));
        let (grads, norm) = clip_global_norm(&model, grads, clip);
        if clip.is_some() {
            close("norm", &[norm], &[golden.numbers("llamagen.grad_norm_before_clip")[i]], 1e-5);
        }
        model = optimizer.step(*rate, model, grads);
        average = parameters::average(average, &model, 0.99);
        let values = parameters::export(&model);
        for name in ["w", "b"] {
            close(
                &format!("{key}.{name}.{i}"),
                &numbers(values[name].clone()),
                &golden.numbers(&format!("{key}.{name}.{i}")),
                1e-5,
            );
        }
    }
    let values = parameters::export(&average);
    close("ema w", &numbers(values["w"].clone()), &golden.numbers(&format!("{key}.ema_w")), 1e-5);
    close("ema b", &numbers(values["b"].clone()), &golden.numbers(&format!("{key}.ema_b")), 1e-5);
}

#[test]
fn adamw_and_ema_equal_pytorch() {
    let golden = Golden::open(FILE);
    trajectory(&golden, "dit", r#"{"type": "adamw"}"#, &[], None);
    trajectory(&golden, "gft_cos", r#"{"type": "adamw"}"#, &[], None);
    trajectory(&golden, "sd_warm", r#"{"type": "adamw", "weight_decay": 1e-2}"#, &[], None);
    let no_decay = WeightDecayGroup { parameters: "^b$".into(), weight_decay: 0.0 };
    let llamagen = r#"{"type": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.05}"#;
    trajectory(&golden, "llamagen", llamagen, &[no_decay], Some(1.0));
}

#[test]
fn schedules_equal_pytorch() {
    let golden = Golden::open(FILE);
    let cosine = |to: f64, t_max: usize, base: f64, n: usize| -> Vec<f64> {
        (0..n).map(|s| learning_rate(base, 0, &LearningRateDecay::Cosine { to }, s, t_max)).collect()
    };
    close("gft_cos", &cosine(1e-5, 20, 1e-2, 6), &golden.numbers("gft_cos.lr"), 1e-9);
    close("periodic", &cosine(1e-5, 50, 1e-4, 70), &golden.numbers("cosine_1e-4_T50_min1e-5.lr"), 1e-9);
    let warm: Vec<f64> = (0..6).map(|s| learning_rate(1e-2, 4, &LearningRateDecay::Constant, s, 6)).collect();
    close("sd_warm", &warm, &golden.numbers("sd_warm.lr"), 1e-9);
}

#[test]
fn ema_warmup_equals_diffusers() {
    let golden = Golden::open(FILE);
    let config = EmaConfig { decay: 0.9999, warmup: true };
    let steps = golden.numbers("diffusers_ema.step");
    let decays = golden.numbers("diffusers_ema.decay_at_step");
    for (step, decay) in steps.into_iter().zip(decays).filter(|(step, _)| *step > 1.0) {
        // diffusers counts its own calls: call `step` uses the decay that follows `step - 1` updates.
        close("decay", &[config.decay_at(step as usize - 1)], &[decay], 1e-9);
    }
}

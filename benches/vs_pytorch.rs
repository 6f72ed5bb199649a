//! Measures time and peak memory of forward passes, training steps and cached decoding, for networks with random
//! weights. `vs_pytorch.py` compares the results with PyTorch.
//!
//!   cargo bench --workspace --bench vs_pytorch                            every case, without PyTorch
//!   cargo bench --workspace --bench vs_pytorch -- sd15-half forward 20    one case, over 20 passes
//!   python benches/vs_pytorch.py                                          every case, in turn with PyTorch
//!
//! A training step consists of the loss of one batch, its gradient, and an AdamW step. In bf16, the weights stay in f32
//! and are cast when they are read. Decoding computes the first tokens of an image, one pass per token. Each case runs
//! in its own process, so that its peak memory can be measured. The values of the weights do not affect the timing.

mod networks;

use framework::burn::module::Module;
use framework::burn::tensor::{Device, Int, Tensor};
use framework::network::backbone::{Backbone, BackboneConfig, BoxBackbone, Cache, Control};
use framework::network::condition::Condition;
use framework::network::microbatch;
use framework::nn::parameters;
use framework::nn::precision::CastAll;
use framework::optimization::optimizer::OptimizerConfig;
use framework::process::{Input, log_probabilities};
use networks::{initialized, median_seconds, normal, stepped};
use serde_json::{from_value, json};
use std::process::Command;
use unguided as _;

/// Network, batch size, and the modes to measure.
const CASES: [(&str, usize, &[&str]); 8] = [
    ("digits-dit", 128, &["train", "forward"]),
    ("dit-s-2", 8, &["train", "train_bf16", "forward"]),
    ("sit-s-2", 8, &["train", "forward"]),
    ("llamagen-b", 2, &["train", "train_bf16", "forward", "decode"]),
    ("var-d16-4", 2, &["train", "train_bf16", "forward"]),
    ("sd15-half", 2, &["train", "train_bf16", "forward"]),
    ("dit-xl-2", 1, &["forward"]),
    ("sd15", 1, &["forward"]),
];

/// Number of tokens to decode.
const DECODED: usize = 64;

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [name, mode, passes @ ..] = &chosen[..] {
        let passes = passes.first().map(|passes| passes.parse().expect("a number of passes"));
        return run(name, mode, passes.unwrap_or(if name == "digits-dit" { 20 } else { 4 }));
    }
    for (name, _, modes) in CASES {
        for mode in modes {
            let this = std::env::current_exe().expect("a path to this benchmark");
            let status = Command::new(this).args([name, mode]).status().expect("the benchmark starts");
            assert!(status.success(), "{name} {mode}");
        }
    }
}

fn config(name: &str) -> Box<dyn BackboneConfig> {
    let dit = |sizes| Box::new(from_value::<dit::DitConfig>(sizes).expect("sizes of a DiT"));
    let sd15 = |sizes| Box::new(from_value::<sd15::Sd15Config>(sizes).expect("sizes of a U-Net"));
    match name {
        "digits-dit" => dit(json!({ "hidden_size": 64, "depth": 3, "num_heads": 4, "patch_size": 2, "input_size": 8,
            "in_channels": 1, "num_classes": 10 })),
        "dit-s-2" => dit(json!({ "size": "S/2" })),
        "dit-xl-2" => dit(json!({ "size": "XL/2", "learn_sigma": true })),
        "sd15-half" => sd15(json!({ "sample_size": 32, "block_out_channels": [160, 320, 640, 640] })),
        "sd15" => sd15(json!({})),
        "sit-s-2" => Box::new(from_value::<dit::SitConfig>(json!({ "size": "S/2" })).expect("a size")),
        // The published width and levels, with 4 of 16 blocks.
        "var-d16-4" => Box::new(
            from_value::<var::VarConfig>(json!({ "depth": 4, "embed_dim": 1024, "num_heads": 16 })).expect("sizes"),
        ),
        "llamagen-b" => Box::new(
            from_value::<llamagen::LlamaGenConfig>(json!({ "size": "B", "num_classes": 1000 })).expect("a size"),
        ),
        other => panic!("unknown network `{other}`; expected one of {:?}", CASES.map(|(name, ..)| name)),
    }
}

/// Returns the input and the condition of a network.
fn example(name: &str, config: &dyn BackboneConfig, batch: usize, device: &Device) -> (Input, Condition) {
    let shape = config.latent_shape();
    let condition = if name.starts_with("sd15") {
        let features = normal([batch, 77, 768], device);
        Condition::Text { null: features.clone(), features, dropped: vec![false; batch] }
    } else {
        Condition::Class((0..batch).map(|i| Some(i % 10)).collect())
    };
    let input = if name.starts_with("llamagen") {
        let ids: Vec<i64> = (0..batch * shape.positions()).map(|i| (i * 7919 % 16384) as i64).collect();
        Input::Tokens { ids: Tensor::<1, Int>::from_data(&ids[..], device).reshape([batch, shape.positions()]) }
    } else if name.starts_with("var") {
        Input::Levels { features: normal([batch, shape.positions(), shape.channels], device) }
    } else {
        Input::Noisy { x_t: normal([batch, shape.positions(), shape.channels], device), t: vec![0.5; batch] }
    };
    (input, condition)
}

fn loss(prediction: Tensor<3>, input: &Input) -> Tensor<1> {
    match input {
        Input::Tokens { ids } => -log_probabilities(prediction, ids).mean(),
        _ => (prediction.clone() * prediction).mean(),
    }
}

fn run(name: &str, mode: &str, passes: usize) {
    let batch = CASES.iter().find(|(case, ..)| *case == name).map_or(1, |(_, batch, _)| *batch);
    let config = config(name);
    let train = mode.starts_with("train");
    let device = if train { Device::flex().autodiff() } else { Device::flex() };
    let mut network = Some(initialized(&*config, &device));
    let (input, condition) = example(name, &*config, batch, &device);
    let mut optimizer = OptimizerConfig::default().init(&[]).expect("the default settings");
    let median = median_seconds(passes, || {
        let owned = network.take().expect("a network");
        if mode == "decode" {
            decode(&owned, &input, &condition);
            network = Some(owned);
            return;
        }
        let read = if mode == "train_bf16" { owned.clone().apply_reparameterization(CastAll) } else { owned.clone() };
        let control = Control::default();
        let predicted = if train {
            read.predict(&input, &condition, &control)
        } else {
            // Samplers run their passes the same way.
            microbatch::predict(&read, &input, &condition, &control)
        };
        let value = loss(predicted, &input);
        assert!(value.clone().into_scalar::<f32>().is_finite());
        network = Some(if train { stepped(owned, read, &mut optimizer, value) } else { owned });
    });
    let forward_passes = match mode {
        "train" | "train_bf16" => 3.0,
        "decode" => DECODED as f64 / config.latent_shape().positions() as f64,
        _ => 1.0,
    };
    let operations = config.flops() * batch as f64 * forward_passes;
    println!(
        "{name:<11} {mode:<10} batch {batch:>3} {median:>9.4} s {:>6.0} GFLOP/s {:>6.0} MiB  {} parameters",
        operations / 1e9 / median,
        peak_mib(),
        parameters::count(&network.expect("a network")),
    );
}

/// Runs the passes that decode the first tokens, one after the other.
fn decode(network: &BoxBackbone, input: &Input, condition: &Condition) {
    let Input::Tokens { ids } = input else { panic!("only token networks are decoded") };
    let control = Control { cache: Some(Cache::default()), ..Control::default() };
    for count in 1..=DECODED {
        let logits = network.predict(&Input::Tokens { ids: ids.clone().narrow(1, 0, count) }, condition, &control);
        assert!(logits.max().into_scalar::<f32>().is_finite());
    }
}

/// Returns the peak resident memory of this process, in MiB.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: 0 kB");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

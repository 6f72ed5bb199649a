//! One forward pass of networks of published size with random weights: seconds and peak memory.
//!
//!   cargo bench --workspace --bench full_size                     ours alone
//!   python benches/full_size.py                                   ours and PyTorch's, in turn (see there)
//!
//! Each network has a process of its own, so that its peak is its own. What the weights say is of no matter to the clock.

use framework::backbone::{Backbone, BackboneConfig, Control};
use framework::burn::tensor::{DType, Device, Tensor};
use framework::condition::Condition;
use framework::process::Input;
use framework::random::{Random, tensor};
use framework::weights::{self, Init};
use serde_json::{from_value, json};
use std::process::Command;
use std::time::Instant;
use unguided as _;

/// Forward passes of one network; the first warms up.
const PASSES: usize = 4;

fn main() {
    let chosen = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    if let Some(name) = chosen {
        return run(&name);
    }
    for name in ["dit-xl-2", "sd15-unet"] {
        let this = std::env::current_exe().expect("a path to this benchmark");
        let status = Command::new(this).arg(name).status().expect("it starts again");
        assert!(status.success(), "{name}");
    }
}

fn run(name: &str) {
    let device = Device::flex();
    let normal = |shape: [usize; 3]| -> Tensor<3> {
        let values = Random::new(1).normal("input", 0, 0, shape.iter().product());
        tensor(&values.into_iter().map(f64::from).collect::<Vec<_>>(), shape, DType::F32, &device)
    };
    let (config, condition): (Box<dyn BackboneConfig>, Condition) = match name {
        "dit-xl-2" => {
            let config: dit::DitConfig =
                from_value(json!({ "size": "XL/2", "learn_sigma": true })).expect("a published size");
            (Box::new(config), Condition::Class(vec![Some(207)]))
        }
        "sd15-unet" => {
            let config: sd15::Sd15Config = from_value(json!({})).expect("the published size");
            let (features, null) = (normal([1, 77, 768]), normal([1, 77, 768]));
            (Box::new(config), Condition::Text { features, null, dropped: vec![false] })
        }
        other => panic!("no network `{other}`; there are dit-xl-2 and sd15-unet"),
    };
    let init = |path: &str, shape: &[usize]| match config.initializer(path, shape) {
        Init::Zeros if path.ends_with("weight") => Init::Normal(0.02),
        init => init,
    };
    let network = weights::initialize(config.init(&device), &Random::new(0), &init);
    let shape = config.latent_shape();
    let input = Input::Noisy { x_t: normal([1, shape.positions(), shape.channels]), t: vec![0.5] };
    let mut seconds: Vec<f64> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            let out = network.predict(&input, &condition, &Control::default());
            assert!(out.sum().into_scalar::<f32>().is_finite());
            start.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!(
        "{name:<10} {:>8.2} s a forward pass (median of {}), {:>6.0} GFLOP/s, peak {:>6.0} MiB",
        seconds[seconds.len() / 2],
        seconds.len(),
        config.flops() / 1e9 / seconds[seconds.len() / 2],
        peak_mib()
    );
}

/// Peak resident memory of this process, MiB.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: 0 kB");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

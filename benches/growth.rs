//! How the cost of a training step grows with tokens, batch, width and depth, and what share of the machine's matrix products
//! it reaches; and the speed of such products by shape.
//!
//!   cargo bench --workspace --bench growth
//!
//! A DiT with random weights, and around it one number at a time is doubled. The limit is the best product of two
//! matrices in the same run. The table goes to the screen, two plots beside this file.

use framework::backbone::{Backbone, BackboneConfig, BoxBackbone, Control};
use framework::burn::optim::GradientsParams;
use framework::burn::tensor::{DType, Device, Tensor};
use framework::condition::Condition;
use framework::optimizer::OptimizerConfig;
use framework::plot::{Curve, lines};
use framework::process::Input;
use framework::random::{Random, tensor};
use framework::weights::{self, Init};
use serde_json::{from_value, json};
use std::path::Path;
use std::time::Instant;
use unguided as _;

/// One network and its batch.
#[derive(Clone, Copy)]
struct Size {
    tokens: usize,
    batch: usize,
    width: usize,
    depth: usize,
}

const BASE: Size = Size { tokens: 256, batch: 4, width: 384, depth: 4 };

fn main() {
    let limit = limit();
    println!("limit of the products: {:.0} GFLOP/s", limit / 1e9);
    println!(
        "{:<7} {:>6} {:>6} {:>6} {:>6} {:>9} {:>9} {:>6}",
        "grown", "tokens", "batch", "width", "depth", "s", "GFLOP/s", "share"
    );
    let tokens = [64, 256, 1024, 4096].map(|tokens| Size { tokens, batch: 1, ..BASE });
    let batch = [1, 2, 4, 8, 16].map(|batch| Size { batch, ..BASE });
    let width = [96, 192, 384, 768].map(|width| Size { width, ..BASE });
    let depth = [2, 4, 8, 16].map(|depth| Size { depth, ..BASE });
    let all: [(&str, usize, &[Size]); 4] =
        [("tokens", 2, &tokens), ("batch", 1, &batch), ("width", 1, &width), ("depth", 1, &depth)];
    let (mut times, mut shares) = (Vec::new(), Vec::new());
    for (name, doublings, sizes) in all {
        let (mut time, mut share) = (Vec::new(), Vec::new());
        for (i, size) in sizes.iter().enumerate() {
            let (seconds, operations) = step(*size);
            let Size { tokens, batch, width, depth } = *size;
            let reached = operations / seconds / limit;
            println!(
                "{name:<7} {tokens:>6} {batch:>6} {width:>6} {depth:>6} {seconds:>9.4} {:>9.0} {:>5.0}%",
                operations / seconds / 1e9,
                100.0 * reached
            );
            time.push(((doublings * i) as f64, seconds));
            share.push(((doublings * i) as f64, 100.0 * reached));
        }
        let range = |of: fn(&Size) -> usize| format!("{name} {} to {}", of(&sizes[0]), of(&sizes[sizes.len() - 1]));
        let name = match name {
            "tokens" => range(|size| size.tokens),
            "batch" => range(|size| size.batch),
            "width" => range(|size| size.width),
            _ => range(|size| size.depth),
        };
        times.push(Curve { name: name.clone(), points: time });
        shares.push(Curve { name, points: share });
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let draw = |file: &str, title: &str, y: &str, curves: &[Curve]| {
        lines(&folder.join(file), title, "doublings", y, curves).expect("a plot beside the benchmark");
    };
    draw("growth-time.png", "A training step of a DiT, one number doubled at a time", "seconds", &times);
    draw("growth-share.png", "The same, as a share of the matrix products' limit", "per cent", &shares);
}

/// Prints how fast products `[m, k] [k, n]` are, our layer's and Burn's; the best of all is the limit, operations a second.
fn limit() -> f64 {
    const SHAPES: [[usize; 3]; 6] =
        [[2048, 2048, 2048], [2048, 384, 1536], [2048, 1536, 384], [2048, 384, 384], [512, 768, 2304], [2048, 64, 256]];
    println!("{:>5} {:>5} {:>5} {:>8} {:>8}  GFLOP/s, the best of 12", "m", "k", "n", "ours", "Burn's");
    let mut limit = 0.0_f64;
    for [m, k, n] in SHAPES {
        let device = Device::flex();
        let layer = framework::nn::Linear::without_bias(k, n, &device);
        let layer = weights::initialize(layer, &Random::new(0), &|_, _| Init::Normal(1.0));
        let (x, weight) = (Tensor::<2>::ones([m, k], &device), layer.weight.val());
        let mut best = [f64::INFINITY; 2];
        for _ in 0..12 {
            for (best, product) in best.iter_mut().zip([true, false]) {
                let start = Instant::now();
                let y = if product { layer.forward(x.clone()) } else { x.clone().matmul(weight.clone()) };
                *best = best.min(start.elapsed().as_secs_f64());
                assert_eq!(y.dims(), [m, n]);
            }
        }
        let [ours, burns] = best.map(|seconds| 2.0 * (m * k * n) as f64 / seconds);
        println!("{m:>5} {k:>5} {n:>5} {:>8.0} {:>8.0}", ours / 1e9, burns / 1e9);
        limit = limit.max(ours).max(burns);
    }
    limit
}

/// Seconds of a training step, the median of those after the first, and its operations in matrix products.
fn step(Size { tokens, batch, width, depth }: Size) -> (f64, f64) {
    let side = 2 * tokens.isqrt();
    let config: dit::DitConfig = from_value(json!({ "hidden_size": width, "depth": depth, "num_heads": width / 32,
        "patch_size": 2, "input_size": side, "in_channels": 4, "num_classes": 10 }))
    .expect("sizes of a DiT");
    let init = |path: &str, shape: &[usize]| match config.initializer(path, shape) {
        Init::Zeros if path.ends_with("weight") => Init::Normal(0.02),
        init => init,
    };
    let device = Device::flex().autodiff();
    let mut network: BoxBackbone = weights::initialize(config.init(&device), &Random::new(0), &init);
    let shape = [batch, side * side, 4];
    let values = Random::new(1).normal("input", 0, 0, shape.iter().product());
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    let input = Input::Noisy { x_t: tensor(&values, shape, DType::F32, &device), t: vec![0.5; batch] };
    let condition = Condition::Class(vec![Some(1); batch]);
    let mut optimizer = OptimizerConfig::default().init(&[]).expect("the default settings");
    let mut seconds: Vec<f64> = (0..6)
        .map(|_| {
            let start = Instant::now();
            let prediction = network.predict(&input, &condition, &Control::default());
            let gradients = (prediction.clone() * prediction).mean().backward();
            network = optimizer.step(1e-4, network.clone(), GradientsParams::from_grads(gradients, &network));
            start.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    seconds.sort_by(f64::total_cmp);
    (seconds[seconds.len() / 2], 3.0 * config.flops() * batch as f64)
}

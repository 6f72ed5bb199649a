//! Measures how the cost of a training step grows with tokens, batch, width and depth, and which share of the machine's
//! speed at matrix products it reaches. Also measures the speed of matrix products by shape.
//!
//!   cargo bench --workspace --bench growth
//!
//! The network is a DiT with random weights. One size at a time varies around `BASE`. The limit is the fastest matrix
//! product in the same run. The benchmark prints a table and writes two plots next to this file.

mod networks;
mod plot;

use framework::burn::tensor::{Device, Tensor};
use framework::network::backbone::{Backbone, BackboneConfig, Control};
use framework::network::condition::Condition;
use framework::nn::parameters::{self, Init};
use framework::optimization::optimizer::OptimizerConfig;
use framework::process::Input;
use framework::random::Random;
use plot::{Curve, lines};
use serde_json::{from_value, json};
use std::path::Path;
use std::time::Instant;
use unguided as _;

/// Sizes of a network and of its batch.
#[derive(Clone, Copy)]
struct Size {
    tokens: usize,
    batch: usize,
    width: usize,
    depth: usize,
}

/// Function that selects one of the sizes.
type Of = fn(&Size) -> usize;

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
    let all: [(&str, Of, &[Size]); 4] = [
        ("tokens", |size| size.tokens, &tokens),
        ("batch", |size| size.batch, &batch),
        ("width", |size| size.width, &width),
        ("depth", |size| size.depth, &depth),
    ];
    let (mut times, mut shares) = (Vec::new(), Vec::new());
    for (name, of, sizes) in all {
        let (least, most) = (of(&sizes[0]), of(&sizes[sizes.len() - 1]));
        let (mut time, mut share) = (Vec::new(), Vec::new());
        for size in sizes {
            let (seconds, operations) = step(*size);
            let Size { tokens, batch, width, depth } = *size;
            let (speed, reached) = (operations / seconds, 100.0 * operations / seconds / limit);
            println!(
                "{name:<7} {tokens:>6} {batch:>6} {width:>6} {depth:>6} {seconds:>9.4} {:>9.0} {reached:>5.0}%",
                speed / 1e9
            );
            let doublings = (of(size) as f64 / least as f64).log2();
            time.push((doublings, seconds));
            share.push((doublings, reached));
        }
        let name = format!("{name} {least} to {most}");
        times.push(Curve { name: name.clone(), points: time });
        shares.push(Curve { name, points: share });
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let draw = |file: &str, title: &str, y: &str, curves: &[Curve]| {
        lines(&folder.join(file), title, "doublings", y, curves).expect("the plot can be written");
    };
    draw("growth-time.png", "Training step of a DiT, one size doubled at a time", "seconds", &times);
    draw("growth-share.png", "Training step of a DiT, share of the matrix-product limit", "percent", &shares);
}

/// Prints the speed of products `[m, k] [k, n]` with our linear layer and with Burn's `matmul`. Returns the highest
/// speed, in operations per second.
fn limit() -> f64 {
    const SHAPES: [[usize; 3]; 6] =
        [[2048, 2048, 2048], [2048, 384, 1536], [2048, 1536, 384], [2048, 384, 384], [512, 768, 2304], [2048, 64, 256]];
    println!("{:>5} {:>5} {:>5} {:>8} {:>8}  GFLOP/s, the best of 12", "m", "k", "n", "ours", "Burn's");
    let mut limit = 0.0_f64;
    for [m, k, n] in SHAPES {
        let device = Device::flex();
        let layer = framework::nn::Linear::without_bias(k, n, &device);
        let layer = parameters::initialize(layer, &Random::new(0), &|_, _| Init::Normal(1.0));
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

/// Returns the median seconds per training step after the first, and the operations in the step's matrix products.
fn step(Size { tokens, batch, width, depth }: Size) -> (f64, f64) {
    let side = 2 * tokens.isqrt();
    let config: dit::DitConfig = from_value(json!({ "hidden_size": width, "depth": depth, "num_heads": width / 32,
        "patch_size": 2, "input_size": side, "in_channels": 4, "num_classes": 10 }))
    .expect("sizes of a DiT");
    let device = Device::flex().autodiff();
    let mut network = Some(networks::initialized(&config, &device));
    let input = Input::Noisy { x_t: networks::normal([batch, side * side, 4], &device), t: vec![0.5; batch] };
    let condition = Condition::Class(vec![Some(1); batch]);
    let mut optimizer = OptimizerConfig::default().init(&[]).expect("the default settings");
    let seconds = networks::median_seconds(6, || {
        let owned = network.take().expect("a network");
        let read = owned.clone();
        let prediction = read.predict(&input, &condition, &Control::default());
        let loss = (prediction.clone() * prediction).mean();
        network = Some(networks::stepped(owned, read, &mut optimizer, loss));
    });
    (seconds, 3.0 * config.flops() * batch as f64)
}

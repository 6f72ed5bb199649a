//! Shared code of the network benchmarks: random inputs, random weights, and the timing of a pass.

use framework::burn::optim::{GradientsParams, ModuleOptimizer};
use framework::burn::tensor::{DType, Device, Tensor};
use framework::network::backbone::{BackboneConfig, BoxBackbone};
use framework::nn::parameters::{self, Init};
use framework::random::{Random, tensor};
use std::time::Instant;

/// Returns a tensor of standard normal f32 values.
pub fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = Random::new(1).normal("input", 0, 0, shape.iter().product());
    tensor(&values.into_iter().map(f64::from).collect::<Vec<_>>(), shape, DType::F32, device)
}

/// Initializes a network. Weights that would start at zero get random values, because a pass with zeros may do less
/// work.
pub fn initialized(config: &dyn BackboneConfig, device: &Device) -> BoxBackbone {
    let init = |path: &str, shape: &[usize]| match config.initializer(path, shape) {
        Init::Zeros if path.ends_with("weight") => Init::Normal(0.02),
        init => init,
    };
    parameters::initialize(config.init(device), &Random::new(0), &init)
}

/// Takes one optimizer step on `loss` and returns the updated network. `read` is the network that computed `loss`:
/// a clone of `network`, possibly with cast weights.
pub fn stepped(
    network: BoxBackbone,
    read: BoxBackbone,
    optimizer: &mut ModuleOptimizer,
    loss: Tensor<1>,
) -> BoxBackbone {
    let gradients = GradientsParams::from_grads(loss.backward(), &read);
    // The optimizer updates a tensor in place only if no other handle shares it.
    drop(read);
    optimizer.step(1e-4, network, gradients)
}

/// Returns the median time of `passes` passes in seconds. The first pass warms up and does not count.
pub fn median_seconds(passes: usize, mut pass: impl FnMut()) -> f64 {
    // `unguided train` does the same.
    allocator::keep_pages();
    let timed = |_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    };
    let mut seconds: Vec<f64> = (0..passes).map(timed).skip(1).collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

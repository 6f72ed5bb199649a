//! What benchmarks of networks share: random inputs and weights, and the time of a pass.

use framework::backbone::{BackboneConfig, BoxBackbone};
use framework::burn::optim::{GradientsParams, ModuleOptimizer};
use framework::burn::tensor::{DType, Device, Tensor};
use framework::random::{Random, tensor};
use framework::weights::{self, Init};
use std::time::Instant;

/// Normal numbers in f32.
pub fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = Random::new(1).normal("input", 0, 0, shape.iter().product());
    tensor(&values.into_iter().map(f64::from).collect::<Vec<_>>(), shape, DType::F32, device)
}

/// A network without weights that are zero: they would spare it work.
pub fn initialized(config: &dyn BackboneConfig, device: &Device) -> BoxBackbone {
    let init = |path: &str, shape: &[usize]| match config.initializer(path, shape) {
        Init::Zeros if path.ends_with("weight") => Init::Normal(0.02),
        init => init,
    };
    weights::initialize(config.init(device), &Random::new(0), &init)
}

/// The network behind one step along the gradient of `loss`, which `read` gave: the same weights, or what they are read as.
pub fn stepped(
    network: BoxBackbone,
    read: BoxBackbone,
    optimizer: &mut ModuleOptimizer,
    loss: Tensor<1>,
) -> BoxBackbone {
    let gradients = GradientsParams::from_grads(loss.backward(), &read);
    // The optimizer writes in place what nobody else holds.
    drop(read);
    optimizer.step(1e-4, network, gradients)
}

/// The median seconds of `passes` but the first, which warms up.
pub fn median_seconds(passes: usize, mut pass: impl FnMut()) -> f64 {
    // As the command trains.
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

//! Measures the decoding of 256 tokens with the dimensions of LlamaGen-B: with and without cache, guided and in one
//! pass, by batch size.
//!
//!   cargo bench --workspace --bench decode
//!
//! The weights are random, because the values of the tokens do not affect the timing. Every time is a single
//! measurement of whole images.

use framework::burn::tensor::{DType, Device};
use framework::network::backbone::BackboneConfig;
use framework::network::condition::Condition;
use framework::nn::parameters::{self, Init};
use framework::random::Random;
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::guidance::Guidance;
use framework::sampling::sampler::{Sampler, SamplerStep, SeededNoise};
use guidance::{Cfg, NoGuidance};
use llamagen::LlamaGenConfig;
use samplers::Autoregressive;
use serde_json::{from_value, json};
use std::time::Instant;
use unguided as _;

fn main() {
    let config: LlamaGenConfig = from_value(json!({ "size": "B" })).expect("a published size");
    let init = |path: &str, shape: &[usize]| match config.initializer(path, shape) {
        Init::Zeros => Init::Normal(0.02),
        init => init,
    };
    let network = parameters::initialize(config.init(&Device::flex()), &Random::new(0), &init);
    let (process, shape) = (config.process(), config.latent_shape());
    let single: NoGuidance = from_value(json!({})).expect("no settings");
    let guided: Cfg = from_value(json!({ "scale": 2.0 })).expect("one setting");
    let seconds = |rule: &dyn Guidance, cache: bool, batch: usize| {
        let sampler: Autoregressive = from_value(json!({ "cache": cache })).expect("one setting");
        let condition = Condition::Class((0..batch).map(|i| Some(i % 1000)).collect());
        let mut model = Denoiser::new(&network, &*process, rule, GuidanceNumbers::NONE, &condition, &shape);
        let (random, dtype, device) = (Random::new(0), DType::F32, Device::flex());
        let mut noise = SeededNoise { random, first: 0, count: batch, shape: shape.clone(), dtype, device };
        let start = Instant::now();
        sampler.sample(&mut model, &mut noise, &mut |_: &SamplerStep<'_>| {});
        start.elapsed().as_secs_f64()
    };
    println!(
        "{:>5} {:<9} {:<9} {:>9} {:>10} {:>14}",
        "batch", "guidance", "cache", "seconds", "tokens/s", "seconds/image"
    );
    let report = |batch: usize, guidance: &str, cache: bool, seconds: f64| {
        let tokens = (batch * shape.positions()) as f64;
        let cache = if cache { "kept" } else { "none" };
        println!(
            "{batch:>5} {guidance:<9} {cache:<9} {seconds:>9.2} {:>10.1} {:>14.2}",
            tokens / seconds,
            seconds / batch as f64
        );
    };
    for batch in [1, 2, 4, 8, 16] {
        let (one, two) = (seconds(&single, true, batch), seconds(&guided, true, batch));
        report(batch, "one pass", true, one);
        report(batch, "cfg", true, two);
        println!("{:>5} one pass is {:.2} times as fast as cfg", "", two / one);
        if batch == 1 {
            let without = seconds(&single, false, batch);
            report(batch, "one pass", false, without);
            println!("{:>5} the cache makes one pass {:.1} times as fast", "", without / one);
        }
    }
}

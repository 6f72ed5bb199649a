//! Decoding 256 tokens with LlamaGen-B's shape: with cache and without, guided and in one pass, by batch size.
//!
//!   cargo bench --workspace --bench decode
//!
//! Random weights: what the tokens show is of no matter to the clock. Times are of whole images, of one run each.

use framework::backbone::BackboneConfig;
use framework::burn::tensor::{DType, Device};
use framework::condition::Condition;
use framework::guidance::{Denoiser, Guidance};
use framework::random::Random;
use framework::sampler::{Progress, Sampler, SeededNoise};
use framework::weights::{self, Init};
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
    let network = weights::initialize(config.init(&Device::flex()), &Random::new(0), &init);
    let (process, shape) = (config.process(), config.latent_shape());
    let single: NoGuidance = from_value(json!({})).expect("no settings");
    let guided: Cfg = from_value(json!({ "scale": 2.0 })).expect("one setting");
    let seconds = |rule: &dyn Guidance, cache: bool, batch: usize| {
        let sampler: Autoregressive = from_value(json!({ "cache": cache })).expect("one setting");
        let condition = Condition::Class((0..batch).map(|i| Some(i % 1000)).collect());
        let mut model = Denoiser::new(&network, &*process, rule, &|_| None, &condition, &shape);
        let (random, dtype, device) = (Random::new(0), DType::F32, Device::flex());
        let mut noise = SeededNoise { random, first: 0, count: batch, shape: shape.clone(), dtype, device };
        let start = Instant::now();
        sampler.sample(&mut model, &mut noise, &mut |_: &Progress<'_>| {});
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
            println!("{:>5} the cache makes it {:.1} times as fast", "", without / one);
        }
    }
}

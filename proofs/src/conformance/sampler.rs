//! The promises of a sampler.

use super::bench::{Bench, values};
use super::entry::{fields, parse, round_trip};

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor};
use framework::data::tokenizer::LevelCodec;
use framework::error::Problem;
use framework::network::backbone::{Backbone, BoxBackbone, Control};
use framework::network::condition::Condition;
use framework::plugin::{Kind, SamplerPlugin};
use framework::process::{Input, Latent, LatentShape};
use framework::random::Random;
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
use framework::sampling::sampler::SeededNoise;
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Checks a sampler on a small backbone of a family that it serves.
pub fn sampler(entry: &Value, backbone: &Value) -> Vec<String> {
    let mut failures = round_trip::<Box<dyn SamplerPlugin>>(entry);
    let Some(sampler) = parse::<Box<dyn SamplerPlugin>>(entry) else { return failures };
    let bench = Bench::new(backbone);
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(what.to_string());
        }
    };
    must(sampler.serves(bench.process.family()), "the sampler serves the backbone's family");
    let network = Counting { network: bench.online.valid(), predicted: AtomicUsize::new(0) };
    let shape = bench.config.latent_shape();
    let rule = OneBranch;
    let codec = AnyCodec(shape.clone());
    let draw = |sampler: &dyn SamplerPlugin, seed: u64, first: usize, count: usize| {
        let condition = bench.condition.select(&(first..first + count).collect::<Vec<_>>());
        let mut model = Denoiser::new(&network, &*bench.process, &rule, GuidanceNumbers::NONE, &condition, &shape)
            .with_codec(Some(&codec));
        let mut noise = SeededNoise {
            random: Random::new(seed),
            first,
            count,
            shape: shape.clone(),
            dtype: DType::F32,
            device: Device::flex(),
        };
        let mut seen = 0;
        network.predicted.store(0, Ordering::Relaxed);
        let latent =
            sampler.sample(&mut model, &mut noise, &mut |_: &framework::sampling::sampler::SamplerStep<'_>| seen += 1);
        let drawn = match latent {
            Latent::Values(x) => values(x),
            Latent::Ids(ids) | Latent::Levels { ids, .. } => values(ids.float().unsqueeze::<3>()),
        };
        (drawn, model.nfe(), seen, network.predicted.load(Ordering::Relaxed))
    };
    let (whole, nfe, seen, _) = draw(&*sampler, 0, 0, 4);
    must(whole.iter().all(|v| v.is_finite()), "samples are finite");
    must(nfe == sampler.evaluations(&shape), "`evaluations` equals the evaluations of one sampling run");
    must(seen > 0, "every step is reported");
    must(draw(&*sampler, 0, 0, 4).0 == whole, "the same seed gives the same samples");
    must(draw(&*sampler, 1, 0, 4).0 != whole, "another seed gives different samples");
    let halves = [draw(&*sampler, 0, 0, 2).0, draw(&*sampler, 0, 2, 2).0].concat();
    let apart = halves.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    let largest = whole.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
    must(apart <= 1e-3 * largest, "samples do not depend on how they are batched");
    failures.extend(fields::<Box<dyn SamplerPlugin>>(entry, Kind::Sampler, &|new| {
        let mut problems = new.check();
        problems.extend(new.check_process(&*bench.process));
        problems.extend(new.check_shape(&shape));
        if let Some(field) = new.needs_variance().filter(|_| !bench.config.accepts().variance) {
            problems.push(Problem::new(field, "the backbone has no variance"));
        }
        if problems.is_empty() { Ok(format!("{:?}", draw(&**new, 0, 0, 2))) } else { Err(problems) }
    }));
    failures
}

/// A network that counts the positions it predicts, to measure what a cache saves.
#[derive(Debug)]
struct Counting {
    network: BoxBackbone,
    predicted: AtomicUsize,
}

impl Backbone for Counting {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let prediction = self.network.predict(input, condition, control);
        self.predicted.fetch_add(prediction.dims()[1], Ordering::Relaxed);
        prediction
    }
}

/// Guidance rule with only the conditional branch.
#[derive(Debug)]
struct OneBranch;

impl framework::sampling::guidance::Guidance for OneBranch {
    fn needs(&self) -> framework::sampling::guidance::GuidanceNeeds {
        framework::sampling::guidance::GuidanceNeeds::branches(1)
    }
    fn start(&self) -> Box<dyn framework::sampling::guidance::Trajectory> {
        Box::new(Self)
    }
}

impl framework::sampling::guidance::Trajectory for OneBranch {
    fn branches(&mut self, _: &framework::sampling::guidance::Moment) -> Vec<framework::sampling::guidance::Branch> {
        vec![framework::sampling::guidance::Branch::given()]
    }
    fn combine(
        &mut self,
        _: &framework::sampling::guidance::Moment,
        mut all: Vec<Tensor<3>>,
    ) -> framework::sampling::guidance::Guided {
        all.remove(0).into()
    }
}

/// A codec with an arbitrary function of the coarser levels' tokens.
struct AnyCodec(LatentShape);

impl LevelCodec for AnyCodec {
    fn features(&self, ids: &[Tensor<2, Int>], batch: usize, device: &Device) -> Tensor<3> {
        let channels = self.0.channels;
        let level = |(side, ids): (&usize, Option<&Tensor<2, Int>>)| match ids {
            None => Tensor::zeros([batch, side * side, channels], (device, DType::F32)),
            Some(ids) => {
                let mean = ids.clone().float().mean_dim(1).reshape([batch, 1, 1]) / 10.0;
                mean.expand([batch, side * side, channels])
            }
        };
        let before = [None].into_iter().chain(ids.iter().map(Some));
        Tensor::cat(self.0.levels.iter().zip(before).map(level).collect(), 1)
    }
}

//! Measures how much `"stopped_matmul_precision": "medium"` changes the gradient: the distance to the gradient with all
//! passes in f32, compared with the distance between the gradients of two batches.
//!
//!   cargo bench --workspace --bench gradient
//!
//! The digits network is first trained for a few hundred steps, until its predictions depend on the condition.

use framework::burn::tensor::{Device, Tensor};
use framework::data::dataset::Dataset;
use framework::data::loader::{Order, readable};
use framework::error::Result;
use framework::network::backbone::BoxBackbone;
use framework::nn::parameters;
use framework::pipeline::Pipeline;
use framework::random::Random;
use framework::training::events::{Evaluator, Events, StepReport};
use framework::training::trainer::{Start, Trainer, tracking};
use registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use unguided as _;

/// Number of training steps before the gradients are compared.
const STEPS: usize = 400;
/// Number of batches whose gradients are compared.
const BATCHES: usize = 8;
/// Precisions to compare. The data type that "medium" rounds to depends on the processor.
const PRECISIONS: [&str; 2] = ["highest", "medium"];

/// Event listener that ignores everything.
struct Quiet;

impl Events for Quiet {
    fn step(&mut self, _: &StepReport) -> Result<()> {
        Ok(())
    }
    fn sample(&mut self, _: &BoxBackbone, _: usize) -> Result<()> {
        Ok(())
    }
    fn saved(&mut self, _: &Path, _: usize) {}
}

/// The objectives here follow no measurement.
struct Unmeasured;

impl Evaluator for Unmeasured {
    fn evaluate(&mut self, _: &BoxBackbone, _: usize) -> Result<BTreeMap<String, f64>> {
        Ok(BTreeMap::new())
    }
}

fn document(objective: &Value, precision: &str) -> Value {
    let input = if objective["type"] == "gft" { json!("mlp") } else { json!(null) };
    json!({
        "version": 1,
        "data": {"type": "digits"},
        "tokenizer": {"type": "pixels"},
        "backbone": {
            "type": "dit", "hidden_size": 64, "depth": 3, "num_heads": 4, "patch_size": 2, "input_size": 8,
            "in_channels": 1, "num_classes": 10, "guidance_input": input,
        },
        "objective": objective,
        "train": {
            "steps": STEPS, "batch_size": 128, "learning_rate": 1e-3, "warmup_steps": 20, "save_every": STEPS,
            "stopped_matmul_precision": precision, "ema": {"decay": 0.99},
        },
        "sampler": {"type": "ddim", "steps": 10},
        "guidance": {"type": "none"},
    })
}

/// Builds a trainer that starts from the given weights, or from fresh ones.
fn trainer(document: &Value, folder: &Path, from: Option<&BoxBackbone>) -> (Arc<Pipeline>, Trainer) {
    let registry = Registry::linked();
    let pipeline = Arc::new(registry.build(registry.parse(&document.to_string()).expect("a pipeline document")));
    let device = Device::flex();
    let tracked = tracking(&pipeline.train, &device);
    let online = match from {
        Some(network) => pipeline.restore(parameters::export(network), &tracked).expect("the same network"),
        None => pipeline.init_backbone(&tracked),
    };
    let start = Start { online, reference: None, resume: None };
    let trainer = Trainer::new(pipeline.clone(), folder, &device, start).expect("a fresh run");
    (pipeline, trainer)
}

/// Returns the gradient of one batch as a flat vector.
fn gradient((pipeline, trainer): &(Arc<Pipeline>, Trainer), dataset: &dyn Dataset, batch: u64) -> Vec<f64> {
    let random = Random::new(pipeline.train.seed);
    let indices = Order::new(random, dataset.len()).batch(pipeline.train.batch_size, batch);
    let batch_of = readable(dataset, &indices.into_iter().map(|(index, _)| index).collect::<Vec<_>>());
    let batch_of = batch_of.expect("the dataset is available");
    let latents = pipeline.latents(&batch_of, &dataset.info(), &Device::flex()).expect("a batch");
    let condition = pipeline.condition(&batch_of.labels).expect("classes");
    let (_, gradients, _) = trainer.pass(&latents, &condition, &random, batch).expect("a finite loss");
    fn numbers<const D: usize>(x: Option<Tensor<D>>) -> Vec<f32> {
        x.map(|x| x.into_data().try_into_vec().expect("f32")).unwrap_or_default()
    }
    let of = |(path, shape, _): (String, Vec<usize>, bool)| {
        let id = parameters::param_id(&path);
        match shape.len() {
            1 => numbers(gradients.get::<1>(id)),
            2 => numbers(gradients.get::<2>(id)),
            3 => numbers(gradients.get::<3>(id)),
            _ => numbers(gradients.get::<4>(id)),
        }
    };
    parameters::parameters(&trainer.sampling_network()).into_iter().flat_map(of).map(f64::from).collect()
}

/// Returns `|a - b| / |b|`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.len() == b.len() && !a.is_empty(), "both gradients belong to the same network");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

fn main() {
    println!("objective     medium to highest (median, maximum)     one batch to the next (median)");
    for objective in
        [json!({"type": "gft"}), json!({"type": "mg", "scale": {"type": "fixed", "scale": 1.5}, "t_high": 1.0})]
    {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut first = trainer(&document(&objective, PRECISIONS[0]), folder.path(), None);
        let dataset = first.0.open_data().expect("the dataset is available");
        let dataset: Arc<dyn Dataset> = Arc::new(dataset);
        first.1.run(dataset.clone(), &AtomicBool::new(false), &mut Quiet, &mut Unmeasured).expect("the run ends well");
        let network = first.1.sampling_network();
        let runs = PRECISIONS.map(|precision| trainer(&document(&objective, precision), folder.path(), Some(&network)));
        let of = |run, batch| gradient(run, &*dataset, batch);
        let [highest, medium] =
            runs.each_ref().map(|run| (0..BATCHES as u64).map(|batch| of(run, batch)).collect::<Vec<_>>());
        let mut rounded: Vec<f64> = medium.iter().zip(&highest).map(|(a, b)| distance(a, b)).collect();
        let mut noise: Vec<f64> = highest.windows(2).map(|two| distance(&two[1], &two[0])).collect();
        rounded.sort_by(f64::total_cmp);
        noise.sort_by(f64::total_cmp);
        println!(
            "{:<10} {:>19.1e} {:>18.1e} {:>34.2}",
            objective["type"].as_str().expect("a name"),
            rounded[BATCHES / 2],
            rounded[BATCHES - 1],
            noise[noise.len() / 2],
        );
    }
}

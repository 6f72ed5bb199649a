//! The memory that training, sampling and encoding need, and the refusal of what cannot fit. `check` and `init` print
//! the estimate.

use crate::console::bytes;
use crate::{Outcome, system};
use framework::burn::tensor::Device;
use framework::error::Problem;
use framework::nn::parameters;
use framework::optimization::trainable;
use framework::pipeline::Pipeline;

/// Bytes of one value: everything is f32.
const VALUE: f64 = 4.0;

/// The memory that a pipeline needs, in bytes and weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// Weights of the network.
    pub parameters: usize,
    /// Weights that are trained.
    pub trained: usize,
    /// Weights of the frozen tokenizer.
    pub tokenizer: usize,
    /// Weights of the frozen conditioner.
    pub conditioner: usize,
    /// Bytes of the weights, their copies, gradients and optimizer state.
    pub state: f64,
    /// Bytes of the activations of one sample that the backward pass needs.
    pub sample: f64,
    /// Samples whose activations are in memory together.
    pub batch: usize,
}

impl Needs {
    /// Computes the needs of a pipeline. Allocates no weights.
    pub fn of(pipeline: &Pipeline) -> Self {
        let network = pipeline.backbone.init(&Device::flex());
        let list = parameters::parameters(&network);
        let (count, train) = (parameters::count(&network), &pipeline.train);
        let needs = pipeline.objective.needs();
        let trained = trainable::trained(train.trainable(), &list, &pipeline.is_new());
        let copies = [train.ema.is_some() || needs.ema, needs.reference].iter().filter(|copy| **copy).count();
        // The weights and their copies, and for each trained weight its gradient and optimizer state.
        let state = VALUE * (count * (1 + copies) + trained * (1 + train.optimizer.kept())) as f64;
        Self {
            parameters: count,
            trained,
            tokenizer: pipeline.tokenizer.parameters(),
            conditioner: pipeline.conditioner.as_ref().map_or(0, |conditioner| conditioner.parameters()),
            state,
            sample: pipeline.backbone.activations() * VALUE,
            batch: train.batch_size * train.workers,
        }
    }

    /// Returns the bytes of the frozen tokenizer and conditioner.
    pub fn frozen(&self) -> f64 {
        VALUE * (self.tokenizer + self.conditioner) as f64
    }

    /// Returns the bytes of the activations of all samples in memory.
    pub fn activations(&self) -> f64 {
        self.sample * self.batch as f64
    }

    /// Returns the bytes of a training without its frozen parts.
    pub fn training(&self) -> f64 {
        self.state + self.activations()
    }

    /// Returns the bytes of the weights of a network that samples.
    pub fn sampling(&self) -> f64 {
        VALUE * self.parameters as f64
    }
}

/// Returns the memory that the process can get on this device; `None` if it is unknown, as for a GPU.
fn limit(device: &Device) -> Option<f64> {
    if *device != Device::flex() {
        return None;
    }
    let memory = system::memory();
    [memory.total, memory.limit].into_iter().flatten().min().map(|bytes| bytes as f64)
}

/// Refuses a training that cannot fit into the memory of the machine.
///
/// # Errors
/// If the estimate is more than the memory.
pub fn to_train(pipeline: &Pipeline, device: &Device) -> Outcome {
    let Some(limit) = limit(device) else { return Ok(()) };
    training(&Needs::of(pipeline), pipeline.train.lora.is_some(), limit)
}

fn training(needs: &Needs, adapters: bool, limit: f64) -> Outcome {
    let all = needs.training() + needs.frozen();
    if all <= limit {
        return Ok(());
    }
    let what = format!("training needs about {}; the machine has {}", bytes(all), bytes(limit));
    let room = limit - needs.state - needs.frozen();
    // Leave a share of the memory for temporary values.
    let per_batch = (0.9 * room / needs.sample).floor();
    if per_batch >= 1.0 {
        let problem = Problem::new("/train/batch_size", what).and_at("/train/workers");
        return Err(problem
            .accepts(format!("batch_size * workers of at most {per_batch}"))
            .fix("lower /train/batch_size and raise /train/accumulate by the same factor, which trains the same steps")
            .into());
    }
    let problem = Problem::new("/backbone", what).accepts("a smaller network");
    Err(match adapters {
        false => problem.fix("lower the size of /backbone, or train adapters: /train/lora = {\"rank\": 16}").into(),
        true => problem.fix("lower the size of /backbone").into(),
    })
}

/// Refuses a network whose weights alone do not fit into the memory of the machine.
///
/// # Errors
/// If the weights need more than the memory.
pub fn to_sample(pipeline: &Pipeline, device: &Device) -> Outcome {
    let needs = Needs::of(pipeline);
    let weak = if pipeline.weak_source.is_some() { needs.sampling() } else { 0.0 };
    fits("sampling", "/backbone", needs.sampling() + weak + needs.frozen(), device)
}

/// Refuses a tokenizer whose weights, with a batch of `batch_size` images of `values` values, do not fit into the
/// memory of the machine.
///
/// # Errors
/// If they need more than the memory.
pub fn to_encode(pipeline: &Pipeline, batch_size: usize, values: usize, device: &Device) -> Outcome {
    // An encoder keeps at least the images and one layer of the same resolution.
    let images = VALUE * 2.0 * (batch_size * values) as f64;
    fits("encoding", "--batch-size", VALUE * pipeline.tokenizer.parameters() as f64 + images, device)
}

fn fits(task: &str, setting: &str, needed: f64, device: &Device) -> Outcome {
    match limit(device) {
        Some(limit) if needed > limit => {
            let what = format!("{task} needs at least {}; the machine has {}", bytes(needed), bytes(limit));
            Err(Problem::new(setting, what).fix(format!("lower {setting}")).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs() -> Needs {
        Needs { parameters: 100, trained: 100, state: 1000.0, sample: 50.0, batch: 20, ..Needs::default() }
    }

    #[test]
    fn a_batch_that_does_not_fit_names_the_batch_that_does() {
        training(&needs(), false, 2000.0).unwrap();
        let said = training(&needs(), false, 1999.0).unwrap_err().to_string();
        // 0.9 * 999 / 50 = 17.98.
        assert!(said.contains("batch_size * workers of at most 17") && said.contains("/train/accumulate"), "{said}");
    }

    #[test]
    fn a_network_that_does_not_fit_is_to_be_smaller_or_adapted() {
        let said = training(&needs(), false, 900.0).unwrap_err();
        assert_eq!(said.exit_code(), 2);
        assert!(said.to_string().contains("/train/lora"), "{said}");
        assert!(!training(&needs(), true, 900.0).unwrap_err().to_string().contains("/train/lora"));
        // The frozen parts count.
        let frozen = Needs { tokenizer: 1000, ..needs() };
        assert!(training(&frozen, false, 2000.0).is_err());
    }
}

//! Estimates how long a document trains on this machine. Small networks train a few steps in a temporary folder; for
//! large ones, the speed of a matrix product stands for the speed of the machine.

use crate::memory::Needs;
use framework::burn::tensor::{Device, Tensor};
use framework::error::{Error, Result};
use framework::pipeline::Pipeline;
use run_folder::document;
use run_folder::session::{self, Options, Outcome};
use run_folder::watcher::Silent;
use serde_json::Value;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Steps of the measured pass. The first steps are slower, so only the second half counts.
const STEPS: usize = 6;
/// Passes through the network that one training step costs, in forward passes: forward and backward.
const PASSES: f64 = 3.0;
/// Longest measured pass, in seconds as estimated.
const LONGEST: f64 = 8.0;

/// How fast a document trains and samples.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Seconds per optimizer step.
    pub step: f64,
    /// Seconds per sampled image.
    pub image: f64,
    /// Whether steps were measured.
    pub is_measured: bool,
}

/// Returns the floating-point operations per second of a matrix product on this device.
fn operations(device: &Device) -> f64 {
    const SIDE: usize = 512;
    let ones = || Tensor::<2>::ones([SIDE, SIDE], device);
    let (a, b) = (ones(), ones());
    let product = || a.clone().matmul(b.clone()).into_data();
    product();
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed().as_secs_f64() < 0.2 {
        product();
        count += 1;
    }
    2.0 * (SIDE as f64).powi(3) * f64::from(count) / start.elapsed().as_secs_f64()
}

/// Measures or estimates the speed of a document.
///
/// # Errors
/// If the document or its data are wrong, or the measured steps fail.
pub fn speed(text: &str, name: &str, device: &Device) -> Result<Speed> {
    let pipeline = document::from_text(text, &[], name)?;
    let estimated = estimated(&pipeline, device);
    if estimated.step * STEPS as f64 > LONGEST || pipeline.train.from.is_some() {
        return Ok(estimated);
    }
    measured(text, name, device, estimated)
}

fn estimated(pipeline: &Pipeline, device: &Device) -> Speed {
    let (per_second, train) = (operations(device), &pipeline.train);
    let samples = (train.batch_size * train.accumulate) as f64;
    let passes = PASSES + pipeline.objective.extra_passes() as f64;
    let forward = pipeline.backbone.flops() / per_second;
    let evaluations = pipeline.sampler.evaluations(&pipeline.latent_shape()) * pipeline.guidance.needs().most_branches;
    Speed { step: forward * passes * samples, image: forward * evaluations as f64, is_measured: false }
}

/// Trains a few steps in a temporary folder.
fn measured(text: &str, name: &str, device: &Device, estimated: Speed) -> Result<Speed> {
    let folder = tempfile::tempdir().map_err(|e| Error::Run(format!("no temporary folder: {e}")))?;
    let overrides = [
        ("/train/steps", STEPS.to_string()),
        ("/train/log_every", (STEPS / 2).to_string()),
        ("/train/save_every", STEPS.to_string()),
        ("/train/sample_every", "null".to_string()),
        ("/train/sample_columns", "2".to_string()),
        ("/train/warmup_steps", "1".to_string()),
        ("/train/metric_samples", "0".to_string()),
        ("/metrics", "[]".to_string()),
    ]
    .map(|(pointer, value)| format!("{pointer}={value}"));
    let pipeline = document::from_text(text, &overrides, name)?;
    let batch = (pipeline.train.batch_size * pipeline.train.accumulate) as f64;
    let stop: &AtomicBool = &framework::interrupt::STOP;
    let outcome = session::train(pipeline, folder.path(), device, &Options::default(), stop, &mut Silent)?;
    if let Outcome::Interrupted(_) = outcome {
        return Err(Error::Interrupted);
    }
    let logged = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap_or_default();
    let last: Value = logged("metrics.jsonl")
        .lines()
        .last()
        .map_or(Value::Null, |line| serde_json::from_str(line).unwrap_or_default());
    let report: Value = serde_json::from_str(&logged("report.json")).unwrap_or_default();
    let step = last["images_per_second"].as_f64().filter(|speed| *speed > 0.0).map(|speed| batch / speed);
    let image = report["images_per_second"].as_f64().filter(|speed| *speed > 0.0).map(|speed| 1.0 / speed);
    Ok(Speed {
        step: step.unwrap_or(estimated.step),
        image: image.unwrap_or(estimated.image),
        is_measured: step.is_some(),
    })
}

/// Returns the number of steps that fit into `seconds`, rounded to two digits.
pub fn steps(seconds: f64, step: f64) -> usize {
    let steps = (seconds / step.max(1e-6)).clamp(50.0, 100_000.0);
    let unit = 10_f64.powf(steps.log10().floor() - 1.0);
    ((steps / unit).floor() * unit).round() as usize
}

/// Returns the bytes of a run's folder: its latest checkpoints.
pub fn disk(pipeline: &Pipeline) -> f64 {
    let needs = Needs::of(pipeline);
    let copies = 1 + usize::from(pipeline.train.ema.is_some());
    let checkpoint = 4.0 * (needs.parameters * copies + needs.trained * pipeline.train.optimizer.kept()) as f64;
    let count = pipeline.train.keep_last + usize::from(pipeline.train.keep_best);
    checkpoint * count as f64
}

/// Describes a duration.
pub fn duration(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{:.0} s", seconds.max(1.0)),
        ..5400.0 => format!("{:.0} minutes", seconds / 60.0),
        ..172_800.0 => format!("{:.1} hours", seconds / 3600.0),
        _ => format!("{:.0} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_two_digits_and_bounds() {
        assert_eq!(steps(600.0, 0.1), 6000);
        assert_eq!(steps(600.0, 0.173), 3400);
        assert_eq!(steps(60.0, 100.0), 50);
        assert_eq!(steps(1e9, 0.001), 100_000);
    }

    #[test]
    fn durations_are_described() {
        assert_eq!(duration(0.2), "1 s");
        assert_eq!(duration(600.0), "10 minutes");
        assert_eq!(duration(7200.0), "2.0 hours");
        assert_eq!(duration(864_000.0), "10 days");
    }
}

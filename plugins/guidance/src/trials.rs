//! Random predictions, and assertions that the tests of all rules share.

use crate::Cfg;
use framework::burn::tensor::DType;
use framework::prelude::*;
use framework::random::{Random, tensor};
use framework::sampling::guidance::{Guidance, Moment, Setting};
use framework::schedule::{Schedule, ScheduleForm};

/// Grid of the trial latents.
pub(crate) const GRID: [usize; 2] = [4, 6];
/// Channels of the trial latents.
pub(crate) const CHANNELS: usize = 3;
/// Number of evaluations of a trial.
pub(crate) const EVALUATIONS: usize = 5;

/// Returns the moment of evaluation `evaluation`; the progress runs from 0 to 1.
pub(crate) fn at(evaluation: usize) -> Moment {
    let progress = evaluation as f64 / (EVALUATIONS - 1) as f64;
    Moment { progress, t: 1.0 - progress, evaluation, channels: CHANNELS }
}

pub(crate) fn values(x: Tensor<3>) -> Vec<f64> {
    x.into_data().try_into_vec::<f64>().expect("the trials are in f64")
}

/// Returns one sample with one position per row.
pub(crate) fn one<const N: usize, const C: usize>(rows: [[f64; C]; N]) -> Tensor<3> {
    tensor::<3>(&rows.concat(), [1, N, C], DType::F64, &Device::flex())
}

/// Returns the random predictions of a branch for the samples `first..first + count`. Samples do not depend on the
/// batch.
pub(crate) fn prediction(branch: &str, first: u64, count: u64, evaluation: usize) -> Tensor<3> {
    let n = GRID[0] * GRID[1] * CHANNELS;
    let normal = |sample| Random::new(11).normal(branch, sample, evaluation as u64, n);
    let all: Vec<f64> = (first..first + count).flat_map(normal).map(f64::from).collect();
    tensor(&all, [count as usize, GRID[0] * GRID[1], CHANNELS], DType::F64, &Device::flex())
}

/// Runs a rule on random predictions: one list of values per evaluation.
pub(crate) fn run(rule: &dyn Guidance, first: u64, count: u64) -> Vec<Vec<f64>> {
    run_on(rule, count, &|branch, evaluation| prediction(branch, first, count, evaluation))
}

/// Runs a rule on the given predictions: one list of values per evaluation.
pub(crate) fn run_on(
    rule: &dyn Guidance,
    count: u64,
    predict: &dyn Fn(&'static str, usize) -> Tensor<3>,
) -> Vec<Vec<f64>> {
    let shape = LatentShape::values(GRID, CHANNELS);
    let mut trajectory = rule.start();
    trajectory.begin(&Setting { shape: &shape, path: None, samples: count as usize });
    (0..EVALUATIONS)
        .map(|evaluation| {
            let moment = at(evaluation);
            let branches = trajectory.branches(&moment);
            assert!((1..=rule.needs().most_branches).contains(&branches.len()), "the stated number of branches");
            let predictions = branches.iter().map(|branch| predict(branch.name, evaluation)).collect();
            values(trajectory.combine(&moment, predictions).prediction)
        })
        .collect()
}

/// Combines two predictions at the first evaluation.
pub(crate) fn combined(rule: &dyn Guidance, cond: &Tensor<3>, null: &Tensor<3>) -> Vec<f64> {
    let mut trajectory = rule.start();
    let [samples, positions, channels] = cond.dims();
    let shape = LatentShape::values([positions, 1], channels);
    trajectory.begin(&Setting { shape: &shape, path: None, samples });
    let moment = Moment { channels, ..at(0) };
    let branches = trajectory.branches(&moment);
    let of = |name| if name == "null" { null.clone() } else { cond.clone() };
    values(trajectory.combine(&moment, branches.iter().map(|branch| of(branch.name)).collect()).prediction)
}

/// Asserts that two lists of values differ by at most `tolerance` everywhere.
pub(crate) fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    assert!(worst <= tolerance && got.iter().all(|v| v.is_finite()), "off by {worst}: {got:?} against {expected:?}");
}

/// Returns whether two lists of values differ by more than 1e-6 anywhere.
pub(crate) fn differ(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-6)
}

/// Returns plain guidance.
pub(crate) fn cfg(scale: f64) -> Cfg {
    Cfg {
        scale,
        schedule: Schedule::Constant,
        schedule_form: ScheduleForm::FromConditional,
        sigma_interval: None,
        rescale: 0.0,
        rescale_space: None,
        negative: None,
        guided_channels: None,
    }
}

/// Asserts that a rule equals plain guidance at `scale` on random predictions.
pub(crate) fn assert_is_cfg(rule: &dyn Guidance, scale: f64) {
    for (got, expected) in run(rule, 0, 2).iter().zip(run(&cfg(scale), 0, 2)) {
        assert_close(got, &expected, 1e-9);
    }
}

/// Asserts that a rule returns the conditional prediction on random predictions.
pub(crate) fn assert_is_conditional(rule: &dyn Guidance) {
    for (evaluation, got) in run(rule, 0, 2).iter().enumerate() {
        assert_close(got, &values(prediction("given", 0, 2, evaluation)), 1e-9);
    }
}

/// Asserts that a batch equals its samples when they are sampled one at a time, and that each batch starts without the
/// state of the previous one.
pub(crate) fn assert_samples_are_independent(rule: &dyn Guidance) {
    let together = run(rule, 0, 3);
    for sample in 0..3 {
        for (all, alone) in together.iter().zip(run(rule, sample as u64, 1)) {
            let n = alone.len();
            assert_close(&all[sample * n..(sample + 1) * n], &alone, 1e-12);
        }
    }
    assert_eq!(run(rule, 0, 3), together, "a second batch starts fresh");
}

/// Asserts that equal predictions of all branches are returned unchanged.
pub(crate) fn assert_equal_predictions_stay(rule: &dyn Guidance) {
    for (evaluation, got) in run_on(rule, 2, &|_, evaluation| prediction("given", 0, 2, evaluation)).iter().enumerate()
    {
        assert_close(got, &values(prediction("given", 0, 2, evaluation)), 1e-9);
    }
}

/// Asserts that channels after the latent's own come from the conditional prediction.
pub(crate) fn assert_further_channels_are_conditional(rule: &dyn Guidance) {
    let mut trajectory = rule.start();
    let shape = LatentShape::values(GRID, CHANNELS - 1);
    trajectory.begin(&Setting { shape: &shape, path: None, samples: 2 });
    let moment = Moment { channels: CHANNELS - 1, ..at(2) };
    let branches = trajectory.branches(&moment);
    let predictions = branches.iter().map(|branch| prediction(branch.name, 0, 2, 2)).collect();
    let got = values(trajectory.combine(&moment, predictions).prediction.narrow(2, CHANNELS - 1, 1));
    assert_close(&got, &values(prediction("given", 0, 2, 2).narrow(2, CHANNELS - 1, 1)), 0.0);
}

//! Trains several pipelines that take turns, one step each. Other load on the machine then slows all of them equally.

use framework::burn::module::Module;
use framework::burn::tensor::Device;
use framework::data::dataset::Dataset;
use framework::error::{Error, Result};
use framework::interrupt;
use framework::network::backbone::BoxBackbone;
use framework::pipeline::Pipeline;
use framework::training::events::{End, Evaluator, Events, StepReport};
use framework::training::networks::Reference;
use framework::training::trainer::{Start, Trainer, tracking};
use run_folder::folder::RunFolder;
use run_folder::start;
use run_folder::watcher::Silent;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Number of first steps that do not count: they allocate memory and fill caches.
const WARM_UP: usize = 2;

/// The measured steps of one pipeline.
pub struct Measured {
    /// Seconds per step.
    pub seconds: Vec<f64>,
}

/// Event listener that records the time of every step, and then passes the turn to the next pipeline.
struct Turns {
    seconds: Vec<f64>,
    mine: Receiver<()>,
    next: Sender<()>,
}

impl Events for Turns {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.seconds.push(report.seconds);
        // Around the last step, the other pipelines may have finished and closed their channels.
        self.next.send(()).map(|()| self.mine.recv()).ok();
        Ok(())
    }
    fn sample(&mut self, _: &BoxBackbone, _: usize) -> Result<()> {
        Ok(())
    }
    fn saved(&mut self, _: &Path, _: usize) {}
}

/// Nothing is measured on samples: the step time alone counts.
struct Unmeasured;

impl Evaluator for Unmeasured {
    fn evaluate(&mut self, _: &BoxBackbone, _: usize) -> Result<BTreeMap<String, f64>> {
        Ok(BTreeMap::new())
    }
}

/// Trains each pipeline for `steps` measured steps. Training starts from random weights, which also serve as the
/// reference of objectives that need one: neither affects the time of a step.
///
/// # Errors
/// If a dataset or a tokenizer cannot be read, training fails, or the user stops the command.
pub fn train(pipelines: Vec<Pipeline>, steps: usize, device: &Device) -> Result<Vec<Measured>> {
    let folder = tempfile::tempdir().map_err(|e| Error::io(Path::new("a temporary folder"), e))?;
    let runs = pipelines.into_iter().enumerate().map(|(i, pipeline)| {
        let run = RunFolder::open(&folder.path().join(i.to_string()))?;
        prepare(pipeline, &run, steps + WARM_UP, device).map(|run| (run, i))
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    // `train` does the same once its weights are in place.
    allocator::keep_pages();
    let (senders, receivers): (Vec<_>, Vec<_>) = runs.iter().map(|_| channel()).unzip();
    // Give the first turn to the first pipeline.
    senders[0].send(()).expect("the receiver exists");
    let next = senders.into_iter().cycle().skip(1);
    let turns = receivers.into_iter().zip(next).map(|(mine, next)| Turns { seconds: Vec::new(), mine, next });
    std::thread::scope(|scope| {
        let threads: Vec<_> = runs
            .into_iter()
            .zip(turns)
            .map(|(((mut trainer, dataset), _), mut turns)| {
                scope.spawn(move || -> Result<Measured> {
                    turns.mine.recv().ok();
                    match trainer.run(dataset, &interrupt::STOP, &mut turns, &mut Unmeasured)? {
                        End::Interrupted(_) => Err(Error::Interrupted),
                        End::Done => Ok(Measured { seconds: turns.seconds.split_off(WARM_UP) }),
                    }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a training thread does not panic")).collect()
    })
}

/// A trainer with its dataset.
type Run = (Trainer, Arc<dyn Dataset>);

fn prepare(mut pipeline: Pipeline, run: &RunFolder, steps: usize, device: &Device) -> Result<Run> {
    pipeline.load(device)?;
    let dataset = pipeline.open_data()?;
    start::learn_tokenizer(&mut pipeline, run, &dataset, device, &mut Silent)?;
    let train = &mut pipeline.train;
    (train.steps, train.warmup_steps, train.save_every) = (steps, train.warmup_steps.min(steps), steps);
    train.sample_every = None;
    let online = pipeline.init_backbone(&tracking(&pipeline.train, device));
    let reference = pipeline.objective.needs().reference.then(|| Reference::plain(online.valid()));
    let trainer =
        Trainer::new(Arc::new(pipeline), &run.checkpoints(), device, Start { online, reference, resume: None })?;
    Ok((trainer, Arc::new(dataset)))
}

/// Returns the median of `values`, which must not be empty.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Returns the median of the ratios `one / other` of steps in the same round, and its 95 % interval from the ranks of
/// the ratios.
pub fn ratio(one: &Measured, other: &Measured) -> [f64; 3] {
    let mut ratios: Vec<f64> = one.seconds.iter().zip(&other.seconds).map(|(one, other)| one / other).collect();
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.len() as f64 / 2.0;
    let half = 1.96 * (ratios.len() as f64).sqrt() / 2.0;
    let rank = |place: f64| ratios[(place.max(0.0) as usize).min(ratios.len() - 1)];
    [rank(middle), rank(middle - half), rank(middle + half)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_rounds_with_its_interval() {
        let other = Measured { seconds: vec![1.0; 101] };
        let one = Measured { seconds: (0..101).map(|i| 1.0 + f64::from(i) / 100.0).collect() };
        let [ratio, low, high] = ratio(&one, &other);
        assert_eq!(ratio, 1.5);
        // The interval of a median of 101 values has the ranks 50.5 -+ 9.8.
        assert!((low - 1.40).abs() < 1e-9 && (high - 1.60).abs() < 1e-9, "{low} {high}");
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}

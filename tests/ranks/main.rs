//! Several ranks train what one process trains. The ranks here are threads; `tests/mpi.rs` starts processes.

mod threads;

use framework::burn::tensor::Device;
use framework::checkpoint::{self, Checkpoint};
use framework::error::Result;
use framework::ranks::job::Job;
use run_folder::document;
use run_folder::session::{self, Options, Outcome};
use run_folder::watcher::{Stage, Watcher};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use unguided as _;

/// Watcher that asks to stop after a step; 0 = never.
struct StopAt<'a>(usize, &'a AtomicBool);

impl Watcher for StopAt<'_> {
    fn progress(&mut self, _: Stage, _: usize, _: usize, _: &str) {}
    fn finished(&mut self, _: Stage) {}
    fn say(&mut self, _: &str) {}
    fn logged(&mut self, step: usize, _: usize, _: &str, _: f64) {
        if step == self.0 {
            self.1.store(true, Ordering::SeqCst);
        }
    }
}

/// Trains an example on this number of ranks, with four passes per step, and returns the outcome of every rank.
fn train(example: &str, run: &Path, ranks: usize, stop_at: usize, set: &[&str]) -> Vec<Result<Outcome>> {
    let path = PathBuf::from(format!("examples/pipelines/{example}-tiny.json"));
    let common = ["batch_size=4", "accumulate=4", "steps=4", "save_every=4", "log_every=1", "sample_columns=1"];
    let mut all: Vec<String> = common.iter().map(|value| format!("/train/{value}")).collect();
    all.push("/metrics=[]".to_string());
    all.extend(set.iter().map(ToString::to_string));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let start = |rank: threads::Thread| {
            let (path, all, stop) = (&path, &all, &stop);
            scope.spawn(move || {
                let pipeline = document::read(path, all)?;
                let job = Job { ranks: Arc::new(rank), ..Job::alone() };
                let mut watcher = StopAt(stop_at, stop);
                let device = Device::flex();
                session::train_in_job(pipeline, run, &device, &Options::default(), stop, &mut watcher, &job)
            })
        };
        let started: Vec<_> = threads::ranks(ranks).into_iter().map(start).collect();
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Trains to the end and returns the bytes of the last checkpoint.
fn trained(example: &str, ranks: usize, set: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    for outcome in train(example, folder.path(), ranks, 0, set) {
        assert!(matches!(outcome, Ok(Outcome::Done(_))), "{example} on {ranks} ranks: {outcome:?}");
    }
    fs::read(folder.path().join("checkpoints").join(checkpoint::file_name(4))).unwrap()
}

fn same_on_every_number_of_ranks(example: &str, set: &[&str]) {
    let alone = trained(example, 1, set);
    for ranks in [1, 2, 4] {
        assert!(trained(example, ranks, set) == alone, "{example}: {ranks} ranks write other bytes than one process");
    }
}

#[test]
fn dit_and_gft_train_the_same_bits_on_one_two_and_four_ranks() {
    same_on_every_number_of_ranks("digits-dit-gft", &[]);
}

#[test]
fn sit_and_mg_which_follows_a_measurement_train_the_same_bits() {
    let measured = ["/train/sample_every=2", "/metrics=[{\"type\": \"class_accuracy\"}]", "/train/metric_samples=10"];
    same_on_every_number_of_ranks("digits-sit-mg", &measured);
}

#[test]
fn llamagen_and_cfg_train_the_same_bits() {
    same_on_every_number_of_ranks("digits-llamagen-cfg", &[]);
}

#[test]
fn var_and_gft_train_the_same_bits() {
    same_on_every_number_of_ranks("digits-var-gft", &[]);
}

#[test]
fn mar_and_cfg_train_the_same_bits() {
    same_on_every_number_of_ranks("digits-mar-cfg", &[]);
}

/// The reference of CCA and the teacher of distillation are the weights that a run of CFG left.
#[test]
fn cca_and_distillation_train_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    assert!(train("digits-dit-cfg", folder.path(), 1, 0, &[]).remove(0).is_ok());
    let weights = folder.path().join("checkpoints").join(checkpoint::file_name(4));
    let from = format!("/train/from={{\"checkpoint\": \"{}\"}}", weights.display());
    same_on_every_number_of_ranks("digits-dit-cca", &[&from]);
    same_on_every_number_of_ranks("digits-dit-distill", &[&from]);
}

#[test]
fn a_run_goes_on_with_four_then_two_ranks_then_one() {
    let folder = tempfile::tempdir().unwrap();
    for (ranks, stop) in [(4, 1), (2, 3)] {
        for outcome in train("digits-dit-gft", folder.path(), ranks, stop, &[]) {
            assert!(matches!(outcome, Ok(Outcome::Interrupted(step)) if step == stop), "{outcome:?}");
        }
    }
    assert!(matches!(train("digits-dit-gft", folder.path(), 1, 0, &[]).remove(0), Ok(Outcome::Done(_))));
    let resumed = fs::read(folder.path().join("checkpoints").join(checkpoint::file_name(4))).unwrap();
    assert!(resumed == trained("digits-dit-gft", 1, &[]));
}

/// Three ranks cannot share four passes equally, so the order of the additions differs.
#[test]
fn three_ranks_train_the_same_weights_up_to_rounding() {
    let weights = |ranks| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(checkpoint::file_name(4));
        fs::write(&path, trained("digits-dit-gft", ranks, &[])).unwrap();
        let model = Checkpoint::load(&path).unwrap().model;
        model.into_values().flat_map(|data| data.iter::<f64>().collect::<Vec<_>>()).collect::<Vec<f64>>()
    };
    let (one, three) = (weights(1), weights(3));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let apart = norm(&mut one.iter().zip(&three).map(|(a, b)| a - b)) / norm(&mut one.iter().copied());
    assert!(apart < 1e-5, "the weights differ by {apart:e}, relative");
}

#[test]
fn more_ranks_than_passes_are_refused_with_a_document_that_has_enough() {
    let folder = tempfile::tempdir().unwrap();
    for outcome in train("digits-dit-gft", folder.path(), 4, 0, &["/train/accumulate=2", "/train/batch_size=8"]) {
        let error = outcome.unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let said = error.to_string();
        assert!(said.contains("4 ranks share 2 passes"), "{said}");
        assert!(said.contains("accumulate to 4 and batch_size to 4: the global batch stays 16"), "{said}");
    }
}

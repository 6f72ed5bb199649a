//! `train`: trains a document and writes pictures and a report.

use crate::arguments::TrainOptions;
use crate::console::{self, Console};
use crate::{Outcome, device, job, memory, system};
use framework::error::Error;
use framework::interrupt;
use framework::ranks::job::Job;
use run_folder::document;
use run_folder::environment::Environment;
use run_folder::folder::RunFolder;
use run_folder::session::{self, Options};
use run_folder::watcher::{Silent, Watcher};
use std::{env, thread};

/// Trains a document, or resumes its interrupted run, with all processes that a launcher started.
pub fn train(options: &TrainOptions) -> Outcome {
    let job = job::join(options.step_timeout)?;
    let done = train_in_job(options, &job);
    job::end_with(&job, done)
}

fn train_in_job(options: &TrainOptions, job: &Job) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    let pipeline = document::read(&options.document.pipeline, &options.document.set)?;
    memory::to_train(&pipeline, &device)?;
    let folder = options.run.clone().unwrap_or_else(|| RunFolder::default_path(&options.document.pipeline));
    let command = format!("unguided train {} --run {}", options.document.pipeline.display(), folder.display());
    let (resume_from, accept_data_change) = (options.resume_from.clone(), options.accept_data_change);
    let environment = Environment {
        version: env!("CARGO_PKG_VERSION").to_string(),
        system: format!("{} {}", env::consts::OS, env::consts::ARCH),
        processor: system::processor().0.unwrap_or_default(),
        cores: thread::available_parallelism().ok().map(usize::from),
        device: device::name(&device),
    };
    let session = Options { resume_from, accept_data_change, command, environment };
    let (mut console, mut silent) = (Console::new(), Silent);
    let watcher: &mut dyn Watcher = if job.is_first() { &mut console } else { &mut silent };
    match session::train_in_job(pipeline, &folder, &device, &session, &interrupt::STOP, watcher, job)? {
        session::Outcome::Interrupted(_) if !job.is_first() => return Err(Error::Interrupted),
        session::Outcome::Done(_) if !job.is_first() => {}
        session::Outcome::Interrupted(step) => {
            let but = if options.resume_from.is_some() { " without --resume-from" } else { "" };
            console::say(&format!("stopped at step {step}; the same command{but} resumes the run"));
            return Err(Error::Interrupted);
        }
        session::Outcome::Done(summary) => {
            console::report(&summary);
            console::report(&format!("report: {}", folder.join("report.html").display()));
        }
    }
    Ok(())
}

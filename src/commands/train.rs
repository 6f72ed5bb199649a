//! `train`: trains a document and writes pictures and a report.

use crate::arguments::TrainOptions;
use crate::console::{self, Console};
use crate::{Outcome, device, memory, system};
use framework::error::Error;
use framework::interrupt;
use run_folder::document;
use run_folder::environment::Environment;
use run_folder::folder::RunFolder;
use run_folder::session::{self, Options};
use std::{env, thread};

/// Trains a document, or resumes its interrupted run.
pub fn train(options: &TrainOptions) -> Outcome {
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
    match session::train(pipeline, &folder, &device, &session, &interrupt::STOP, &mut Console::new())? {
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

//! `train`: trains a document and writes pictures and a report.

use crate::arguments::TrainOptions;
use crate::console::Console;
use crate::{Outcome, device};
use run_folder::document;
use run_folder::folder::RunFolder;
use run_folder::session::{self, Options};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Trains a document, or resumes its interrupted run.
pub fn train(options: &TrainOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    let pipeline = document::read(&options.document.pipeline, &options.document.set)?;
    let folder = options.run.clone().unwrap_or_else(|| RunFolder::default_path(&options.document.pipeline));
    let command = format!("unguided train {} --run {}", options.document.pipeline.display(), folder.display());
    let (resume_from, accept_data_change) = (options.resume_from.clone(), options.accept_data_change);
    let session = Options { resume_from, accept_data_change, command };
    let stop = stop_on_ctrl_c();
    match session::train(pipeline, &folder, &device, &session, &stop, &mut Console::new())? {
        session::Outcome::Interrupted(step) => {
            let but = if options.resume_from.is_some() { " without --resume-from" } else { "" };
            eprintln!("stopped at step {step}; the same command{but} resumes the run");
        }
        session::Outcome::Done(summary) => {
            println!("{summary}");
            println!("pictures in {}: samples.png, loss.png; measurements: report.md", folder.display());
        }
    }
    Ok(())
}

/// Returns a flag that the first Ctrl-C or termination signal sets. The second signal ends the process at once.
fn stop_on_ctrl_c() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    // A process accepts only one handler. After an earlier call in the same process, that call's handler remains: the
    // first Ctrl-C then sets its flag, not this one, and the second Ctrl-C ends the process.
    let _ = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step and saving a checkpoint; press Ctrl-C again to stop at once");
    });
    stop
}

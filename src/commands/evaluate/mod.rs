//! `evaluate`: measures the samples of a network, a folder of images, or encoded latents, against real images.
//! What the command reads is in `real`, `network` and `images`, what it prints in `results`; each can be changed alone.

mod images;
mod network;
mod real;
mod results;

use crate::arguments::EvaluateOptions;
use crate::{Outcome, device};
use run_folder::evaluation::inputs::Subject;

/// Evaluates images, or resumes an interrupted evaluation.
pub fn evaluate(options: &EvaluateOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    match Subject::of(&options.from)? {
        Subject::Network(path) => network::evaluate(options, &path, &device),
        Subject::Images(path) => images::evaluate(options, &path, false, &device),
        Subject::Latents(path) => images::evaluate(options, &path, true, &device),
    }
}

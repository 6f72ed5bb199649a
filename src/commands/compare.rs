//! `compare`: runs and sweeps next to each other, as a page, as JSON and as CSV.

use crate::arguments::CompareOptions;
use crate::console::{self, Console};
use crate::{Outcome, device, outputs};
use run_folder::page::{Content, samples};

/// Reads the folders, samples the runs from the same noise, and writes the files.
pub fn compare(options: &CompareOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    outputs::file("--out", &options.out, Some("html"))?;
    let also = [("--json", &options.json, "json"), ("--csv", &options.csv, "csv")];
    for (option, path, ending) in also {
        path.iter().try_for_each(|path| outputs::file(option, path, Some(ending)))?;
    }
    let mut content = Content::read(&options.folders)?;
    if options.samples > 0 && (content.runs.len() > 1 || !options.scales.is_empty()) {
        let (count, seed, scales) = (options.samples as usize, options.seed, options.scales.clone());
        let request = samples::Options { count, seed, scales };
        let sampled = samples::from_same_noise(&content.runs, &request, &device, &mut Console::new());
        let hint = "the samples failed; --samples 0 compares without them";
        let (strips, notes) = sampled.inspect_err(|_| console::say(hint))?;
        content.strips = strips;
        content.notes.extend(notes);
    }
    for note in &content.notes {
        console::say(&format!("note: {note}"));
    }
    content.write_html(&options.out)?;
    console::report(&options.out.display().to_string());
    if let Some(path) = &options.json {
        content.write_json(path)?;
        console::report(&path.display().to_string());
    }
    if let Some(path) = &options.csv {
        content.write_csv(path)?;
        console::report(&path.display().to_string());
    }
    Ok(())
}

//! `cost`: measures time and memory of a training step of several documents, relative to the document of `cfg`.
//! How pipelines take turns can change in `turns` alone; the table and its published figures are in this file.

mod turns;

use crate::arguments::CostOptions;
use crate::{Outcome, console, device};
use framework::error::{Error, Problem, Result};
use framework::pipeline::Pipeline;
use framework::plugin::Kind;
use run_folder::document;
use std::path::Path;
use std::process::Command;
use turns::Measured;

/// Published cost of an objective relative to cfg: time and memory, where the paper states them.
///
/// Source: arXiv:2501.15420 sec. 3.2 (gft over cfg) and table 1 (distill and cca over gft, multiplied by it).
const PUBLISHED: [(&str, f64, f64); 4] =
    [("cfg", 1.0, 1.0), ("gft", 1.19, 1.0), ("distill", 1.19 * 1.19, 1.15), ("cca", 1.69 * 1.19, 1.39)];

/// One row of the table.
struct Row {
    name: String,
    objective: String,
    measured: Measured,
    /// Peak memory of a process that trains this document alone, in MiB.
    memory: Option<f64>,
}

/// Prints the cost of each document.
pub fn cost(options: &CostOptions, plugins: &[std::path::PathBuf]) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    let read = |path: &Path| document::read(path, &options.set);
    if options.alone {
        let pipeline = read(&options.documents[0])?;
        turns::train(vec![pipeline], options.steps.get(), &device)?;
        return console::print(&format!("{}", peak().unwrap_or(f64::NAN)));
    }
    let pipelines = options.documents.iter().map(|path| read(path)).collect::<Result<Vec<Pipeline>>>()?;
    let objectives: Vec<String> = pipelines.iter().map(objective).collect();
    let base = objectives.iter().position(|name| name == "cfg").unwrap_or(0);
    comparable(&pipelines, &options.documents)?;
    let memory: Vec<Option<f64>> =
        options.documents.iter().map(|path| alone(path, options, plugins)).collect::<Result<_>>()?;
    let measured = turns::train(pipelines, options.steps.get(), &device)?;
    let rows = options.documents.iter().zip(objectives).zip(measured).zip(memory);
    let rows: Vec<Row> = rows
        .map(|(((path, objective), measured), memory)| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            Row { name, objective, measured, memory }
        })
        .collect();
    table(&rows, base)
}

/// Returns the name of a pipeline's objective, as the document writes it.
fn objective(pipeline: &Pipeline) -> String {
    let document: serde_json::Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    let name = document.pointer("/objective/type").and_then(serde_json::Value::as_str);
    name.unwrap_or(pipeline.name(Kind::Objective)).to_string()
}

/// Refuses documents with different numbers of samples per step: their step times cannot be compared.
fn comparable(pipelines: &[Pipeline], paths: &[std::path::PathBuf]) -> Outcome {
    let samples = |pipeline: &Pipeline| pipeline.train.batch_size * pipeline.train.accumulate;
    let first = samples(&pipelines[0]);
    match pipelines.iter().position(|pipeline| samples(pipeline) != first) {
        None => Ok(()),
        Some(other) => Err(Error::from(
            Problem::new(
                "/train/batch_size",
                format!(
                    "{} trains {first} samples per step, {} trains {}",
                    paths[0].display(),
                    paths[other].display(),
                    samples(&pipelines[other])
                ),
            )
            .accepts("the same batch_size times accumulate in every document")
            .fix(format!("add --set /train/batch_size={}", pipelines[0].train.batch_size)),
        )),
    }
}

/// Returns the peak memory in MiB of a process that trains the document alone; `None` where it is not measured.
fn alone(path: &Path, options: &CostOptions, plugins: &[std::path::PathBuf]) -> Result<Option<f64>> {
    let program = std::env::current_exe().map_err(|e| Error::io(Path::new("the program"), e))?;
    let mut command = Command::new(&program);
    command.arg("cost").arg(path).args(["--alone", "--steps", "3"]);
    options.set.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    plugins.iter().for_each(|library| {
        command.arg("--plugin-dir").arg(library);
    });
    if let Some(device) = &options.device {
        command.args(["--device", device]);
    }
    let output = command.output().map_err(|e| Error::io(&program, e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("error: ").to_string();
        return Err(match output.status.code() {
            Some(2) => Problem::new(path.display().to_string(), said).into(),
            _ => Error::Run(format!("{}: {said}", path.display())),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse().ok().filter(|peak: &f64| peak.is_finite()))
}

/// Returns the largest resident size of this process so far in MiB. Linux only.
fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

fn table(rows: &[Row], base: usize) -> Outcome {
    console::print(&format!(
        "{:<28} {:<10} {:>8} {:>7} {:>13} {:>7} {:>9} {:>7} {:>7}",
        "document", "objective", "ms/step", "ratio", "95 %", "paper", "peak MiB", "ratio", "paper"
    ))?;
    let baseline = &rows[base];
    for row in rows {
        let [ratio, low, high] = turns::ratio(&row.measured, &baseline.measured);
        let published = PUBLISHED.iter().find(|(name, ..)| *name == row.objective && baseline.objective == "cfg");
        let shown = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.2}"));
        let memory = row.memory.zip(baseline.memory).map(|(one, other)| one / other);
        console::print(&format!(
            "{:<28} {:<10} {:>8.1} {ratio:>7.2} {:>13} {:>7} {:>9} {:>7} {:>7}",
            row.name,
            row.objective,
            1e3 * turns::median(&row.measured.seconds),
            format!("{low:.2} to {high:.2}"),
            shown(published.map(|(_, time, _)| *time)),
            row.memory.map_or("-".to_string(), |peak| format!("{peak:.0}")),
            shown(memory),
            shown(published.map(|(.., memory)| *memory)),
        ))?;
    }
    console::print(&format!(
        "\nmedians of {} steps, in which the documents take turns; ratios are relative to {}, with 95 % intervals.\n\
         peak MiB: the whole process that trains one document, without GPU memory.\n\
         paper: arXiv:2501.15420, table 1, on GPUs, relative to cfg. References start from random weights here.",
        baseline.measured.seconds.len(),
        baseline.name,
    ))
}

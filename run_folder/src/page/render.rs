//! Content to HTML: the values that the template `page.html` shows, as texts.

use crate::page::content::Content;
use crate::page::differences;
use crate::page::export::costs;
use crate::page::figures::{figures, sweeps};
use crate::page::numbers::{bytes, duration, thousands, value};
use crate::page::record::{Grid, Record};
use crate::page::samples;
use crate::page::view::{Cell, Entry, Fact, Figure, Link, Picture, Row, StripRow, StripView, Sweeps, Table, picture};
use framework::checkpoint::tensor_file::write_atomically;
use framework::error::{Error, Result};
use framework::plugin::Kind;
use minijinja::Environment;
use minijinja::value::Serde;
use registry::Registry;
use serde::Serialize;
use std::path::Path;

/// Largest number of sample grids of a training on the page. More are in the folder `samples`.
const MOST_GRIDS: usize = 8;

/// Largest size in bytes of all pictures on the page that were written during the training.
const MOST_PICTURE_BYTES: usize = 16 << 20;

#[derive(Serialize)]
struct Page {
    title: String,
    style: &'static str,
    is_one: bool,
    about: Option<String>,
    notes: Vec<String>,
    legend: Vec<Entry>,
    facts: Vec<Fact>,
    grids: Vec<Picture>,
    strips: Vec<StripView>,
    results: Table,
    samples: Option<String>,
    figures: Vec<Figure>,
    sweeps: Sweeps,
    changes: Vec<differences::Change>,
    differences: Table,
    document: Option<String>,
}

impl Content {
    /// Renders the page: the report of one run, or a comparison.
    ///
    /// # Errors
    /// If a picture of a run cannot be read.
    pub fn html(&self) -> Result<String> {
        let one = match self.runs.as_slice() {
            [run] if self.sweeps.is_empty() => Some(run),
            _ => None,
        };
        let count = self.runs.len();
        let title = match one {
            Some(run) => run.name.clone(),
            None => {
                let counted = |count: usize, what: &str| match count {
                    0 => None,
                    1 => Some(format!("1 {what}")),
                    count => Some(format!("{count} {what}s")),
                };
                let parts = [counted(count, "run"), counted(self.sweeps.len(), "sweep")];
                parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
            }
        };
        let registry = Registry::linked();
        let page = Page {
            title,
            style: include_str!("page.css"),
            is_one: one.is_some(),
            about: one.and_then(|run| run.setting("/about")),
            notes: self.notes.iter().cloned().chain(one.into_iter().flat_map(remarks)).collect(),
            legend: self.legend(),
            facts: one.map(|run| facts(run, &registry)).unwrap_or_default(),
            grids: one.map(pictures).transpose()?.unwrap_or_default(),
            strips: self.strips(),
            results: results(&self.runs),
            samples: one.and_then(|run| Some(thousands(run.samples? as usize))),
            figures: figures(&self.runs),
            sweeps: sweeps(&self.sweeps, count),
            changes: one.map(|run| differences::from_defaults(&run.document, registry.schema())).unwrap_or_default(),
            differences: self.table_of_differences(),
            document: one.map(|run| format!("{:#}", run.document)),
        };
        let failed = |e: minijinja::Error| Error::Run(format!("the page cannot be rendered: {e:#}"));
        let mut environment = Environment::new();
        environment.add_template("page.html", include_str!("page.html")).map_err(failed)?;
        environment.get_template("page.html").and_then(|template| template.render(Serde(page))).map_err(failed)
    }

    /// Writes the page. The file is either complete or absent.
    ///
    /// # Errors
    /// If a picture cannot be read, or the file cannot be written.
    pub fn write_html(&self, path: &Path) -> Result<()> {
        write_atomically(path, [self.html()?.as_bytes()])
    }

    fn names(&self) -> impl Iterator<Item = String> + '_ {
        let sweeps = self.sweeps.iter().map(|sweep| format!("{} (sweep)", sweep.name));
        self.runs.iter().map(|run| run.name.clone()).chain(sweeps)
    }

    fn legend(&self) -> Vec<Entry> {
        let notes = self.runs.iter().map(|run| match run.is_finished {
            true => run.path.display().to_string(),
            false => format!("{} (unfinished)", run.path.display()),
        });
        let notes = notes.chain(self.sweeps.iter().map(|sweep| format!("{} points", sweep.points.len())));
        let entry = |(color, (name, note))| Entry { name, color, note };
        self.names().zip(notes).enumerate().map(entry).collect()
    }

    fn strips(&self) -> Vec<StripView> {
        let view = |label: &str, row: &samples::Row| StripRow {
            name: self.runs[row.run].name.clone(),
            scale: row.scale.map(|scale| format!("scale {scale}")),
            color: row.run,
            images: row.images.iter().map(|png| picture(label.to_string(), png, 1, false)).collect(),
        };
        let strips = self.strips.iter();
        strips
            .map(|strip| StripView {
                label: strip.label.clone(),
                rows: strip.rows.iter().map(|row| view(&strip.label, row)).collect(),
            })
            .collect()
    }

    fn table_of_differences(&self) -> Table {
        let cell = |value: &Option<String>| Cell { text: value.clone().unwrap_or("—".into()), is_best: false };
        let rows = self.differences.iter().map(|difference| Row {
            name: difference.pointer.clone(),
            meaning: String::new(),
            cells: difference.values.iter().map(cell).collect(),
        });
        Table { head: self.runs.iter().map(|run| run.name.clone()).collect(), rows: rows.collect() }
    }
}

/// Returns what a reader of a run's report must know.
fn remarks(run: &Record) -> Vec<String> {
    let mut notes = Vec::new();
    if run.skipped > 0 {
        notes.push(format!(
            "{} items could not be read; each was replaced by the next readable item.",
            thousands(run.skipped as usize)
        ));
    }
    notes.extend(run.facts.notes.iter().cloned());
    notes
}

/// Returns the address of a paper that a plugin names, such as `arXiv:2501.15420`.
fn link(paper: &str) -> Link {
    let address = match paper.split_once(':') {
        Some(("arXiv", id)) => format!("https://arxiv.org/abs/{id}"),
        Some(("doi", id)) => format!("https://doi.org/{id}"),
        _ if paper.starts_with("https://") => paper.to_string(),
        _ => String::new(),
    };
    Link { text: paper.to_string(), address }
}

fn facts(run: &Record, registry: &Registry) -> Vec<Fact> {
    let mut all = Vec::new();
    let mut add = |name: &'static str, value: Option<String>, detail: String, links: Vec<Link>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            all.push(Fact { name, value, detail, links });
        }
    };
    for (name, kind) in [("Objective", Kind::Objective), ("Backbone", Kind::Backbone), ("Sampler", Kind::Sampler)] {
        let plugin = run.setting(&format!("/{}/type", kind.name()));
        let entry = plugin.as_deref().and_then(|plugin| registry.entry(kind, plugin));
        let papers = entry.map(|entry| entry.papers.iter().map(|paper| link(paper)).collect()).unwrap_or_default();
        let detail = match kind {
            Kind::Sampler => run.setting("/sampler/steps").map(|steps| format!("{steps} steps")),
            Kind::Backbone => run.facts.parameters.map(|count| format!("{} parameters", thousands(count))),
            _ => None,
        };
        add(name, plugin, detail.unwrap_or_default(), papers);
    }
    let scale = run.setting("/guidance/scale").map(|scale| format!("scale {scale}")).unwrap_or_default();
    add("Guidance", run.setting("/guidance/type"), scale, Vec::new());
    let items = run.facts.items.map(|items| format!("{} items", thousands(items))).unwrap_or_default();
    add("Data", run.setting("/data/type"), items, Vec::new());
    let names = &run.class_names;
    let shown: Vec<&str> = names.iter().take(20).map(String::as_str).collect();
    let more =
        if names.len() > shown.len() { format!(" and {} more", names.len() - shown.len()) } else { String::new() };
    let list = format!("{}{more}", shown.join(", "));
    add("Classes", (!names.is_empty()).then(|| thousands(names.len())), list, Vec::new());
    let steps = match run.is_finished {
        true => format!("{} steps", thousands(run.step)),
        false => format!("{} of {} steps", thousands(run.step), thousands(run.steps())),
    };
    let batch = format!("of {} images", thousands(run.samples_per_step()));
    add("Training", Some(steps), batch, Vec::new());
    let pace = run.seconds_per_step.map(|pace| format!("{} per step", duration(pace))).unwrap_or_default();
    add("Duration", (run.seconds > 0.0).then(|| duration(run.seconds)), pace, Vec::new());
    add("Seed", run.setting("/train/seed"), String::new(), Vec::new());
    let environment = &run.facts.environment;
    let cores = environment.cores.map(|cores| format!(", {cores} cores")).unwrap_or_default();
    let device = (!environment.device.is_empty()).then(|| environment.device.clone());
    add("Device", device, format!("{}{cores}", environment.processor), Vec::new());
    let memory = run.facts.peak_memory.map(|size| bytes(size as f64));
    add("Peak memory", memory, "of the process: training and sampling".into(), Vec::new());
    let version = (!environment.version.is_empty()).then(|| format!("unguided {}", environment.version));
    add("Version", version, environment.system.clone(), Vec::new());
    all
}

fn pictures(run: &Record) -> Result<Vec<Picture>> {
    let columns = run.setting("/train/sample_columns").and_then(|columns| columns.parse().ok()).unwrap_or(1);
    let mut left = MOST_PICTURE_BYTES;
    let mut found = Vec::new();
    for Grid { step, png } in run.grids(MOST_GRIDS)? {
        let title = match step {
            Some(step) => format!("After step {}.", thousands(step)),
            None => "After the last step.".to_string(),
        };
        if step.is_some() {
            let Some(rest) = left.checked_sub(png.len()) else { continue };
            left = rest;
        }
        let rows = if step.is_none() { run.facts.rows.clone() } else { Vec::new() };
        let is_beside = rows.iter().all(|row| row.chars().count() <= 14);
        found.push(Picture { rows, is_beside, ..picture(title, &png, columns, true) });
    }
    Ok(found)
}

/// Returns whether larger values of a quantity are better, or `None` if it says neither.
fn is_more_better(meaning: &str) -> Option<bool> {
    match (meaning.contains("higher is better"), meaning.contains("lower is better")) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

fn row(name: &str, meaning: &str, values: &[Option<f64>], format: &dyn Fn(f64) -> String) -> Row {
    let finite = values.iter().flatten().copied().filter(|value| value.is_finite());
    let best = is_more_better(meaning).and_then(|more| finite.reduce(if more { f64::max } else { f64::min }));
    let is_contest = values.iter().flatten().any(|value| Some(*value) != best);
    let cell = |value: &Option<f64>| Cell {
        text: value.map_or("—".to_string(), format),
        is_best: is_contest && value.is_some() && *value == best,
    };
    Row { name: name.replace('_', " "), meaning: meaning.to_string(), cells: values.iter().map(cell).collect() }
}

fn results(runs: &[Record]) -> Table {
    let mut rows = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for measured in runs.iter().flat_map(|run| &run.measured) {
        if !names.contains(&measured.name.as_str()) {
            names.push(&measured.name);
        }
    }
    for name in names {
        let of = |run: &Record| run.measured.iter().find(|measured| measured.name == name).cloned();
        let all: Vec<_> = runs.iter().map(of).collect();
        let meaning = all.iter().flatten().map(|m| m.meaning.clone()).next().unwrap_or_default();
        let values: Vec<Option<f64>> = all.iter().map(|m| m.as_ref().map(|m| m.value)).collect();
        rows.push(row(name, &meaning, &values, &value));
    }
    type Format = fn(f64) -> String;
    let kinds: [(&str, &str, Format); 6] = [
        ("NFE", "network evaluations per image, lower is better", value),
        ("images per second", "sampling speed on the machine of the run, higher is better", value),
        ("step time", "median over the logged intervals, lower is better", duration),
        ("training time", "sum over the logged intervals", duration),
        ("peak memory", "of the process: training and sampling, lower is better", bytes),
        ("parameters", "of the network", value),
    ];
    for (i, (name, meaning, format)) in kinds.into_iter().enumerate() {
        let values: Vec<Option<f64>> = runs.iter().map(|run| costs(run)[i].1).collect();
        if values.iter().any(Option::is_some) {
            rows.push(row(name, meaning, &values, &format));
        }
    }
    Table { head: runs.iter().map(|run| run.name.clone()).collect(), rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn text_from_files_stays_text() {
        let folder = tempfile::tempdir().unwrap();
        let hostile = "<script>alert('1')</script>\"&";
        let mut paths = Vec::new();
        for (name, seed) in [("a&<b>", 0), ("c", 1)] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            let document =
                json!({ "about": hostile, "train": { "steps": 1, "batch_size": 4, "seed": seed, "x": hostile } });
            fs::write(path.join("document.json"), document.to_string()).unwrap();
            let line = json!({ "step": 1, "loss": 0.5, hostile: 2.0 });
            fs::write(path.join("metrics.jsonl"), format!("{line}\n")).unwrap();
            let facts = json!({ "rows": [hostile], "notes": [hostile], "meanings": { hostile: hostile } });
            fs::write(path.join("report.json"), json!({ "nfe": 4, hostile: 7.5, "run": facts }).to_string()).unwrap();
            fs::write(path.join("samples.png"), "not a picture").unwrap();
            paths.push(path);
        }
        for count in [1, 2] {
            let page = Content::read(&paths[..count]).unwrap().html().unwrap();
            assert!(!page.contains("<script") && !page.contains("a&<b>"), "{page}");
            assert!(page.contains("&lt;script&gt;") && page.contains("a&amp;&lt;b&gt;"));
        }
    }

    #[test]
    fn the_best_value_of_a_row_is_marked_unless_all_are_equal() {
        let best = |meaning: &str, values: &[Option<f64>]| -> Vec<bool> {
            row("x", meaning, values, &value).cells.iter().map(|cell| cell.is_best).collect()
        };
        assert_eq!(best("higher is better", &[Some(1.0), None, Some(3.0)]), [false, false, true]);
        assert_eq!(best("lower is better", &[Some(1.0), Some(1.0), Some(3.0)]), [true, true, false]);
        assert_eq!(best("lower is better", &[Some(f64::NAN), Some(1.0)]), [false, true]);
        assert_eq!(best("lower is better", &[Some(1.0), Some(1.0)]), [false, false]);
        assert_eq!(best("lower is better", &[Some(1.0), None]), [false, false]);
        assert_eq!(best("a number", &[Some(1.0), Some(2.0)]), [false, false]);
    }
}

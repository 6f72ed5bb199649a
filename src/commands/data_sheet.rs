//! Opens the data of a document: counts, classes, what is skipped and why, and a contact sheet of what the network
//! receives.

use crate::console;
use framework::burn::tensor::Device;
use framework::data::dataset::{Dataset, DatasetInfo, ItemKind, Label};
use framework::data::loader::{Batch, Order, readable_or_none, spread};
use framework::error::{Error, Problem, Result};
use framework::evaluation::images::Images;
use framework::pipeline::Pipeline;
use framework::pipeline::captions::Encodable;
use framework::random::Random;
use run_folder::{opened, picture};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Items that are decoded to find unreadable ones.
const DECODED: usize = 10_000;
/// Items whose label is counted.
const COUNTED: usize = 1_000_000;
/// Items per read.
const PIECE: usize = 64;
/// Unreadable items that are named.
const NAMED: usize = 10;
/// Classes that are listed.
const LISTED: usize = 40;
/// Width of the contact sheet, in pixels, that large images are arranged in.
const WIDTH: usize = 1400;

/// What the data of a document contain.
#[derive(Debug)]
pub struct Found {
    info: DatasetInfo,
    items: usize,
    /// Name and number of items of each class.
    classes: Vec<(String, usize)>,
    /// Items whose label was counted.
    counted: usize,
    /// Entries that were left out on opening, and captions that are changed or refused.
    warnings: Vec<String>,
    /// What was changed in the items.
    notes: Vec<String>,
    /// Items that were decoded, and the errors of those that failed.
    decoded: usize,
    unreadable: Vec<String>,
    sheet: PathBuf,
    shown: usize,
}

/// Opens the data of a pipeline, reads them, and writes the contact sheet.
///
/// # Errors
/// If the data cannot be opened, do not fit the other parts, or no item can be read.
pub fn open(mut pipeline: Pipeline, sheet: &Path) -> Result<(Pipeline, Found)> {
    let device = Device::flex();
    let dataset = pipeline.open_data()?;
    let info = dataset.info();
    opened::check(&pipeline, &dataset)?;
    // A conditioner checks the captions, and a tokenizer decodes latents to show them.
    if pipeline.conditioner.is_some() || !matches!(info.items, ItemKind::Images(_)) {
        pipeline.load(&device)?;
    }
    let pipeline = Arc::new(pipeline);
    let dataset = Encodable::new(dataset, pipeline.clone());
    let mut warnings = dataset.warnings();
    warnings.extend(dataset.survey());
    let (classes, counted) = classes(&dataset);
    let tried = spread(dataset.len(), DECODED);
    let mut unreadable = Vec::new();
    for indices in tried.chunks(PIECE) {
        unreadable.extend(readable_or_none(&dataset, indices).skipped.into_iter().map(|item| item.error));
    }
    if unreadable.len() == tried.len() {
        let what = format!("none of {} items can be read: {}", tried.len(), unreadable[0]);
        return Err(Problem::new("/data", what).into());
    }
    let shown = write_sheet(&pipeline, &dataset, &device, sheet)?;
    let notes = dataset.notes();
    let (items, decoded, sheet) = (dataset.len(), tried.len(), sheet.to_path_buf());
    drop(dataset);
    let pipeline = Arc::try_unwrap(pipeline).map_err(|_| Error::Run("the data are still in use".to_string()))?;
    Ok((pipeline, Found { info, items, classes, counted, warnings, notes, decoded, unreadable, sheet, shown }))
}

/// Counts the items of each class. Returns the classes in order, and the number of counted items.
fn classes(dataset: &dyn Dataset) -> (Vec<(String, usize)>, usize) {
    let Some(count) = dataset.info().num_classes else { return (Vec::new(), 0) };
    let names = dataset.class_names();
    let indices = spread(dataset.len(), COUNTED);
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for index in &indices {
        if let Ok(Label::Class(class)) = dataset.label(*index) {
            *counts.entry(class).or_default() += 1;
        }
    }
    let name = |class: usize| match names.as_ref().and_then(|names| names.get(class)) {
        Some(name) => name.clone(),
        None => format!("class {class}"),
    };
    let all = (0..count).map(|class| (name(class), counts.get(&class).copied().unwrap_or_default()));
    (all.collect(), indices.len())
}

/// Writes the first items of the training, as the network receives them. Returns their number.
fn write_sheet(pipeline: &Pipeline, dataset: &dyn Dataset, device: &Device, path: &Path) -> Result<usize> {
    let (info, shape) = (dataset.info(), pipeline.image_shape());
    let columns = (WIDTH / (shape[2].max(112) + 4)).clamp(2, 8);
    let random = Random::new(pipeline.train.seed);
    let places = Order::new(random, dataset.len()).batch(dataset.len().min(4 * columns), 0);
    let mut images = Images::none(shape);
    for (index, epoch) in places {
        // The sheet shows neither an unreadable item nor its replacement.
        let Ok(item) = dataset.get(index, &random, epoch) else { continue };
        let values = match info.items {
            ItemKind::Images(_) => item.values,
            ItemKind::Latents { .. } | ItemKind::Tokens(_) => {
                let batch = Batch { values: item.values, labels: vec![item.label.clone()], skipped: Vec::new() };
                let decoded = pipeline.decode(pipeline.latents(&batch, &info, device)?, shape)?;
                decoded.try_into_vec_as::<f32>().map_err(|e| Error::Run(format!("{e:?}")))?
            }
        };
        images.extend(values, &[item.label]);
    }
    if images.is_empty() {
        return Err(Problem::new("/data", "none of the first items of the training can be read").into());
    }
    let names = dataset.class_names();
    let labels: Vec<_> = (0..images.len()).map(|i| picture::label(&images, i, names.as_deref())).collect();
    picture::save(&picture::sheet(&images, columns, &labels), path)?;
    Ok(images.len())
}

impl Found {
    /// Returns the findings as lines for the terminal.
    pub fn lines(&self) -> Vec<String> {
        let what = match (&self.info.num_classes, self.info.captions) {
            (Some(count), _) => format!("in {count} classes"),
            (None, true) => "with captions".to_string(),
            (None, false) => "without classes or captions".to_string(),
        };
        let mut lines = vec![format!("data         {} items {what}", self.items)];
        let mut more = |line: String| lines.push(format!("             {line}"));
        if self.counted < self.items && !self.classes.is_empty() {
            more(format!("{} of the items, evenly spread, are counted by class:", self.counted));
        }
        for (name, count) in self.classes.iter().take(LISTED) {
            more(format!("{count:>8} {name}"));
        }
        if self.classes.len() > LISTED {
            more(format!("and {} more classes", self.classes.len() - LISTED));
        }
        for line in self.warnings.iter().chain(&self.notes) {
            more(line.clone());
        }
        let tried = match self.decoded < self.items {
            true => format!("{} items, evenly spread", self.decoded),
            false => "all items".to_string(),
        };
        more(match self.unreadable.len() {
            0 => format!("{tried} can be read"),
            count => format!("of {tried}, {count} cannot be read:"),
        });
        for error in self.unreadable.iter().take(if console::is_verbose() { usize::MAX } else { NAMED }) {
            more(format!("  {error}"));
        }
        lines.push(format!(
            "sheet        {}: the first {} items of the training, as the network receives them",
            self.sheet.display(),
            self.shown
        ));
        lines
    }

    /// Returns the findings as JSON.
    pub fn as_json(&self) -> Value {
        let classes = self.classes.iter().map(|(name, count)| json!({ "name": name, "items": count }));
        json!({
            "items": self.items,
            "captions": self.info.captions,
            "classes": classes.collect::<Vec<_>>(),
            "warnings": self.warnings,
            "notes": self.notes,
            "decoded": self.decoded,
            "unreadable": self.unreadable,
            "sheet": self.sheet.display().to_string(),
        })
    }
}

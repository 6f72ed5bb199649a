//! How far a training is: its logged curves, its sample grids, and the time left.

use crate::catalog::Run;
use crate::limits::MOST_POINTS;
use framework::data::loader::spread;
use framework::error::{Error, Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// Least time without a new line after which a training counts as stopped.
const SILENCE: Duration = Duration::from_secs(20);

/// State of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A line was logged recently.
    Training,
    /// All steps are done.
    Done,
    /// Steps are left, and no line was logged recently.
    Stopped,
    /// Not a run folder, or nothing was logged.
    None,
}

/// Progress of a run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Progress {
    /// State of the training.
    pub state: State,
    /// Last logged step.
    pub step: usize,
    /// Number of steps.
    pub steps: usize,
    /// Estimated time left in seconds, while training.
    pub seconds_left: Option<f64>,
    /// Age of the last logged line in seconds.
    pub seconds_since: Option<f64>,
    /// Logged lines, evenly thinned out to at most 600; each has `step`, `loss` and more.
    pub lines: Vec<Map<String, Value>>,
    /// Steps of the sample grids, oldest first.
    pub samples: Vec<usize>,
}

/// The lines of one file that were read so far.
#[derive(Default)]
struct Known {
    bytes: u64,
    lines: Vec<Map<String, Value>>,
}

/// The lines of all files that were read so far, so that a request reads only what is new.
#[derive(Default)]
pub struct Metrics(Mutex<BTreeMap<PathBuf, Known>>);

impl Metrics {
    fn lines(&self, path: &Path) -> Result<Vec<Map<String, Value>>> {
        let mut known = self.0.lock().expect("no code panics while it holds the lines");
        let known = known.entry(path.to_path_buf()).or_default();
        let failed = |e| Error::io(path, e);
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.map_err(failed)?,
        };
        let length = file.metadata().map_err(failed)?.len();
        if length < known.bytes {
            // A run that resumes drops the lines after its checkpoint.
            *known = Known::default();
        }
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(known.bytes)).map_err(failed)?;
        file.take(64 << 20).read_to_end(&mut text).map_err(failed)?;
        // The last line may be half written.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        known.bytes += whole as u64;
        let lines = String::from_utf8_lossy(&text[..whole]).into_owned();
        for line in lines.lines().filter_map(|line| serde_json::from_str::<Map<String, Value>>(line).ok()) {
            known.lines.push(line);
        }
        if known.lines.len() > 100 * MOST_POINTS {
            known.lines = thinned(&known.lines, 50 * MOST_POINTS);
        }
        Ok(known.lines.clone())
    }

    /// Returns the progress of a run.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn progress(&self, run: &Run) -> Result<Progress> {
        let none = Progress {
            state: State::None,
            step: 0,
            steps: 0,
            seconds_left: None,
            seconds_since: None,
            lines: Vec::new(),
            samples: Vec::new(),
        };
        let Some(folder) = run.folder() else { return Ok(none) };
        let document = fs::read_to_string(folder.path.join("document.json")).unwrap_or_default();
        let document: Value = serde_json::from_str(&document).unwrap_or_default();
        let number = |field: &str| document["train"][field].as_u64().unwrap_or(1) as usize;
        let (path, steps) = (folder.metrics(), number("steps"));
        let lines = self.lines(&path)?;
        let samples = sample_steps(&folder.samples());
        let Some(last) = lines.last() else { return Ok(Progress { steps, samples, ..none }) };
        let of = |line: &Map<String, Value>, name: &str| line.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let (step, speed) = (of(last, "step") as usize, of(last, "images_per_second"));
        let changed = path.metadata().and_then(|metadata| metadata.modified()).map_err(|e| Error::io(&path, e))?;
        let since = SystemTime::now().duration_since(changed).unwrap_or_default();
        let images = (number("batch_size") * number("accumulate")) as f64;
        let before = lines.iter().rev().nth(1).map_or(0.0, |line| of(line, "step"));
        let usual = (step as f64 - before).max(1.0) * images / speed.max(1e-9);
        let state = match step >= steps {
            true => State::Done,
            false if since.as_secs_f64() < SILENCE.as_secs_f64().max(4.0 * usual) => State::Training,
            false => State::Stopped,
        };
        let left = steps.saturating_sub(step) as f64 * images / speed - since.as_secs_f64();
        Ok(Progress {
            state,
            step,
            steps,
            seconds_left: Some(left.max(0.0)).filter(|left| state == State::Training && left.is_finite()),
            seconds_since: Some(since.as_secs_f64()),
            lines: thinned(&lines, MOST_POINTS),
            samples,
        })
    }
}

fn thinned(lines: &[Map<String, Value>], most: usize) -> Vec<Map<String, Value>> {
    let mut kept: Vec<_> = spread(lines.len(), most).into_iter().map(|index| lines[index].clone()).collect();
    if let (true, Some(last)) = (kept.len() < lines.len(), lines.last()) {
        kept.push(last.clone());
    }
    kept
}

/// Returns the steps of the sample grids in a folder, sorted.
fn sample_steps(folder: &Path) -> Vec<usize> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let step = |name: &str| name.strip_prefix("step-")?.strip_suffix(".png")?.parse().ok();
    let mut steps: Vec<usize> = names.filter_map(|name| step(name.to_str()?)).collect();
    steps.sort_unstable();
    steps
}

/// Returns the sample grid of a step as PNG, or `None` if the run has none.
pub fn sample_grid(run: &Run, step: usize) -> Option<Vec<u8>> {
    let folder = run.folder()?.samples();
    sample_steps(&folder).contains(&step).then(|| fs::read(folder.join(format!("step-{step:09}.png"))).ok())?
}

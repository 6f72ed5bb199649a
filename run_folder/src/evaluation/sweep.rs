//! Sweeps: the values of each setting, their grid, and the files of the results.

use crate::evaluation::evaluate::{Evaluation, Times};
use crate::evaluation::store::save;
use framework::checkpoint::tensor_file::write_atomically;
use framework::error::{Error, Problem, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Largest number of points of a grid.
const MOST_POINTS: usize = 10_000;

/// Parts of a document that samples depend on.
const SWEPT: [&str; 4] = ["/sampler", "/guidance", "/tokenizer", "/conditioner"];

/// One setting with its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// `scale`, or a JSON pointer.
    pub setting: String,
    /// Values in order.
    pub values: Vec<Value>,
}

/// One point of the grid: settings with their values.
pub type Point = Vec<(String, Value)>;

impl Axis {
    /// Parses `scale=1:4:0.25` (first, last, step), or `/sampler/steps=10,20,50`.
    ///
    /// # Errors
    /// If the text has another form, or the setting does not change samples.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |what: String| {
            Problem::new("--sweep", what)
                .accepts("SETTING=FIRST:LAST:STEP, or SETTING=VALUE,VALUE,..; SETTING is scale or a JSON pointer")
        };
        let Some((setting, values)) = text.split_once('=').filter(|(_, values)| !values.is_empty()) else {
            return Err(refuse(format!("\"{text}\" names no values")).fix("--sweep scale=1:4:0.25").into());
        };
        let below =
            |root: &str| setting.strip_prefix(root).is_some_and(|rest| rest.starts_with('/') || rest.is_empty());
        if setting != "scale" && !SWEPT.into_iter().any(below) {
            let what = format!("\"{setting}\" does not change the samples of a trained network");
            return Err(refuse(what).accepts(format!("scale, or a pointer into {}", SWEPT.join(", "))).into());
        }
        let values = match serde_json::from_str(&format!("[{values}]")) {
            Ok(values) => values,
            // Not a list of JSON values: a range, or words without quotation marks.
            Err(_) => match values.split(':').collect::<Vec<_>>()[..] {
                [first, last, step] => range(first, last, step).map_err(|what| Error::from(refuse(what)))?,
                _ => values.split(',').map(Value::from).collect(),
            },
        };
        if setting == "scale" && values.iter().any(|value| !value.is_number()) {
            return Err(refuse(format!("\"{text}\" has a scale that is not a number")).into());
        }
        Ok(Self { setting: setting.to_string(), values })
    }
}

/// Returns the values `first`, `first + step`, .. up to `last`.
fn range(first: &str, last: &str, step: &str) -> Result<Vec<Value>, String> {
    let number = |text: &str| {
        let parsed: Option<f64> = text.parse().ok().filter(|value: &f64| value.is_finite());
        parsed.ok_or_else(|| format!("\"{text}\" is not a number"))
    };
    let is_integer = [first, last, step].iter().all(|text| text.parse::<i64>().is_ok());
    let (first, last, step) = (number(first)?, number(last)?, number(step)?);
    if step <= 0.0 || last < first {
        return Err(format!("the range {first}:{last}:{step} is empty"));
    }
    // A rounded step may miss the last value by a little.
    let count = ((last - first) / step + 1e-9).floor() + 1.0;
    if count > MOST_POINTS as f64 {
        return Err(format!("the range {first}:{last}:{step} has more than {MOST_POINTS} values"));
    }
    let value = |i: usize| {
        // Rounds away the error of the product: 1 + 3 * 0.1 is 1.3.
        let value: f64 = format!("{:.9}", first + i as f64 * step).parse().expect("a number");
        if is_integer { json!(value as i64) } else { json!(value) }
    };
    Ok((0..count as usize).map(value).collect())
}

/// Returns all combinations of values. The last axis changes fastest.
///
/// # Errors
/// If there are too many, or two axes have one setting.
pub fn grid(axes: &[Axis]) -> Result<Vec<Point>> {
    let count = axes.iter().fold(1_usize, |count, axis| count.saturating_mul(axis.values.len()));
    if count > MOST_POINTS {
        return Err(Problem::new("--sweep", format!("the grid has {count} points"))
            .accepts(format!("at most {MOST_POINTS} points"))
            .into());
    }
    for (i, axis) in axes.iter().enumerate() {
        if axes[..i].iter().any(|other| pointer(&other.setting) == pointer(&axis.setting)) {
            return Err(Problem::new("--sweep", format!("{} is swept twice", axis.setting))
                .fix("give all its values in one --sweep")
                .into());
        }
    }
    let mut points: Vec<Point> = vec![Vec::new()];
    for axis in axes {
        let extended = |point: &Point| {
            let with = |value: &Value| [&point[..], &[(axis.setting.clone(), value.clone())]].concat();
            axis.values.iter().map(with).collect::<Vec<Point>>()
        };
        points = points.iter().flat_map(extended).collect();
    }
    Ok(points)
}

/// Returns the JSON pointer of a setting.
fn pointer(setting: &str) -> &str {
    if setting == "scale" { "/guidance/scale" } else { setting }
}

/// Returns the override of a document, `/POINTER=VALUE`, for each setting of a point.
pub fn overrides(point: &Point) -> Vec<String> {
    point.iter().map(|(setting, value)| format!("{}={value}", pointer(setting))).collect()
}

/// Returns the settings of a point in one line: `scale=1.5 /sampler/steps=10`.
pub fn label(point: &Point) -> String {
    let text = |(setting, value): &(String, Value)| match value {
        Value::String(text) => format!("{setting}={text}"),
        value => format!("{setting}={value}"),
    };
    point.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// One point with its results, as `sweep.json` stores it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Value at each swept JSON pointer.
    pub settings: Map<String, Value>,
    /// Folder of the point, relative to the folder of the sweep.
    pub folder: String,
    /// Results by name; null if a value is not a finite number.
    pub metrics: Map<String, Value>,
    /// Network evaluations per image.
    pub evaluations: Option<usize>,
    /// Measured duration of sampling per image, in seconds.
    pub seconds_per_image: Option<f64>,
    /// Measured number of images sampled per second.
    pub images_per_second: Option<f64>,
}

impl Measured {
    /// Collects the results of a point.
    pub fn new(point: &Point, folder: &str, evaluation: &Evaluation, times: &Times) -> Self {
        let setting = |(setting, value): &(String, Value)| (pointer(setting).to_string(), value.clone());
        Self {
            settings: point.iter().map(setting).collect(),
            folder: folder.to_string(),
            metrics: evaluation.metrics.iter().map(|m| (m.name.clone(), json!(m.value))).collect(),
            evaluations: evaluation.nfe,
            seconds_per_image: times.seconds_per_image,
            images_per_second: times.images_per_second,
        }
    }
}

/// Writes `sweep.json` and `sweep.csv`. Except for the measured times, they have the same bytes for the same request.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, request: &Value, points: &[Measured]) -> Result<()> {
    save(&folder.join("sweep.json"), &json!({ "version": 1, "points": points, "request": request }))?;
    let mut metrics: Vec<&String> = Vec::new();
    for name in points.iter().flat_map(|point| point.metrics.keys()) {
        if !metrics.contains(&name) {
            metrics.push(name);
        }
    }
    let path = folder.join("sweep.csv");
    let failed = |e: csv::Error| Error::file(&path, e.to_string());
    let mut table = csv::Writer::from_writer(Vec::new());
    let settings: Vec<&String> = points.first().map(|point| point.settings.keys().collect()).unwrap_or_default();
    let costs = ["evaluations", "seconds_per_image", "images_per_second"];
    let header = settings.iter().chain(&metrics).map(|name| name.as_str()).chain(costs);
    table.write_record(header).map_err(failed)?;
    for point in points {
        let cell = |value: Option<&Value>| match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        let values = settings.iter().map(|name| cell(point.settings.get(*name)));
        let results = metrics.iter().map(|name| cell(point.metrics.get(*name)));
        let evaluations = point.evaluations.map_or(String::new(), |count| count.to_string());
        let costs = [evaluations, number(point.seconds_per_image), number(point.images_per_second)];
        table.write_record(values.chain(results).chain(costs)).map_err(failed)?;
    }
    let bytes = table.into_inner().map_err(|e| Error::file(&path, e.to_string()))?;
    write_atomically(&path, [bytes.as_slice()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<Value> {
        Axis::parse(text).unwrap().values
    }

    #[test]
    fn ranges_and_lists_have_their_values() {
        assert_eq!(values("scale=1:2:0.25"), [json!(1.0), json!(1.25), json!(1.5), json!(1.75), json!(2.0)]);
        assert_eq!(values("scale=1:1.3:0.1"), [json!(1.0), json!(1.1), json!(1.2), json!(1.3)]);
        assert_eq!(values("/sampler/steps=2:6:2"), [json!(2), json!(4), json!(6)]);
        assert_eq!(values("/sampler/steps=10,20"), [json!(10), json!(20)]);
        assert_eq!(values("/guidance/type=cfg,none"), [json!("cfg"), json!("none")]);
        assert_eq!(values("scale=3"), [json!(3)]);
        assert_eq!(values("/guidance={\"type\":\"cfg\",\"scale\":2},{\"type\":\"none\"}").len(), 2);
    }

    #[test]
    fn wrong_sweeps_are_refused() {
        for (text, says) in [
            ("scale", "names no values"),
            ("scale=", "names no values"),
            ("scale=a", "not a number"),
            ("scale=1:b:1", "\"b\" is not a number"),
            ("scale=3:1:1", "is empty"),
            ("scale=1:3:0", "is empty"),
            ("scale=1:3:1e-9", "more than 10000 values"),
            ("/train/steps=1,2", "does not change the samples"),
            ("/samplers/x=1", "does not change the samples"),
            ("scales=1", "does not change the samples"),
        ] {
            let error = Axis::parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
        let axes = ["scale=1,2", "/guidance/scale=3"].map(|text| Axis::parse(text).unwrap());
        assert!(grid(&axes).unwrap_err().to_string().contains("is swept twice"));
        let axes = ["scale=1:1000:1", "/sampler/steps=1:1000:1"].map(|text| Axis::parse(text).unwrap());
        assert!(grid(&axes).unwrap_err().to_string().contains("the grid has 1000000 points"));
    }

    #[test]
    fn a_grid_has_every_combination_once() {
        let axes = ["scale=1,2", "/sampler/steps=10,20,50"].map(|text| Axis::parse(text).unwrap());
        let points = grid(&axes).unwrap();
        assert_eq!(points.len(), 6);
        assert_eq!(label(&points[0]), "scale=1 /sampler/steps=10");
        assert_eq!(label(&points[1]), "scale=1 /sampler/steps=20");
        assert_eq!(overrides(&points[5]), ["/guidance/scale=2", "/sampler/steps=50"]);
    }
}

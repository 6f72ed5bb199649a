//! Sweeps: measurements of one network at several settings, from `sweep.json` of their folder.

use crate::page::record::json;
use framework::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The file in the folder of a sweep.
pub const FILE: &str = "sweep.json";

/// Content of `sweep.json`. Unknown keys are ignored, so that a sweep may state more about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sweep {
    /// Name of the sweep on the page: that of its folder. Not in the file.
    #[serde(skip_deserializing)]
    pub name: String,
    /// The measured settings, in order.
    pub points: Vec<Point>,
}

/// One point of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    /// Value at each swept JSON pointer.
    pub settings: Map<String, Value>,
    /// Result of each metric, by name; null = the metric failed.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// Network evaluations per image.
    pub evaluations: Option<f64>,
    /// Sampling time per image, in seconds.
    pub seconds_per_image: Option<f64>,
}

impl Point {
    /// Returns the settings as one text, such as `scale 2`: the last part of each pointer, and its value.
    pub fn label(&self) -> String {
        let one = |(pointer, value): (&String, &Value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), String::from);
            format!("{} {value}", pointer.rsplit('/').next().unwrap_or_default())
        };
        self.settings.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// Returns a metric's result.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.get(name).copied().flatten()
    }
}

impl Sweep {
    /// Reads the sweep in `folder`; `None` if the folder contains no sweep.
    ///
    /// # Errors
    /// If the file cannot be read or has another shape.
    pub fn read(folder: &Path, name: &str) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let Some(value) = json(&path)? else { return Ok(None) };
        let sweep: Self =
            serde_json::from_value(value).map_err(|e| Error::file(&path, format!("not the points of a sweep: {e}")))?;
        Ok(Some(Self { name: name.to_string(), ..sweep }))
    }

    /// Returns the only setting that varies and is a number, if there is exactly one.
    pub fn varied(&self) -> Option<&str> {
        let first = self.points.first()?;
        let mut varied = first.settings.keys().filter(|pointer| {
            self.points.iter().any(|point| point.settings.get(*pointer) != first.settings.get(*pointer))
        });
        let only = varied.next().filter(|_| varied.next().is_none())?;
        self.points.iter().all(|point| point.settings.get(only).is_some_and(Value::is_number)).then_some(only)
    }
}

/// Pairs of metrics that trade off against each other, by the beginnings of their names: x, then y.
const TRADE_OFFS: [(&str, &str); 5] = [
    ("fid", "inception_score"),
    ("recall", "precision"),
    ("coverage", "density"),
    ("frechet", "class_accuracy"),
    ("frechet", "caption_accuracy"),
];

/// Returns the pairs of metrics (x, y) of these sweeps that trade off against each other.
pub fn trade_offs(sweeps: &[Sweep]) -> Vec<(String, String)> {
    let mut names: Vec<&String> = sweeps.iter().flat_map(|s| &s.points).flat_map(|p| p.metrics.keys()).collect();
    names.sort();
    names.dedup();
    let find = |start: &str| {
        // A measurement on real images is not a property of the samples.
        names.iter().find(|name| name.starts_with(start) && !name.ends_with("_of_real")).map(|name| name.to_string())
    };
    TRADE_OFFS.iter().filter_map(|(x, y)| Some((find(x)?, find(y)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_read_with_more_keys_and_without_failed_metrics() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Sweep::read(folder.path(), "s").unwrap(), None);
        let text = r#"{ "document": "x", "points": [
            { "settings": { "/guidance/scale": 1.0, "/sampler/type": "ddim" }, "metrics": { "fid": 9.5, "inception_score": 2 },
              "evaluations": 20, "seconds_per_image": 0.1 },
            { "settings": { "/guidance/scale": 2.0, "/sampler/type": "ddim" }, "metrics": { "fid": null } }] }"#;
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let sweep = Sweep::read(folder.path(), "s").unwrap().unwrap();
        assert_eq!((sweep.points.len(), sweep.varied()), (2, Some("/guidance/scale")));
        assert_eq!(sweep.points[0].label(), "scale 1.0, type ddim");
        assert_eq!((sweep.points[0].metric("fid"), sweep.points[1].metric("fid")), (Some(9.5), None));
        assert_eq!(trade_offs(&[sweep]), [("fid".to_string(), "inception_score".to_string())]);
        std::fs::write(folder.path().join(FILE), r#"{ "points": 3 }"#).unwrap();
        assert!(Sweep::read(folder.path(), "s").unwrap_err().to_string().contains("not the points of a sweep"));
    }
}

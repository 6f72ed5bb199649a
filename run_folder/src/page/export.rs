//! The content of a page for programs: as JSON, and as CSV in long form.

use crate::page::content::Content;
use crate::page::record::Record;
use framework::checkpoint::tensor_file::write_atomically;
use framework::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The costs of a run, by name; `None` if unknown.
pub(crate) fn costs(run: &Record) -> [(&'static str, Option<f64>); 6] {
    [
        ("nfe", run.nfe),
        ("images_per_second", run.images_per_second),
        ("seconds_per_step", run.seconds_per_step),
        ("training_seconds", (run.seconds > 0.0).then_some(run.seconds)),
        ("peak_memory_bytes", run.facts.peak_memory.map(|bytes| bytes as f64)),
        ("parameters", run.facts.parameters.map(|count| count as f64)),
    ]
}

impl Content {
    /// Returns the content as JSON: `runs` (name, path, state, document, costs, metrics, curves), `sweeps`,
    /// `differences` and `notes`.
    pub fn json(&self) -> Value {
        let run = |run: &Record| {
            let metrics: Map<String, Value> = run.measured.iter().map(|m| (m.name.clone(), json!(m.value))).collect();
            let costs: Map<String, Value> =
                costs(run).into_iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
            json!({
                "name": run.name,
                "path": run.path,
                "finished": run.is_finished,
                "step": run.step,
                "steps": run.steps(),
                "environment": run.facts.environment,
                "costs": costs,
                "metrics": metrics,
                "samples": run.samples,
                "curves": run.curves,
                "document": run.document,
            })
        };
        json!({
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
            "sweeps": self.sweeps,
            "differences": self.differences,
            "notes": self.notes,
        })
    }

    /// Writes the content as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        write_atomically(path, [format!("{:#}\n", self.json()).as_bytes()])
    }

    /// Writes the content as CSV in long form, one value per line. `kind` is `cost`, `metric`, `curve`, `sweep` or
    /// `difference`; a column that does not apply is empty.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_csv(&self, path: &Path) -> Result<()> {
        let failed = |e: csv::Error| Error::file(path, format!("cannot write the table: {e}"));
        let mut table = csv::Writer::from_writer(Vec::new());
        let mut row = |fields: [&str; 8]| table.write_record(fields).map_err(failed);
        row(["run", "kind", "name", "step", "seconds", "images", "setting", "value"])?;
        for run in &self.runs {
            for (name, value) in costs(run) {
                if let Some(value) = value {
                    row([&run.name, "cost", name, "", "", "", "", &value.to_string()])?;
                }
            }
            for measured in &run.measured {
                row([&run.name, "metric", &measured.name, "", "", "", "", &measured.value.to_string()])?;
            }
            for curve in &run.curves {
                for point in &curve.points {
                    let [step, seconds, images, value] =
                        [point.step, point.seconds, point.images, point.value].map(|v| v.to_string());
                    row([&run.name, "curve", &curve.name, &step, &seconds, &images, "", &value])?;
                }
            }
        }
        for sweep in &self.sweeps {
            for point in &sweep.points {
                let setting = Value::Object(point.settings.clone()).to_string();
                let costs = [("nfe", point.evaluations), ("seconds_per_image", point.seconds_per_image)];
                let metrics = point.metrics.iter().map(|(name, value)| (name.as_str(), *value));
                for (name, value) in costs.into_iter().chain(metrics) {
                    if let Some(value) = value {
                        row([&sweep.name, "sweep", name, "", "", "", &setting, &value.to_string()])?;
                    }
                }
            }
        }
        for difference in &self.differences {
            for (run, value) in self.runs.iter().zip(&difference.values) {
                let value = value.as_deref().unwrap_or_default();
                row([&run.name, "difference", &difference.pointer, "", "", "", "", value])?;
            }
        }
        let bytes = table.into_inner().map_err(|e| Error::file(path, format!("cannot write the table: {e}")))?;
        write_atomically(path, [bytes.as_slice()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::sweep::{Point, Sweep};
    use std::fs;

    #[test]
    fn json_and_csv_hold_the_same_values() {
        let folder = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for (name, seed) in [("a", 0), ("b, \"quoted\"", 1)] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            let document = json!({ "train": { "steps": 10, "batch_size": 4, "seed": seed } });
            fs::write(path.join("document.json"), document.to_string()).unwrap();
            fs::write(path.join("metrics.jsonl"), "{\"step\":10,\"loss\":0.5,\"images_per_second\":8.0}\n").unwrap();
            let report = json!({ "nfe": 4, "samples": 20, "fid": 7.5, "run": { "peak_memory": 1024 } });
            fs::write(path.join("report.json"), report.to_string()).unwrap();
            paths.push(path);
        }
        let mut content = Content::read(&paths).unwrap();
        let settings = json!({ "/guidance/scale": 2.0 }).as_object().unwrap().clone();
        let metrics = [("fid".to_string(), Some(3.0)), ("kid".to_string(), None)].into();
        let point = Point { settings, metrics, evaluations: Some(8.0), seconds_per_image: None };
        content.sweeps.push(Sweep { name: "s".into(), points: vec![point] });
        let json_path = folder.path().join("x.json");
        content.write_json(&json_path).unwrap();
        let json: Value = serde_json::from_str(&fs::read_to_string(json_path).unwrap()).unwrap();
        assert_eq!(json["runs"][0]["costs"]["seconds_per_step"], json!(0.5));
        assert_eq!(json["runs"][0]["costs"]["peak_memory_bytes"], json!(1024.0));
        assert_eq!(json["runs"][1]["metrics"], json!({ "fid": 7.5 }));
        assert_eq!(
            json["runs"][1]["curves"][0]["points"][0],
            json!({ "step": 10.0, "seconds": 5.0, "images": 40.0, "value": 0.5 })
        );
        assert_eq!(json["differences"], json!([{ "pointer": "/train/seed", "values": ["0", "1"] }]));
        assert_eq!(json["sweeps"][0]["name"], "s");
        let csv_path = folder.path().join("x.csv");
        content.write_csv(&csv_path).unwrap();
        let mut table = csv::Reader::from_path(csv_path).unwrap();
        let rows: Vec<Vec<String>> =
            table.records().map(|row| row.unwrap().iter().map(String::from).collect()).collect();
        let has = |row: [&str; 8]| assert!(rows.iter().any(|found| *found == row), "{row:?} is not in {rows:?}");
        has(["a", "cost", "nfe", "", "", "", "", "4"]);
        has(["b, \"quoted\"", "metric", "fid", "", "", "", "", "7.5"]);
        has(["a", "curve", "loss", "10", "5", "40", "", "0.5"]);
        has(["s", "sweep", "fid", "", "", "", "{\"/guidance/scale\":2.0}", "3"]);
        has(["b, \"quoted\"", "difference", "/train/seed", "", "", "", "", "1"]);
    }
}

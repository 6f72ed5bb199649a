//! Decides which settings bind a run. A setting that changes the trained weights binds it. All other settings may
//! change between two commands.

use framework::pipeline::Pipeline;
use serde_json::Value;

/// Settings that change neither the weights nor their average, and everything below them.
const FREE: [&str; 8] = [
    "/about",
    "/$schema",
    "/train/log_every",
    "/train/save_every",
    "/train/keep_last",
    "/train/keep_best",
    "/train/evaluate_every",
    // The result has the same bits for any number of workers.
    "/train/workers",
];

/// Settings of samples and measurements. They bind a run only if its objective follows measurements.
const MEASURED: [&str; 6] =
    ["/train/sample_every", "/train/sample_columns", "/train/metric_samples", "/metrics", "/sampler", "/guidance"];

/// Keys, anywhere in `/data`, that give the location of the data. The data themselves are compared elsewhere.
const PLACES: [&str; 2] = ["path", "shards"];

const STEPS: &str = "/train/steps";

/// The rule for one objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Whether the objective follows measurements of its own samples.
    pub follows_measurements: bool,
}

/// How two documents of one run differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Pointers of settings that bind the run.
    pub binding: Vec<String>,
    /// Pointers of settings that may change.
    pub free: Vec<String>,
    /// Numbers of steps before and now, if they differ. A checkpoint of more steps than now is refused elsewhere.
    pub steps: Option<(u64, u64)>,
}

impl Binding {
    /// Returns the rule for a pipeline.
    pub fn of(pipeline: &Pipeline) -> Self {
        Self { follows_measurements: pipeline.objective.needs().measurements }
    }

    /// Compares the document that a run began with and the document that it continues with.
    pub fn changes(self, begun: &str, document: &str) -> Changes {
        let parse = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        let (begun, document): (Value, Value) = (parse(begun), parse(document));
        let mut changes = Changes::default();
        for pointer in differences("", &begun, &document) {
            let steps = |document: &Value| document.pointer(STEPS).and_then(Value::as_u64);
            match (steps(&begun), steps(&document)) {
                (Some(before), Some(now)) if pointer == STEPS => {
                    changes.steps = Some((before, now));
                    changes.free.push(pointer);
                }
                _ if self.is_free(&pointer) => changes.free.push(pointer),
                _ => changes.binding.push(pointer),
            }
        }
        changes
    }

    fn is_free(self, pointer: &str) -> bool {
        let below =
            |root: &str| pointer.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let is_place =
            pointer.starts_with("/data/") && pointer.rsplit('/').next().is_some_and(|key| PLACES.contains(&key));
        FREE.iter().any(|root| below(root))
            || is_place
            || !self.follows_measurements && MEASURED.iter().any(|root| below(root))
    }
}

/// Returns the JSON pointers, below `at`, where two documents differ.
pub fn differences(at: &str, a: &Value, b: &Value) -> Vec<String> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            keys.into_iter()
                .flat_map(|key| {
                    let null = Value::Null;
                    differences(&format!("{at}/{key}"), x.get(key).unwrap_or(&null), y.get(key).unwrap_or(&null))
                })
                .collect()
        }
        _ if a == b => Vec::new(),
        _ => vec![at.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Value {
        json!({
            "about": "a", "data": { "type": "mixed", "of": { "path": "x" }, "flip": false },
            "train": { "steps": 3, "seed": 0, "log_every": 1, "sample_every": null, "workers": 1 },
            "sampler": { "type": "ddim", "steps": 2 }, "guidance": { "type": "none" }, "metrics": []
        })
    }

    fn changes(pointer: &str, value: Value, follows_measurements: bool) -> Changes {
        let mut changed = document();
        *changed.pointer_mut(pointer).unwrap() = value;
        Binding { follows_measurements }.changes(&document().to_string(), &changed.to_string())
    }

    #[test]
    fn only_what_changes_the_weights_binds_a_run() {
        for (pointer, value) in [
            ("/about", json!("b")),
            ("/data/of/path", json!("y")),
            ("/train/log_every", json!(2)),
            ("/train/workers", json!(2)),
            ("/train/sample_every", json!(1)),
            ("/sampler/steps", json!(5)),
            ("/guidance/type", json!("cfg")),
            ("/metrics", json!([{ "type": "a" }])),
        ] {
            let found = changes(pointer, value, false);
            assert!(found.binding.is_empty() && found.free == [pointer], "{pointer}: {found:?}");
        }
        for (pointer, value) in [("/train/seed", json!(1)), ("/data/flip", json!(true)), ("/data/type", json!("other"))]
        {
            assert_eq!(changes(pointer, value, false).binding, [pointer]);
        }
        // An objective that follows measurements is bound to what they measure.
        for (pointer, value) in [("/sampler/steps", json!(5)), ("/train/sample_every", json!(1))] {
            assert_eq!(changes(pointer, value, true).binding, [pointer]);
        }
        assert!(changes("/about", json!("b"), true).binding.is_empty());
    }

    #[test]
    fn another_number_of_steps_is_stated() {
        for now in [2, 6] {
            let found = changes("/train/steps", json!(now), false);
            assert_eq!((found.binding.len(), found.steps), (0, Some((3, now))));
        }
    }
}

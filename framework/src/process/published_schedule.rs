//! Compares the settings of a variance-preserving process with a published `scheduler_config.json`, and writes one.

use crate::checkpoint::component::Component;
use crate::checkpoint::published_config::ConfigFile;
use crate::error::Problems;
use crate::process::diffusion::{Betas, VpConfig, VpPrediction};
use serde_json::{Value, json};

impl VpConfig {
    /// Returns the contradictions of these settings to a scheduler configuration of `diffusers`. Pointers are those of
    /// a backbone whose process is at `/process`.
    pub fn contradictions(&self, scheduler: &ConfigFile) -> Problems {
        let mut problems = Problems::new();
        let text = |key: &str| scheduler.get(key).and_then(Value::as_str);
        let class = text("_class_name").unwrap_or_default();
        if class.starts_with("FlowMatch") {
            let says = format!("`_class_name`: \"{class}\", a flow");
            problems.push(scheduler.contradicts(&says, "/process", &json!("a diffusion"), None));
            return problems;
        }
        let own = json!(self.prediction);
        // Configurations from before v-prediction have no entry.
        let theirs = text("prediction_type").or(scheduler.get("beta_schedule").map(|_| "epsilon"));
        if let Some(theirs) = theirs {
            let known =
                [("epsilon", VpPrediction::Eps), ("v_prediction", VpPrediction::V), ("sample", VpPrediction::X)];
            let ours = known.iter().find(|(name, _)| *name == theirs).map(|(_, prediction)| json!(prediction));
            if ours.as_ref() != Some(&own) {
                let says = format!("`prediction_type`: \"{theirs}\"");
                problems.push(scheduler.contradicts(&says, "/process/prediction", &own, ours.as_ref()));
            }
        }
        problems.extend(scheduler.differs("num_train_timesteps", "/process/timesteps", &json!(self.timesteps)));
        problems.extend(self.other_betas(scheduler));
        // A schedule without the entry keeps its terminal signal.
        let zero = scheduler.get("rescale_betas_zero_snr").and_then(Value::as_bool).unwrap_or(false);
        if zero != self.zero_terminal_snr && scheduler.get("beta_schedule").is_some() {
            let says = format!("`rescale_betas_zero_snr`: {zero}");
            let own = json!(self.zero_terminal_snr);
            problems.push(scheduler.contradicts(&says, "/process/zero_terminal_snr", &own, Some(&json!(zero))));
        }
        problems
    }

    /// Returns the scheduler of `diffusers` that samples this process.
    pub fn scheduler(&self) -> Component {
        const CLASS: &str = "DDIMScheduler";
        let stretch = 1000.0 / self.timesteps as f64;
        let (name, [start, end]) = match self.betas {
            Betas::Linear => ("linear", [1e-4, 0.02]),
            Betas::ScaledLinear => ("scaled_linear", [0.00085, 0.012]),
            Betas::Cosine => ("squaredcos_cap_v2", [1e-4 / stretch, 0.02 / stretch]),
        };
        // Few steps stretch the betas beyond their largest value, which the name of a schedule does not cap.
        let capped = self.betas != Betas::Cosine && end * stretch > 0.999;
        let prediction = match self.prediction {
            VpPrediction::Eps => "epsilon",
            VpPrediction::V => "v_prediction",
            VpPrediction::X => "sample",
        };
        let mut config = Component::diffusers_config(CLASS);
        let entries = [
            ("num_train_timesteps", json!(self.timesteps)),
            ("beta_start", json!(start * stretch)),
            ("beta_end", json!(end * stretch)),
            ("beta_schedule", json!(name)),
            ("trained_betas", if capped { json!(self.betas()) } else { Value::Null }),
            ("prediction_type", json!(prediction)),
            ("rescale_betas_zero_snr", json!(self.zero_terminal_snr)),
            // Latents are not limited to [-1, 1].
            ("clip_sample", json!(false)),
            ("clip_sample_range", json!(1.0)),
            ("thresholding", json!(false)),
            ("dynamic_thresholding_ratio", json!(0.995)),
            ("sample_max_value", json!(1.0)),
            ("set_alpha_to_one", json!(false)),
            ("steps_offset", json!(1)),
            // With a zero terminal signal, sampling must start at the last time.
            ("timestep_spacing", json!(if self.zero_terminal_snr { "trailing" } else { "leading" })),
        ];
        config.extend(entries.map(|(key, value)| (key.to_string(), value)));
        Component {
            folder: "scheduler",
            library: "diffusers",
            class: CLASS,
            config_file: "scheduler_config.json",
            config,
            ..Component::default()
        }
    }

    /// Compares the betas. Their end points are fixed by the name of the schedule.
    fn other_betas(&self, scheduler: &ConfigFile) -> Problems {
        let own = json!(self.betas);
        let contradicts = |says: String, change: Option<&Value>| -> Problems {
            vec![scheduler.contradicts(&says, "/process/betas", &own, change)]
        };
        if scheduler.get("trained_betas").is_some() {
            return contradicts("`trained_betas`, a table".into(), None);
        }
        let Some(name) = scheduler.get("beta_schedule").and_then(Value::as_str) else { return Problems::new() };
        let theirs = match name {
            "linear" => Some((Betas::Linear, Some((1e-4, 0.02)))),
            "scaled_linear" => Some((Betas::ScaledLinear, Some((0.00085, 0.012)))),
            "squaredcos_cap_v2" => Some((Betas::Cosine, None)),
            _ => None,
        };
        let Some((betas, ends)) = theirs else { return contradicts(format!("`beta_schedule`: \"{name}\""), None) };
        if betas != self.betas {
            return contradicts(format!("`beta_schedule`: \"{name}\""), Some(&json!(betas)));
        }
        let Some((start, end)) = ends else { return Problems::new() };
        // The schedules of documents stretch their end points for other numbers of steps.
        let stretch = 1000.0 / self.timesteps as f64;
        let ends = [("beta_start", start * stretch), ("beta_end", end * stretch)];
        let other = |(key, own): &(&str, f64)| {
            let theirs = scheduler.get(key)?.as_f64()?;
            ((theirs - own).abs() > 1e-9 * own).then(|| format!("`{key}`: {theirs}, where `{name}` has {own}"))
        };
        ends.iter().find_map(other).map_or_else(Problems::new, |says| contradicts(says, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(entries: Value) -> ConfigFile {
        let Value::Object(entries) = entries else { panic!("an object") };
        ConfigFile { path: "scheduler_config.json".into(), entries }
    }

    fn published() -> Value {
        json!({ "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear" })
    }

    #[test]
    fn the_scheduler_that_is_written_agrees_with_its_settings() {
        for betas in [Betas::Linear, Betas::ScaledLinear, Betas::Cosine] {
            for prediction in [VpPrediction::Eps, VpPrediction::V, VpPrediction::X] {
                for (timesteps, zero_terminal_snr) in [(1000, false), (400, prediction != VpPrediction::Eps)] {
                    let own = VpConfig { betas, prediction, timesteps, zero_terminal_snr, ..VpConfig::default() };
                    let scheduler = own.scheduler();
                    let found = own.contradictions(&file(Value::Object(scheduler.config.clone())));
                    assert!(found.is_empty(), "{own:?}: {found:?}");
                    assert_eq!(scheduler.config["trained_betas"], Value::Null);
                }
            }
        }
        // Ten steps stretch the last beta to 2, which is capped. Only a table can say so.
        let few = VpConfig { timesteps: 10, ..VpConfig::default() }.scheduler();
        assert_eq!(few.config["trained_betas"].as_array().unwrap().len(), 10);
        assert_eq!(few.config["trained_betas"][9], 0.999);
    }

    #[test]
    fn the_published_schedule_agrees_and_each_other_value_names_its_line() {
        let own = VpConfig { betas: Betas::ScaledLinear, ..VpConfig::default() };
        assert!(own.contradictions(&file(published())).is_empty());
        for (key, value, at, fix) in [
            (
                "prediction_type",
                json!("v_prediction"),
                "/process/prediction",
                Some("set /backbone/process/prediction to \"v\""),
            ),
            ("prediction_type", json!("flow"), "/process/prediction", None),
            ("num_train_timesteps", json!(500), "/process/timesteps", Some("set /backbone/process/timesteps to 500")),
            ("beta_schedule", json!("linear"), "/process/betas", Some("set /backbone/process/betas to \"linear\"")),
            ("beta_schedule", json!("sigmoid"), "/process/betas", None),
            ("beta_end", json!(0.02), "/process/betas", None),
            ("trained_betas", json!([0.1, 0.2]), "/process/betas", None),
            (
                "rescale_betas_zero_snr",
                json!(true),
                "/process/zero_terminal_snr",
                Some("set /backbone/process/zero_terminal_snr to true"),
            ),
            ("_class_name", json!("FlowMatchEulerDiscreteScheduler"), "/process", None),
        ] {
            let mut changed = published();
            changed[key] = value;
            let problems = own.contradictions(&file(changed));
            assert_eq!(problems.len(), 1, "{key}: {problems:?}");
            assert_eq!((problems[0].at[0].as_str(), problems[0].fix.as_deref()), (at, fix), "{key}");
        }
        // An old configuration has no prediction type: it is the noise.
        let v = VpConfig { prediction: VpPrediction::V, ..own };
        assert_eq!(v.contradictions(&file(published())).len(), 1);
    }
}

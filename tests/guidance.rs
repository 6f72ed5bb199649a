//! Guidance rules of third parties and of this workspace, on every backbone: `check` accepts a rule where the network
//! serves it and states the reason where not, and a batch of samples equals its samples.

mod backbones;

use backbones::{backbones, caption};
use framework::nn::hooks::{AttentionCall, AttentionSite, Hooks};
use framework::prelude::*;
use framework::sampling::guidance::{Branch, Guidance, GuidanceNeeds, Guided, HookNeeds, Moment, Trajectory, mix};
use registry::Registry;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use unguided as _;

/// A rule that perturbs: it compares the network with a pass in which one attention layer returns zero.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Silence {
    /// Index of the block.
    block: usize,
}

framework::register!(guidance "silence" => Silence);

impl Guidance for Silence {
    fn needs(&self) -> GuidanceNeeds {
        let hooks = HookNeeds { attention: true, blocks_named: self.block + 1, ..HookNeeds::default() };
        GuidanceNeeds { hooks, ..GuidanceNeeds::branches(2) }
    }
    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for Silence {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        vec![Branch::given(), Branch::hooked("silent", self.clone())]
    }
    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let [cond, silent] = predictions.try_into().expect("two branches");
        mix(cond, silent, 2.0, moment.channels).into()
    }
}

impl Hooks for Silence {
    fn reads_attention(&self, site: AttentionSite) -> bool {
        site == AttentionSite::own(self.block)
    }
    fn attention(&self, _: AttentionSite, call: &AttentionCall) -> Tensor<4> {
        call.output().zeros_like()
    }
}

/// A rule of two networks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Duel {}

framework::register!(guidance "duel" => Duel);

impl Guidance for Duel {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { weak: true, ..GuidanceNeeds::branches(2) }
    }
    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for Duel {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        vec![Branch::given(), Branch::weak()]
    }
    fn combine(&mut self, moment: &Moment, predictions: Vec<Tensor<3>>) -> Guided {
        let [strong, weak] = predictions.try_into().expect("two branches");
        mix(strong, weak, 2.0, moment.channels).into()
    }
}

/// A rule that works on the clean latent, whatever the network predicts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Dim {}

framework::register!(guidance "dim" => Dim);

impl Guidance for Dim {
    fn needs(&self) -> GuidanceNeeds {
        GuidanceNeeds { space: Some(Prediction::X), ..GuidanceNeeds::branches(1) }
    }
    fn start(&self) -> Box<dyn Trajectory> {
        Box::new(self.clone())
    }
}

impl Trajectory for Dim {
    fn branches(&mut self, _: &Moment) -> Vec<Branch> {
        vec![Branch::given()]
    }
    fn combine(&mut self, _: &Moment, mut predictions: Vec<Tensor<3>>) -> Guided {
        (predictions.remove(0) * 0.9).into()
    }
}

/// Returns a document with each backbone, by name.
fn documents() -> Vec<(&'static str, Value)> {
    let document = |(name, backbone, tokenizer, sampler): (&'static str, Value, Value, Value)| {
        let mut document = json!({
            "version": 1, "data": { "type": "digits" }, "tokenizer": tokenizer, "backbone": backbone,
            "objective": { "type": "cfg" }, "sampler": sampler, "guidance": { "type": "none" },
            "train": { "steps": 2, "batch_size": 4, "learning_rate": 1e-3, "sample_columns": 1 }
        });
        if name == "sd15" {
            caption(&mut document);
        }
        (name, document)
    };
    backbones().into_iter().map(document).collect()
}

/// Returns the messages of `check` for a document with this rule.
fn problems(document: &Value, rule: &Value) -> Vec<String> {
    let mut document = document.clone();
    document["guidance"] = rule.clone();
    match Registry::linked().parse_and_check(&document.to_string()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(|problem| problem.what).collect(),
    }
}

/// Checks that the rule is accepted on the backbones of `on`, and refused with the reason `why` on all others.
#[track_caller]
fn serves(rule: Value, on: &[&str], why: &str) {
    for (name, document) in documents() {
        let found = problems(&document, &rule);
        match on.contains(&name) {
            true => assert!(found.is_empty(), "{rule} on {name}: {found:?}"),
            false => assert!(found.iter().any(|what| what.contains(why)), "{rule} on {name}: {found:?}"),
        }
    }
}

const ALL: [&str; 6] = ["dit", "sit", "sd15", "llamagen", "var", "mar"];
const CONTINUOUS: [&str; 4] = ["dit", "sit", "sd15", "mar"];
const GRIDS: [&str; 3] = ["dit", "sit", "sd15"];

#[test]
fn rules_of_third_parties_are_accepted_where_the_network_serves_them() {
    serves(json!({ "type": "silence", "block": 0 }), &ALL, "");
    serves(json!({ "type": "silence", "block": 99 }), &[], "names block 99");
    serves(json!({ "type": "duel", "weak": { "checkpoint": "runs/weak" } }), &ALL, "");
    serves(json!({ "type": "duel" }), &[], "needs a weak network");
    serves(
        json!({ "type": "silence", "block": 0, "weak": { "checkpoint": "runs/weak" } }),
        &[],
        "uses one network only",
    );
    serves(json!({ "type": "dim" }), &CONTINUOUS, "needs another prediction space");
}

#[test]
fn rules_of_this_workspace_are_accepted_where_the_network_serves_them() {
    for name in ["pag", "slg", "s2"] {
        serves(json!({ "type": name, "blocks": [0] }), &ALL, "");
        serves(json!({ "type": name, "blocks": [0, 50] }), &[], "names block 50");
    }
    for name in ["seg", "tpg"] {
        serves(json!({ "type": name, "blocks": [0] }), &GRIDS, "as a square grid");
    }
    for name in ["nag", "vsf", "pladis"] {
        serves(json!({ "type": name }), &["sd15"], "changes attention to a text");
    }
    serves(
        json!({ "type": "entropy_cfg", "scale": 2.0, "threshold": 0.5 }),
        &["llamagen", "var"],
        "needs another prediction space",
    );
    let weak = json!({ "checkpoint": "runs/weak" });
    serves(json!({ "type": "weak_model", "scale": 2.0, "weak": weak }), &ALL, "");
    serves(json!({ "type": "weak_model", "scale": 2.0 }), &[], "needs a weak network");
}

#[test]
fn a_null_branch_that_the_objective_does_not_train_is_refused() {
    for (name, mut document) in documents() {
        document["objective"]["drop_probability"] = json!(0.0);
        for (rule, refused) in [
            (json!({ "type": "pag", "scale": 2.0, "blocks": [0] }), true),
            (json!({ "type": "pag", "scale": 1.0, "blocks": [0] }), false),
            (
                json!({ "type": "weak_model", "scale": 2.0, "cfg_scale": 2.0, "weak": { "checkpoint": "runs/weak" } }),
                true,
            ),
            // The weak network has its own objective, which `check` cannot read.
            (
                json!({
                    "type": "weak_model", "scale": 2.0, "weak_condition": "null", "weak": { "checkpoint": "runs/weak" }
                }),
                false,
            ),
        ] {
            let found = problems(&document, &rule);
            let untrained = found.iter().any(|what| what.contains("needs the null prediction"));
            assert_eq!(untrained, refused, "{rule} on {name}: {found:?}");
        }
    }
}

#[test]
fn an_input_scale_needs_an_objective_that_trains_it() {
    let weak = json!({ "checkpoint": "runs/weak" });
    for (name, document) in documents() {
        let mut free = document.clone();
        free["objective"] = json!({ "type": "gft" });
        free["backbone"]["guidance_input"] = json!(if name == "sd15" { "linear" } else { "mlp" });
        for mut rule in [
            json!({ "type": "pag", "blocks": [0] }),
            json!({ "type": "slg", "blocks": [0] }),
            json!({ "type": "weak_model", "scale": 2.0, "weak": weak }),
        ] {
            assert_eq!(problems(&free, &rule), Vec::<String>::new(), "{rule} on {name}");
            rule["input_scale"] = json!(2.0);
            assert_eq!(problems(&free, &rule), Vec::<String>::new(), "{rule} on {name}");
            let found = problems(&document, &rule);
            assert!(found.iter().any(|what| what.contains("trains no guidance input")), "{rule} on {name}: {found:?}");
        }
    }
}

#[test]
fn every_example_of_a_rule_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pipelines/guidance");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        if let Err(problems) = Registry::linked().parse_and_check(&text) {
            panic!("{}: {problems:?}", path.display());
        }
        names.push(path.file_stem().unwrap().to_str().unwrap().to_string());
    }
    for name in ["weak_model", "pag", "seg", "slg", "s2", "tpg", "nag", "vsf", "pladis", "entropy_cfg"] {
        assert!(names.iter().any(|known| known == name), "no example of {name}");
    }
}

/// Returns the images that the command samples with a rule.
fn sampled(run: &Path, rule: &Value, batch_size: usize) -> Vec<f32> {
    let [grid, file] = ["grid.png", "images.safetensors"].map(|name| run.with_file_name(name));
    let (set, batch_size) = (format!("/guidance={rule}"), batch_size.to_string());
    let [run, grid, images] = [run, &grid, &file].map(|path| path.to_str().unwrap());
    let arguments =
        ["unguided", "sample", run, "--count", "1", "--set", &set, "--batch-size", &batch_size, "--output", grid];
    unguided::execute(arguments.into_iter().chain(["--tensors", images]))
        .unwrap_or_else(|error| panic!("{rule} on {run}: {error}"));
    let bytes = fs::read(images).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = stored.tensor("x").unwrap().data().to_vec();
    values.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

#[test]
fn with_every_rule_a_batch_equals_its_samples() {
    let folder = tempfile::tempdir().unwrap();
    for (name, document) in documents() {
        let (pipeline, run) = (folder.path().join(format!("{name}.json")), folder.path().join(name));
        fs::write(&pipeline, document.to_string()).unwrap();
        let arguments = ["unguided", "train", pipeline.to_str().unwrap(), "--run", run.to_str().unwrap()];
        unguided::execute(arguments).unwrap_or_else(|error| panic!("{name}: {error}"));
        let weak = json!({ "checkpoint": run });
        let rules = [
            json!({ "type": "silence", "block": 0 }),
            json!({ "type": "duel", "weak": weak }),
            json!({ "type": "dim" }),
            json!({ "type": "weak_model", "scale": 2.0, "weak_condition": "null", "cfg_scale": 1.5, "weak": weak }),
            json!({ "type": "pag", "scale": 2.0, "blocks": [0] }),
            json!({ "type": "seg", "blocks": [0] }),
            // The interval starts within the decoding of tokens, so the perturbed pass reads the past at once.
            json!({ "type": "slg", "blocks": [0], "schedule": { "type": "interval", "from": 0.3, "to": 0.7 } }),
            json!({ "type": "s2", "blocks": [0], "scale": 2.0, "schedule": { "type": "constant" } }),
            json!({ "type": "tpg", "blocks": [0] }),
            json!({ "type": "nag" }),
            json!({ "type": "nag", "scale": 2.0 }),
            json!({ "type": "vsf" }),
            json!({ "type": "pladis", "scale": 2.0 }),
            json!({ "type": "entropy_cfg", "scale": 2.0, "threshold": 0.5 }),
        ];
        for rule in rules.iter().filter(|rule| problems(&document, rule).is_empty()) {
            let (whole, split) = (sampled(&run, rule, 100), sampled(&run, rule, 3));
            let apart = whole.iter().zip(&split).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
            assert!(whole.len() == split.len() && apart < 1e-3, "{rule} on {name}: {apart}");
            assert!(whole.iter().all(|value| value.is_finite()), "{rule} on {name}");
        }
    }
}

/// A network that records the guidance numbers of its passes and predicts zeros.
#[derive(Debug, Default)]
struct Recorded(Mutex<Vec<Option<Vec<f64>>>>);

impl framework::network::backbone::Backbone for Recorded {
    fn predict(&self, input: &Input, _: &Condition, control: &framework::network::backbone::Control) -> Tensor<3> {
        let Input::Noisy { x_t, .. } = input else { panic!("expected a noisy latent") };
        self.0.lock().unwrap().push(control.guidance.clone());
        x_t.zeros_like()
    }
}

#[test]
fn cfg_on_top_of_a_scale_aware_mg_reads_each_branch_at_its_trained_number() {
    use framework::process::diffusion::VpConfig;
    use framework::sampling::denoiser::{Denoiser, GuidanceNumbers};
    let objective = |entry: Value| Registry::linked().objective(entry).unwrap();
    let cfg: guidance::Cfg = serde_json::from_value(json!({ "scale": 2.0 })).unwrap();
    let (process, condition) = (VpConfig::default().process(), Condition::Class(vec![Some(1)]));
    for (objective, expected) in [
        // A scale-aware mg is trained at scale 1 with a class, and at 0 without.
        (objective(json!({ "type": "mg", "scale": { "type": "input" } })), vec![1.0, 0.0]),
        // gft is trained at beta 1 in both cases.
        (objective(json!({ "type": "gft" })), vec![1.0, 1.0]),
    ] {
        let network = Recorded::default();
        let of_scale = |scale: f64| objective.guidance_of_scale(scale);
        let numbers = GuidanceNumbers { of_scale: &of_scale, null: objective.null().number() };
        let shape = LatentShape::values([1, 1], 2);
        let mut denoiser = Denoiser::new(&network, &process, &cfg, numbers, &condition, &shape);
        let x_t = Tensor::<3>::zeros([1, 1, 2], &Device::flex());
        denoiser.evaluate(&Input::Noisy { x_t, t: vec![0.5] }, 0.5);
        assert_eq!(*network.0.lock().unwrap(), [Some(expected)]);
    }
    // `check` accepts the pair, because both branches are trained.
    let text = fs::read_to_string("examples/pipelines/pairs/sit-mg.json").unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    document["backbone"]["guidance_input"] = json!("mlp");
    document["objective"]["scale"] = json!({ "type": "input" });
    document["guidance"] = json!({ "type": "cfg", "scale": 2.0 });
    let document = Registry::linked().parse_value(document).unwrap();
    assert_eq!(Registry::linked().check(&document), []);
}

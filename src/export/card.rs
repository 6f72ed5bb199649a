//! The model card of an export: what was trained, how to sample, on which data, and how well it does.

use crate::export::layouts::Exported;
use framework::checkpoint::facts::DatasetFacts;
use framework::nn::parameters;
use framework::pipeline::Pipeline;
use framework::plugin::Kind;
use registry::Registry;
use run_folder::page::numbers::thousands;
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Largest number of class names that a card lists.
const LISTED: usize = 100;

/// Facts of the checkpoint that a card states.
pub struct Facts {
    /// Name of the exported folder.
    pub name: String,
    /// Layout of the exported folder.
    pub layout: &'static str,
    /// Completed optimizer steps.
    pub step: usize,
    /// Whether the weights are the average.
    pub averaged: bool,
    /// The guidance scale that was folded into the weights.
    pub scale: Option<f64>,
    /// Facts of the dataset.
    pub dataset: Option<DatasetFacts>,
    /// The report of the run, if it has one.
    pub report: Option<Value>,
}

/// Reads the report of the run to which a checkpoint belongs.
pub fn report_of(checkpoint: &Path) -> Option<Value> {
    let run = checkpoint.parent()?.parent()?;
    serde_json::from_slice(&fs::read(run.join("report.json")).ok()?).ok()
}

/// Returns the text of the card.
pub fn card(facts: &Facts, pipeline: &Pipeline, exported: &Exported) -> String {
    let document: Value = serde_json::from_str(&pipeline.document).unwrap_or_default();
    let at = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (backbone, objective) = (at("/backbone/type"), at("/objective/type"));
    let papers = |kind, name| Registry::linked().entry(kind, name).map_or(&[][..], |entry| entry.papers);
    let papers = [papers(Kind::Backbone, backbone), papers(Kind::Objective, objective)].concat();
    let text = pipeline.backbone.accepts().condition.is_text();
    let mut card = String::from("---\nlicense: other\nlicense_name: not-stated\n");
    let _ = writeln!(card, "library_name: {}", exported.library);
    let _ = writeln!(card, "pipeline_tag: {}", if text { "text-to-image" } else { "unconditional-image-generation" });
    let _ = writeln!(card, "tags:\n- unguided\n- {backbone}\n- {objective}");
    if facts.layout == "lora" {
        card.push_str("- lora\n");
    }
    for paper in &papers {
        let _ = writeln!(card, "- {}", paper.to_lowercase());
    }
    let _ = writeln!(card, "---\n\n# {}\n", facts.name);
    if let Some(about) = document.get("about").and_then(Value::as_str) {
        let _ = writeln!(card, "{about}\n");
    }
    let count = parameters::count(&pipeline.backbone.init(&framework::burn::tensor::Device::flex()));
    let weights = if facts.averaged { "the exponential moving average of the weights" } else { "the online weights" };
    let _ = writeln!(
        card,
        "A `{backbone}` network of {} parameters, trained for {} steps with the objective `{objective}` by Unguided. \
         The files hold {weights}.\n",
        thousands(count),
        thousands(facts.step),
    );
    card.push_str("## Sampling\n\n");
    card.push_str(&sampling(facts, pipeline, exported, text));
    card.push_str("\n## Training\n\n");
    let _ = writeln!(card, "- Document with every setting: `document.json`");
    let _ = writeln!(card, "- Papers: {}", papers.join(", "));
    let trained = match (pipeline.objective.trained_scales(), facts.scale) {
        (_, Some(scale)) => format!("{scale}, folded into the weights"),
        (Some([least, most]), _) if most.is_finite() => format!("{least} to {most}"),
        (Some([least, _]), _) => format!("from {least}"),
        (None, _) => "none: the network reads no guidance number".to_string(),
    };
    let _ = writeln!(card, "- Guidance scales that one pass samples: {trained}");
    // The path of the file is private; its name says enough.
    let start = Path::new(at("/train/from/checkpoint")).file_name().map(|name| name.to_string_lossy());
    let start = match start {
        Some(name) => name.into_owned(),
        None if facts.step == 0 => "not stated: the checkpoint was converted from other weights".to_string(),
        None => "random weights".to_string(),
    };
    let _ = writeln!(card, "- Start: {start}");
    card.push_str("\n## Data\n\n");
    match &facts.dataset {
        Some(dataset) => {
            let _ = writeln!(card, "- {} items", thousands(dataset.items));
            if let Some(names) = &dataset.class_names {
                let more =
                    if names.len() > LISTED { format!(" and {} more", names.len() - LISTED) } else { String::new() };
                let _ = writeln!(card, "- Classes: {}{more}", names[..names.len().min(LISTED)].join(", "));
            }
            let _ = writeln!(
                card,
                "- Fingerprint (SHA-256 of properties and a sample of the items): `{}`",
                dataset.fingerprint
            );
        }
        None => card.push_str("The checkpoint states no dataset.\n"),
    }
    card.push_str("\n## Evaluation\n\n");
    match facts.report.as_ref().and_then(Value::as_object).filter(|report| !report.is_empty()) {
        Some(report) => {
            card.push_str(
                "At the end of the run, with its own sampler and guidance:\n\n| quantity | value |\n|---|---|\n",
            );
            for (name, value) in report {
                let _ = writeln!(card, "| {name} | {value} |");
            }
        }
        None => card.push_str("The run has no report.\n"),
    }
    card.push_str(
        "\n## Licence\n\nNot stated. The licences of the weights that the run started from and of its data apply. \
         State the licence here and in the header before you publish the files.\n",
    );
    card
}

/// Returns how to sample with the exported files.
fn sampling(facts: &Facts, pipeline: &Pipeline, exported: &Exported, text: bool) -> String {
    let scale = serde_json::from_str::<Value>(&pipeline.document).ok();
    let scale = scale.and_then(|document| document.pointer("/guidance/scale").and_then(Value::as_f64)).unwrap_or(1.0);
    let single = pipeline.guidance.needs().most_branches == 1;
    let asked = if text { "\"a prompt\"" } else { "class_labels=[0]" };
    let (number, why) = match (exported.guidance_input, facts.scale) {
        (true, _) => (scale, "One pass per step: the network reads `guidance_scale`.".to_string()),
        (_, Some(folded)) => {
            (1.0, format!("One pass per step samples scale {folded}, which is folded into the weights."))
        }
        _ if single => (1.0, "One pass per step.".to_string()),
        _ => (scale, "Two passes per step: the run trained no guidance input.".to_string()),
    };
    let name = &facts.name;
    let code = match facts.layout {
        "lora" => lora(name, exported, number),
        "diffusers" if !exported.pipeline.is_empty() => {
            let setup = if exported.setup.is_empty() { String::new() } else { format!("{}\n", exported.setup) };
            format!(
                "from diffusers import {0}\n\npipe = {0}.from_pretrained(\"{name}\")\n{setup}\
                 image = pipe({asked}, guidance_scale={number:?}).images[0]\n",
                exported.pipeline
            )
        }
        "diffusers" => {
            let imports =
                exported.components.iter().map(|part| format!("from {} import {}\n", part.library, part.class));
            let opened = exported.components.iter().map(|part| {
                format!("{0} = {1}.from_pretrained(\"{name}\", subfolder=\"{0}\")\n", part.folder, part.class)
            });
            let setup = exported.setup.replace("pipe.", "");
            imports.chain(["\n".to_string()]).chain(opened).chain([setup, "\n".to_string()]).collect::<String>()
        }
        _ => {
            let file = exported.files.first().map_or("", |file| file.name.as_str());
            let load = match file.ends_with(".safetensors") {
                true => format!("from safetensors.torch import load_file\n\nweights = load_file(\"{name}/{file}\")\n"),
                false => {
                    let entry = exported.files.first().map_or("", |file| file.entry);
                    let entry = if entry.is_empty() { String::new() } else { format!("[\"{entry}\"]") };
                    format!("import torch\n\nweights = torch.load(\"{name}/{file}\"){entry}\n")
                }
            };
            return format!(
                "Load the weights into the published code of the network:\n\n```python\n{load}```\n\nWith Unguided, \
                 sample from the run: `unguided sample RUN`.\n"
            );
        }
    };
    format!("```python\n{}\n```\n\n{why}\n", code.trim_end())
}

/// Returns how to load adapters.
fn lora(name: &str, exported: &Exported, number: f64) -> String {
    if exported.library == "peft" {
        return format!(
            "from peft import PeftModel\n\n# `network` is the network of the published code, with the weights that the \
             run started from.\nnetwork = PeftModel.from_pretrained(network, \"{name}\")\n"
        );
    }
    let extra = exported.files.iter().any(|file| file.name == "extra.safetensors");
    let mut code = String::from("from diffusers import StableDiffusionPipeline");
    code.push_str(if extra { ", UNet2DConditionModel\nfrom safetensors.torch import load_file\n" } else { "\n" });
    code.push_str("\nbase = \"...\"  # the folder or name of the weights that the run started from\n");
    if extra {
        let input = if exported.guidance_input { ", time_cond_proj_dim=512" } else { "" };
        let _ = write!(
            code,
            "unet = UNet2DConditionModel.from_pretrained(\n    base, subfolder=\"unet\"{input}, low_cpu_mem_usage=False\n)\n\
             unet.load_state_dict(load_file(\"{name}/extra.safetensors\"), strict=False)\n\
             pipe = StableDiffusionPipeline.from_pretrained(base, unet=unet)\n"
        );
    } else {
        code.push_str("pipe = StableDiffusionPipeline.from_pretrained(base)\n");
    }
    let _ = write!(
        code,
        "pipe.load_lora_weights(\"{name}\", weight_name=\"pytorch_lora_weights.safetensors\")\n\
         image = pipe(\"a prompt\", guidance_scale={number:?}).images[0]\n\n\
         # kohya.safetensors holds the same adapters under the names that kohya's scripts and ComfyUI read.\n"
    );
    code
}

//! Low-rank adapters in the files that other programs read.
//!
//!   W' = W + alpha / rank  up down,   down `[rank, in]`, up `[out, rank]`
//!
//! `diffusers` and `peft` name the factors `lora_A` and `lora_B`, kohya `lora_down` and `lora_up`.

use crate::export::layouts::{Exported, TensorFile, Tensors, object};
use framework::burn::tensor::{Device, TensorData};
use framework::checkpoint::names::{Layout, OfficialName, OfficialNames};
use framework::checkpoint::official::named;
use framework::error::Problem;
use framework::nn::parameters;
use framework::optimization::trainable::LoraConfig;
use framework::pipeline::Pipeline;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Endings of the paths of an adapter's factors.
const FACTORS: [&str; 2] = [".lora.a", ".lora.b"];

/// An adapter of one layer.
struct Adapter {
    /// Path of the layer in the published network.
    module: String,
    down: TensorData,
    up: TensorData,
}

/// Returns the adapters of a run, and its other trained weights. `number` is the guidance number to fold.
///
/// # Errors
/// If the run has no adapters, or other programs cannot read them.
pub fn export(
    pipeline: &Pipeline,
    values: BTreeMap<String, TensorData>,
    number: Option<f64>,
) -> Result<Exported, Problem> {
    let Some(lora) = &pipeline.train.lora else {
        return Err(Problem::new("/train/lora", "the run trains the weights themselves and has no adapters"));
    };
    let formats = pipeline.backbone.formats();
    let names = &formats[0];
    let adapters = adapters(&values, names)?;
    let alpha = lora.alpha.unwrap_or(lora.rank as f64);
    let mut exported = Exported::default();
    if names.folder.is_empty() {
        exported.library = "peft";
        exported.files.push(file("adapter_model.safetensors", diffusers(&adapters, "base_model.model"), Vec::new()));
        exported.json.push(("adapter_config.json", peft_config(&adapters, lora.rank, alpha)));
    } else {
        exported.library = "diffusers";
        let metadata = vec![("lora_adapter_metadata", adapter_metadata(&adapters, names.folder, lora.rank, alpha))];
        let tensors = diffusers(&adapters, names.folder);
        exported.files.push(file("pytorch_lora_weights.safetensors", tensors, metadata));
        let tensors = kohya(&adapters, names.folder, alpha);
        exported.files.push(file("kohya.safetensors", tensors, kohya_metadata(lora, alpha)));
    }
    let rest = rest(pipeline, values, names, number)?;
    if !rest.is_empty() {
        let list: Vec<&str> = rest.iter().map(|(name, _)| name.as_str()).collect();
        exported.notes.push(format!(
            "no format of adapters holds {}, which the run trained as well; they are in extra.safetensors, and the \
             model card says how to load them",
            list.join(", ")
        ));
        exported.guidance_input = number.is_none();
        exported.files.push(file("extra.safetensors", rest, Vec::new()));
    }
    Ok(exported)
}

fn file(name: &str, tensors: Tensors, metadata: Vec<(&'static str, String)>) -> TensorFile {
    TensorFile { name: name.into(), tensors, entry: "", metadata }
}

/// Returns the adapters under the names and in the layouts of the published network.
fn adapters(values: &BTreeMap<String, TensorData>, names: &OfficialNames) -> Result<Vec<Adapter>, Problem> {
    let mut found = Vec::new();
    for (path, down) in values {
        let Some(matrix) = path.strip_suffix(FACTORS[0]) else { continue };
        let Some(up) = values.get(&format!("{matrix}{}", FACTORS[1])) else { continue };
        let OfficialName { name, layout } = (names.of)(matrix);
        let up_layout = match &layout {
            Layout::Transposed => Layout::Transposed,
            // The second factor of a convolution is a convolution over single positions.
            Layout::PatchConv { .. } => Layout::PatchConv { patch: 1 },
            _ => {
                let what = format!("`{name}` is neither a linear layer nor a convolution, so it takes no adapter");
                return Err(Problem::new("/train/lora/parameters", what));
            }
        };
        let module = name.strip_suffix(".weight").unwrap_or(&name).to_string();
        found.push(Adapter { module, down: layout.to_foreign(down.clone()), up: up_layout.to_foreign(up.clone()) });
    }
    Ok(found)
}

/// Returns the adapters under the names of `peft`, under a prefix.
fn diffusers(adapters: &[Adapter], prefix: &str) -> Tensors {
    let names = |adapter: &Adapter| {
        let name = |factor: &str| format!("{prefix}.{}.lora_{factor}.weight", adapter.module);
        [(name("A"), adapter.down.clone()), (name("B"), adapter.up.clone())]
    };
    adapters.iter().flat_map(names).collect()
}

/// Returns the adapters under the names of kohya's sd-scripts.
fn kohya(adapters: &[Adapter], folder: &str, alpha: f64) -> Tensors {
    let names = |adapter: &Adapter| {
        let module = format!("lora_{folder}_{}", adapter.module.replace('.', "_"));
        [
            (format!("{module}.alpha"), TensorData::new(vec![alpha as f32], Vec::<usize>::new())),
            (format!("{module}.lora_down.weight"), adapter.down.clone()),
            (format!("{module}.lora_up.weight"), adapter.up.clone()),
        ]
    };
    adapters.iter().flat_map(names).collect()
}

fn kohya_metadata(lora: &LoraConfig, alpha: f64) -> Vec<(&'static str, String)> {
    vec![
        ("ss_network_module", "networks.lora".to_string()),
        ("ss_network_dim", lora.rank.to_string()),
        ("ss_network_alpha", alpha.to_string()),
        ("modelspec.sai_model_spec", "1.0.0".to_string()),
        ("modelspec.architecture", "stable-diffusion-v1/lora".to_string()),
        ("modelspec.implementation", "diffusers".to_string()),
    ]
}

/// Returns the settings that `peft` needs to rebuild the adapters.
fn settings(adapters: &[Adapter], rank: usize, alpha: f64) -> Vec<(&'static str, Value)> {
    let modules: Vec<&str> = adapters.iter().map(|adapter| adapter.module.as_str()).collect();
    vec![
        ("r", json!(rank)),
        ("lora_alpha", json!(alpha)),
        ("target_modules", json!(modules)),
        ("lora_dropout", json!(0.0)),
        ("bias", json!("none")),
        ("use_rslora", json!(false)),
        ("use_dora", json!(false)),
        ("init_lora_weights", json!(true)),
    ]
}

/// Returns `adapter_config.json` of `peft`.
fn peft_config(adapters: &[Adapter], rank: usize, alpha: f64) -> Value {
    let mut entries = vec![
        ("peft_type", json!("LORA")),
        ("task_type", Value::Null),
        ("base_model_name_or_path", Value::Null),
        ("inference_mode", json!(true)),
        ("fan_in_fan_out", json!(false)),
    ];
    entries.extend(settings(adapters, rank, alpha));
    object(entries)
}

/// Returns the metadata from which `diffusers` reads alpha.
fn adapter_metadata(adapters: &[Adapter], folder: &str, rank: usize, alpha: f64) -> String {
    let entries = settings(adapters, rank, alpha).into_iter();
    let all: serde_json::Map<String, Value> = entries.map(|(key, value)| (format!("{folder}.{key}"), value)).collect();
    Value::Object(all).to_string()
}

/// Returns the trained weights that are no adapters: a new guidance input, or the weights that a guidance number is
/// folded into.
fn rest(
    pipeline: &Pipeline,
    values: BTreeMap<String, TensorData>,
    names: &OfficialNames,
    number: Option<f64>,
) -> Result<Tensors, Problem> {
    let Some(number) = number else {
        let is_new = pipeline.is_new();
        return Ok(named(values.into_iter().filter(|(path, _)| is_new(path)).collect(), names));
    };
    let merged = pipeline.restore(values, &Device::flex()).map_err(|error| Problem::new("", error.to_string()))?;
    let before = parameters::export(&merged);
    let mut after = before.clone();
    let folded = pipeline.backbone.fold_guidance(&mut after, number);
    folded.ok_or_else(|| Problem::new("--scale", "no scale can be folded into this network"))?;
    after.retain(|path, data| before.get(path) != Some(data));
    Ok(named(after, names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn factors_take_the_layout_and_the_name_of_their_layer() {
        let of = |path: &str| {
            let layout = if path.contains("conv") { Layout::PatchConv { patch: 1 } } else { Layout::Transposed };
            OfficialName { name: path.replace("to_out.", "to_out.0."), layout }
        };
        let names = OfficialNames {
            format: "diffusers",
            folder: "unet",
            of: Arc::new(of),
            nesting: &[],
            ignored: &[],
            optional: &[],
        };
        let factor =
            |shape: [usize; 2]| TensorData::new((0..shape[0] * shape[1]).map(|i| i as f32).collect::<Vec<_>>(), shape);
        let values: BTreeMap<String, TensorData> = [
            ("a.to_out.weight.lora.a", factor([3, 2])),
            ("a.to_out.weight.lora.b", factor([2, 4])),
            ("conv.weight.lora.a", factor([3, 2])),
            ("conv.weight.lora.b", factor([2, 4])),
            ("a.to_out.weight", factor([3, 4])),
        ]
        .map(|(name, data)| (name.to_string(), data))
        .into();
        let found = adapters(&values, &names).unwrap();
        assert_eq!(found.len(), 2);
        let peft = diffusers(&found, "unet");
        assert_eq!(peft[0].0, "unet.a.to_out.0.lora_A.weight");
        // The transposed factors: a [3, 2] is 0 1 / 2 3 / 4 5.
        assert_eq!(peft[0].1, TensorData::new(vec![0.0_f32, 2.0, 4.0, 1.0, 3.0, 5.0], [2, 3]));
        assert_eq!((peft[1].0.as_str(), peft[1].1.shape().to_vec()), ("unet.a.to_out.0.lora_B.weight", vec![4, 2]));
        assert_eq!(peft[2].1.shape().to_vec(), [2, 3, 1, 1]);
        assert_eq!(peft[3].1.shape().to_vec(), [4, 2, 1, 1]);
        let kohya = kohya(&found, "unet", 1.5);
        let listed: Vec<(&str, Vec<usize>)> =
            kohya.iter().take(3).map(|(name, data)| (name.as_str(), data.shape().to_vec())).collect();
        let expected = [
            ("lora_unet_a_to_out_0.alpha", vec![]),
            ("lora_unet_a_to_out_0.lora_down.weight", vec![2, 3]),
            ("lora_unet_a_to_out_0.lora_up.weight", vec![4, 2]),
        ];
        assert_eq!(listed, expected);
        assert_eq!(kohya[0].1.iter::<f32>().collect::<Vec<_>>(), [1.5]);
    }
}

//! The layouts of a whole network: `diffusers`, `compvis`, `official` and `safetensors`.

use crate::Outcome;
use crate::arguments::ExportLayout;
use framework::burn::tensor::TensorData;
use framework::checkpoint::component::{Component, write_for_torch, write_json};
use framework::checkpoint::container::Container;
use framework::checkpoint::names::{OFFICIAL, OfficialNames};
use framework::checkpoint::official::named;
use framework::error::{Problem, Result};
use framework::network::backbone::BackboneConfig;
use framework::pipeline::Pipeline;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Named tensors.
pub type Tensors = Vec<(String, TensorData)>;

/// A file of tensors.
pub struct TensorFile {
    /// Name of the file. Its ending selects the container.
    pub name: String,
    /// The tensors.
    pub tensors: Tensors,
    /// The entry of a torch file under which the tensors are stored; empty for a flat dictionary.
    pub entry: &'static str,
    /// Metadata of a safetensors file.
    pub metadata: Vec<(&'static str, String)>,
}

/// The content of an exported folder, apart from the model card.
#[derive(Default)]
pub struct Exported {
    /// Parts with a folder of their own.
    pub components: Vec<Component>,
    /// Files of tensors.
    pub files: Vec<TensorFile>,
    /// JSON files: name and content.
    pub json: Vec<(&'static str, Value)>,
    /// The library that the model card names.
    pub library: &'static str,
    /// Class of the pipeline that opens the folder; empty if none does.
    pub pipeline: &'static str,
    /// Python that must follow the opening of the pipeline.
    pub setup: &'static str,
    /// Whether the pipeline's `guidance_scale` is a number that the network reads.
    pub guidance_input: bool,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Exported {
    /// Returns the number of bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        let files = self.files.iter().flat_map(|file| &file.tensors).map(|(_, data)| data.as_bytes().len() as u64);
        self.components.iter().map(Component::bytes).chain(files).sum()
    }

    /// Writes everything into a folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path) -> Outcome {
        self.components.iter().try_for_each(|component| component.write(folder))?;
        for file in &self.files {
            let path = folder.join(&file.name);
            match Container::of(&path)? {
                Container::Safetensors => write_for_torch(&file.tensors, &path, &file.metadata)?,
                container => container.save(&file.tensors, &path, file.entry)?,
            }
        }
        self.json.iter().try_for_each(|(name, value)| write_json(&folder.join(name), value))
    }
}

/// Returns the layouts that exist for the network of a run.
pub fn existing(pipeline: &Pipeline) -> Vec<&'static str> {
    let formats = pipeline.backbone.formats();
    let has = |name: &str| formats.iter().any(|names| names.format == name);
    let diffusers = match pipeline.backbone.diffusers(&BTreeMap::new()) {
        Ok(_) => Some("diffusers"),
        // A folded scale removes the guidance input that stands in the way.
        Err(problem) => problem.fix.filter(|fix| fix.contains("--scale")).map(|_| "diffusers with --scale"),
    };
    let others = [
        (ExportLayout::Compvis, has(ExportLayout::Compvis.name())),
        (ExportLayout::Official, has(OFFICIAL)),
        (ExportLayout::Lora, pipeline.train.lora.is_some()),
        (ExportLayout::Safetensors, true),
    ];
    let others = others.into_iter().filter(|(_, exists)| *exists).map(|(layout, _)| layout.name());
    diffusers.into_iter().chain(others).collect()
}

/// Returns the network in a layout. The outer result is an error of a file, the inner one a layout that does not exist.
pub fn export(
    layout: ExportLayout,
    backbone: &dyn BackboneConfig,
    pipeline: &Pipeline,
    values: BTreeMap<String, TensorData>,
) -> Result<Result<Exported, Problem>> {
    let formats = backbone.formats();
    let named_format = |name: &str| {
        let found = formats.iter().find(|names| names.format == name);
        found.ok_or_else(|| Problem::new("/backbone/type", format!("this network has no {name} format")))
    };
    match layout {
        ExportLayout::Diffusers => diffusers(backbone, pipeline, &values),
        ExportLayout::Compvis => match named_format("compvis") {
            Ok(names) => compvis(names, pipeline, values).map(Ok),
            Err(problem) => Ok(Err(problem)),
        },
        ExportLayout::Official => Ok(named_format(OFFICIAL).map(|names| {
            let file = backbone.official_file();
            let mut tensors = named(values, names);
            tensors.extend(file.buffers);
            let file = TensorFile { name: file.name.into(), tensors, entry: file.entry, metadata: Vec::new() };
            Exported { files: vec![file], library: "pytorch", ..Exported::default() }
        })),
        ExportLayout::Safetensors | ExportLayout::Lora => {
            let tensors = named(values, &formats[0]);
            let file = TensorFile { name: "model.safetensors".into(), tensors, entry: "", metadata: Vec::new() };
            Ok(Ok(Exported { files: vec![file], library: "pytorch", ..Exported::default() }))
        }
    }
}

/// Returns the folder of a pipeline of `diffusers`, or of the parts that exist.
fn diffusers(
    backbone: &dyn BackboneConfig,
    pipeline: &Pipeline,
    values: &BTreeMap<String, TensorData>,
) -> Result<Result<Exported, Problem>> {
    const FORMAT: &str = "diffusers";
    let network = match backbone.diffusers(values) {
        Ok(network) => network,
        Err(problem) => return Ok(Err(problem)),
    };
    let mut components = network.components;
    components.extend(pipeline.tokenizer.component(FORMAT, pipeline.image_shape()));
    if let Some(conditioner) = &pipeline.conditioner {
        components.extend(conditioner.components(FORMAT)?);
    }
    let lacks: Vec<&str> =
        network.needs.iter().copied().filter(|need| !components.iter().any(|part| part.folder == *need)).collect();
    let mut exported = Exported {
        library: FORMAT,
        setup: network.setup,
        guidance_input: network.guidance_input,
        ..Exported::default()
    };
    if lacks.is_empty() {
        let mut index = Component::diffusers_config(network.pipeline);
        index.extend(components.iter().map(|part| (part.folder.to_string(), json!([part.library, part.class]))));
        index.extend(network.index);
        exported.json.push(("model_index.json", Value::Object(index)));
        exported.pipeline = network.pipeline;
    } else {
        exported.notes.push(format!(
            "the run has no part that diffusers calls {}, so the folder opens part by part and not as a {}",
            lacks.join(" or "),
            network.pipeline
        ));
    }
    exported.components = components;
    Ok(Ok(exported))
}

/// Returns the single file of latent diffusion: network, autoencoder and text encoder, each under its prefix.
fn compvis(names: &OfficialNames, pipeline: &Pipeline, values: BTreeMap<String, TensorData>) -> Result<Exported> {
    // The prefix of the flat dictionary, without the entry that holds it.
    let prefix = names.nesting.iter().min_by_key(|prefix| prefix.len()).copied().unwrap_or_default();
    let mut tensors: Tensors =
        named(values, names).into_iter().map(|(name, data)| (format!("{prefix}{name}"), data)).collect();
    let mut notes = Vec::new();
    match pipeline.tokenizer.component(names.format, pipeline.image_shape()) {
        Some(part) => tensors.extend(part.tensors),
        None => {
            notes.push("the file has no autoencoder: the tokenizer of the run has no form in this format".to_string())
        }
    }
    let parts = pipeline.conditioner.as_ref().map(|conditioner| conditioner.components(names.format)).transpose()?;
    let text: Tensors = parts.into_iter().flatten().flat_map(|part| part.tensors).collect();
    if text.is_empty() {
        notes.push("the file has no text encoder: the conditioner of the run has no form in this format".to_string());
    }
    tensors.extend(text);
    let file = TensorFile { name: "model.ckpt".into(), tensors, entry: "state_dict", metadata: Vec::new() };
    Ok(Exported { files: vec![file], library: "pytorch", notes, ..Exported::default() })
}

/// Returns a JSON object.
pub fn object(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Object(entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect::<Map<_, _>>())
}

//! The parts of a pipeline in the layout of another program: what a network, a tokenizer and a conditioner contribute
//! to an exported folder.

use crate::checkpoint::tensor_file::{Entry, foreign_dtype, write_atomically, write_tensors};
use crate::error::{Error, Result};
use burn::tensor::TensorData;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Version of `diffusers` whose configuration entries are written.
const DIFFUSERS_VERSION: &str = "0.32.0";

/// A part of a pipeline that is stored in a folder of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Component {
    /// Name of the folder, and of the part in the pipeline's index.
    pub folder: &'static str,
    /// Python library of the part's class.
    pub library: &'static str,
    /// Name of the part's class.
    pub class: &'static str,
    /// Name of the configuration file.
    pub config_file: &'static str,
    /// Entries of the configuration.
    pub config: Map<String, Value>,
    /// Name of the file of weights; empty if the part has no weights.
    pub weights_file: &'static str,
    /// The weights, under the names of the format.
    pub tensors: Vec<(String, TensorData)>,
    /// Other files of the folder: name and content.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

/// A network and its process in the layout of `diffusers`.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffusersNetwork {
    /// The class of the pipeline that samples with the network.
    pub pipeline: &'static str,
    /// Folders of the other parts that the pipeline needs.
    pub needs: &'static [&'static str],
    /// The network and its scheduler.
    pub components: Vec<Component>,
    /// Further entries of the pipeline's index.
    pub index: Map<String, Value>,
    /// Lines of Python after the pipeline `pipe` was opened; empty if it samples as it is.
    pub setup: &'static str,
    /// Whether the pipeline's `guidance_scale` is the guidance number of the network, which then takes one pass.
    pub guidance_input: bool,
}

/// The file that holds the weights of a network in its official format.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfficialFile {
    /// Name of the file.
    pub name: &'static str,
    /// Entry of the file under which the weights are stored; empty if the file is a flat dictionary.
    pub entry: &'static str,
    /// Tensors of the official network that are not parameters.
    pub buffers: Vec<(String, TensorData)>,
}

impl Component {
    /// Returns the entries that every configuration of `diffusers` starts with.
    pub fn diffusers_config(class: &str) -> Map<String, Value> {
        Map::from_iter([
            ("_class_name".to_string(), json!(class)),
            ("_diffusers_version".to_string(), json!(DIFFUSERS_VERSION)),
        ])
    }

    /// Returns the number of bytes of the weights.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, data)| data.as_bytes().len() as u64).sum()
    }

    /// Writes the part into its folder within `parent`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, parent: &Path) -> Result<()> {
        let folder = parent.join(self.folder);
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        write_json(&folder.join(self.config_file), &Value::Object(self.config.clone()))?;
        for (name, content) in &self.files {
            write_atomically(&folder.join(name), [&content[..]])?;
        }
        if self.weights_file.is_empty() {
            return Ok(());
        }
        write_for_torch(&self.tensors, &folder.join(self.weights_file), &[])
    }
}

/// Writes tensors as safetensors with the metadata that `transformers` and `diffusers` ask for, and with `more`.
///
/// # Errors
/// If the file cannot be written.
pub fn write_for_torch(tensors: &[(String, TensorData)], path: &Path, more: &[(&str, String)]) -> Result<()> {
    let entries: Vec<Entry<'_>> = tensors
        .iter()
        .map(|(name, data)| (name.clone(), foreign_dtype(data.dtype()), data.shape().to_vec(), data.as_bytes()))
        .collect();
    let mut metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    metadata.extend(more.iter().map(|(key, value)| (key.to_string(), value.clone())));
    write_tensors(path, entries, Some(metadata))
}

/// Writes a JSON file, indented.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_atomically(path, [format!("{value:#}\n").as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tensor_file::header;

    #[test]
    fn a_component_is_a_folder_with_its_configuration_and_its_weights() {
        let folder = tempfile::tempdir().unwrap();
        let component = Component {
            folder: "unet",
            library: "diffusers",
            class: "UNet2DConditionModel",
            config_file: "config.json",
            config: Component::diffusers_config("UNet2DConditionModel"),
            weights_file: "model.safetensors",
            tensors: vec![("a".into(), TensorData::new(vec![1.0_f32, 2.0], [2]))],
            files: vec![("notes.txt", b"text".to_vec())],
        };
        assert_eq!(component.bytes(), 8);
        component.write(folder.path()).unwrap();
        let at = |name: &str| folder.path().join("unet").join(name);
        let config: Value = serde_json::from_slice(&fs::read(at("config.json")).unwrap()).unwrap();
        assert_eq!(config["_class_name"], "UNet2DConditionModel");
        assert_eq!(header(&at("model.safetensors")).unwrap().unwrap()["format"], "pt");
        assert_eq!(fs::read(at("notes.txt")).unwrap(), b"text");
    }
}

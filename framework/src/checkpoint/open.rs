//! Opens official files: `.pt`, `.pth`, `.ckpt` (zip and legacy pickles), `.safetensors`, and folders of shards.
//!
//! A pickle is only interpreted as far as the calls that rebuild tensors. Code that it names is never run.

use crate::checkpoint::pickle::{self, Stored};
use crate::checkpoint::tensor_file::header_bytes;
use crate::error::{Error, Result};
use burn::store::{ModuleStore, PytorchStore, SafetensorsStore, bridge, burn_pack};
use burn::tensor::TensorData;
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// The tensors of a file by name. Their values are read on demand.
pub type Tensors = BTreeMap<String, burn_pack::Tensor>;

/// Opens an official file, or a folder in the layout of `diffusers` and `transformers`: one file, or an index
/// of shards. The reader leaves out container entries that are not tensors.
///
/// # Errors
/// If the file is missing, damaged, or of an unknown format.
pub fn open(path: &Path) -> Result<Tensors> {
    if !path.exists() {
        return Err(Error::file(path, "no such file"));
    }
    if path.is_dir() {
        let Some(file) = WEIGHTS.iter().map(|name| path.join(name)).find(|file| file.exists()) else {
            return Err(Error::file(path, format!("the folder holds no weights; supported files are {WEIGHTS:?}")));
        };
        return open(&file);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => open_shards(path),
        Some("safetensors") => {
            names_once(path)?;
            read(SafetensorsStore::from_file(path).map_indices_contiguous(false), path)
        }
        _ => {
            pickle::check(path).map_err(|what| unreadable(path, &what))?;
            read(PytorchStore::from_file(path).map_indices_contiguous(false), path)
                .or_else(|refused| open_lightning(path).ok_or(refused))
        }
    }
}

/// Reads the weights of a Lightning container, `{"state_dict": .., "callbacks": {CLASS: ..}}`, which Burn's
/// reader refuses because of the class keys. Returns `None` if there are no weights.
fn open_lightning(path: &Path) -> Option<Tensors> {
    const KEY: &str = "state_dict";
    let mut tensors = Tensors::new();
    for Stored { name, dtype, shape, place } in pickle::tensors(path, KEY).ok()? {
        let (path, declared) = (path.to_path_buf(), shape.clone());
        let data = move || {
            let bytes = pickle::read(&path, place).map_err(burn_pack::Error::IoError)?;
            Ok(TensorData::from_bytes_vec(bytes, declared.clone(), dtype))
        };
        let name = format!("{KEY}.{name}");
        tensors.insert(name.clone(), bridge::deferred(name, dtype, shape.into(), None, data));
    }
    (!tensors.is_empty()).then_some(tensors)
}

/// Refuses a safetensors file whose header names a tensor twice, because readers would disagree on which one
/// counts.
fn names_once(path: &Path) -> Result<()> {
    struct Once;
    impl<'de> Deserialize<'de> for Once {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
            deserializer.deserialize_map(Self)
        }
    }
    impl<'de> Visitor<'de> for Once {
        type Value = Self;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of tensors by name")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self, A::Error> {
            let mut names = BTreeSet::new();
            while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                if let Some(twice) = names.replace(name) {
                    return Err(A::Error::custom(format!("it names `{twice}` twice")));
                }
            }
            Ok(self)
        }
    }
    let header = header_bytes(path)?;
    serde_json::from_slice(&header).map(|Once| ()).map_err(|e| unreadable(path, &format!("its header is invalid: {e}")))
}

/// Largest size in bytes of a text file that belongs to weights: an index, a configuration, a vocabulary.
const LARGEST_TEXT: u64 = 64 << 20;

/// Reads a text file that belongs to weights.
///
/// # Errors
/// If the file cannot be read, is not UTF-8, or is larger than 64 MiB.
pub fn text(path: &Path) -> Result<String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    if file.metadata().map_err(|e| Error::io(path, e))?.len() > LARGEST_TEXT {
        return Err(Error::file(path, format!("has more than {LARGEST_TEXT} bytes, the limit for such a file")));
    }
    let mut text = String::new();
    file.take(LARGEST_TEXT).read_to_string(&mut text).map_err(|e| Error::io(path, e))?;
    Ok(text)
}

/// File names of weights in a folder, best first.
const WEIGHTS: [&str; 8] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
];

fn read(mut store: impl ModuleStore<Error: fmt::Display>, path: &Path) -> Result<Tensors> {
    store.get_all_tensors().cloned().map_err(|what| unreadable(path, &what.to_string()))
}

fn unreadable(path: &Path, what: &str) -> Error {
    // A reader may quote any amount of the file.
    let what: String = what.chars().take(500).collect();
    Error::file(path, format!("cannot be read as a checkpoint (.pt, .pth, .ckpt, .bin, .safetensors): {what}"))
}

/// Opens the tensors that an index names, from the shards next to it.
fn open_shards(index: &Path) -> Result<Tensors> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } = serde_json::from_str(&text(index)?).map_err(|e| {
        Error::file(index, format!("is not an index of shards (`weight_map` from tensor to file): {e}"))
    })?;
    let mut tensors = Tensors::new();
    for shard in weight_map.values().collect::<BTreeSet<_>>() {
        // A shard must be in the same folder as its index.
        if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
            return Err(Error::file(index, format!("names the shard `{shard}`, which is not a plain file name")));
        }
        let path = index.with_file_name(shard);
        if path.extension().is_some_and(|extension| extension == "json") {
            return Err(Error::file(index, format!("names the shard `{shard}`, which is not a tensor file")));
        }
        tensors.extend(open(&path)?);
    }
    match weight_map.keys().find(|name| !tensors.contains_key(*name)) {
        Some(name) => Err(Error::file(index, format!("names `{name}`, but its shard does not contain it"))),
        None => Ok(tensors),
    }
}

/// Returns the folder `folder` in `path` if it exists (`path` is then a whole pipeline), or else `path`
/// itself.
pub(crate) fn within(path: &Path, folder: &str) -> PathBuf {
    let inner = path.join(folder);
    if !folder.is_empty() && inner.is_dir() { inner } else { path.to_path_buf() }
}

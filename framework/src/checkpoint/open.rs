//! Opens official files: zip and legacy pickles of torch.save, safetensors, and folders of shards. The content of a
//! file decides which of them it is, not its name.
//!
//! A pickle is only interpreted as far as the calls that rebuild tensors. Code that it names is never run.

use crate::checkpoint::element::{self, Element};
use crate::checkpoint::file_kind::{ACCEPTS, FileKind, file_kind, regular};
use crate::checkpoint::pickle::{self, Stored};
use crate::checkpoint::tensor_file::header_bytes;
use crate::error::{Error, Result};
use burn::store::{ModuleStore, PytorchStore, burn_pack};
use safetensors::tensor::Metadata;
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
    let tensors = match file_kind(path)? {
        FileKind::Json => open_shards(path),
        FileKind::Safetensors => open_safetensors(path),
        FileKind::Torch => {
            pickle::check(path).map_err(|what| unreadable(path, &what))?;
            let mut store = PytorchStore::from_file(path).map_indices_contiguous(false);
            let read = store.get_all_tensors().cloned().map_err(|what| unreadable(path, &what.to_string()));
            read.or_else(|refused| open_pickle(path).ok_or(refused))
        }
    }?;
    // Names are printed, and control characters in them could change what a terminal shows.
    match tensors.keys().find(|name| name.chars().any(char::is_control)) {
        Some(name) => Err(unreadable(path, &format!("the name of a tensor has control characters: {name:?}"))),
        None => Ok(tensors),
    }
}

/// Opens a safetensors file.
fn open_safetensors(path: &Path) -> Result<Tensors> {
    let header = header_bytes(path)?;
    names_once(path, &header)?;
    let damaged = |what: &dyn fmt::Display| unreadable(path, &format!("its header is invalid: {what}"));
    let layout: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(&e))?;
    let begin = 8 + header.len() as u64;
    let length = path.metadata().map_err(|e| Error::io(path, e))?.len();
    if begin + layout.data_len() as u64 != length {
        let declared = begin + layout.data_len() as u64;
        let why = if length < declared { "; the download or copy is incomplete" } else { "" };
        let what = format!("its header and its content are not fully covered: {length} of {declared} bytes{why}");
        return Err(unreadable(path, &what));
    }
    let mut tensors = Tensors::new();
    for (name, info) in layout.tensors() {
        let (start, end) = info.data_offsets;
        let tensor = match Element::of_safetensors(info.dtype) {
            Some(element) => {
                let place = (begin + start as u64, end - start);
                element::deferred(path, name.clone(), element, info.shape.clone(), place)
            }
            None => {
                let what = format!("the element type {} is not read", info.dtype);
                element::unreadable(name.clone(), info.shape.clone(), what)
            }
        };
        tensors.insert(name, tensor);
    }
    refuse_scaled(path, &layout)?;
    Ok(tensors)
}

/// Refuses eight-bit weights that are stored with separate scales. Read without their scales, they would be wrong.
fn refuse_scaled(path: &Path, layout: &Metadata) -> Result<()> {
    let all = layout.tensors();
    let is_float = |dtype| matches!(Element::of_safetensors(dtype), Some(Element::E4m3 | Element::E5m2));
    let eight_bit = all.values().any(|info| is_float(info.dtype));
    let is_scale = |name: &&String| {
        ["scale_weight", "weight_scale", "weight_scale_inv", "scaled_fp8"].iter().any(|ending| name.ends_with(ending))
    };
    match all.keys().filter(is_scale).min() {
        Some(name) if eight_bit => {
            let what = format!("its eight-bit weights have separate scales (`{name}`); use a file in 16 or 32 bits");
            Err(unreadable(path, &what))
        }
        _ => Ok(()),
    }
}

/// Reads the float tensors of a zip of `torch.save` that Burn's reader refuses: a Lightning container, whose
/// `callbacks` have classes as keys, or eight-bit floats. Returns `None` if there are none.
fn open_pickle(path: &Path) -> Option<Tensors> {
    let mut tensors = Tensors::new();
    for Stored { name, element, shape, place } in pickle::tensors(path).ok()? {
        tensors.insert(name.clone(), element::deferred(path, name, element, shape, place));
    }
    (!tensors.is_empty()).then_some(tensors)
}

/// Refuses a safetensors file whose header names a tensor twice, because readers would disagree on which one
/// counts.
fn names_once(path: &Path, header: &[u8]) -> Result<()> {
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
    serde_json::from_slice(header).map(|Once| ()).map_err(|e| unreadable(path, &format!("its header is invalid: {e}")))
}

/// Largest size in bytes of a text file that belongs to weights: an index, a configuration, a vocabulary.
const LARGEST_TEXT: u64 = 64 << 20;

/// Reads a text file that belongs to weights.
///
/// # Errors
/// If the file cannot be read, is not UTF-8, or is larger than 64 MiB.
pub fn text(path: &Path) -> Result<String> {
    use std::io::Read;
    regular(path)?;
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

fn unreadable(path: &Path, what: &str) -> Error {
    // A reader may quote any amount of the file.
    let what: String = what.chars().take(500).collect();
    Error::file(path, format!("cannot be read as a checkpoint ({ACCEPTS}): {what}"))
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
        if path.exists() && file_kind(&path)? == FileKind::Json {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tensor_file::{Entry, write_tensors};
    use burn::store::bridge;
    use safetensors::tensor::Dtype;

    fn written<'a>(tensors: &[(&str, Dtype, &'a [u8])]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        // The content is safetensors, whatever the name says.
        let path = folder.path().join("a.ckpt");
        let entry = |(name, dtype, bytes): &(&str, Dtype, &'a [u8])| -> Entry<'a> {
            (name.to_string(), *dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes)
        };
        write_tensors(&path, tensors.iter().map(entry).collect(), None).unwrap();
        (folder, path)
    }

    #[test]
    fn safetensors_are_read_under_any_name_and_eight_bit_floats_become_f32() {
        let (_folder, path) = written(&[
            ("e4m3", Dtype::F8_E4M3, &[0x38, 0xb8, 0x7e]),
            ("e5m2", Dtype::F8_E5M2, &[0x3c, 0xbc]),
            ("half", Dtype::F16, &[0x00, 0x3c]),
            ("odd", Dtype::F8_E8M0, &[0x01]),
        ]);
        let tensors = open(&path).unwrap();
        let values = |name: &str| bridge::to_data(&tensors[name]).unwrap().iter::<f32>().collect::<Vec<_>>();
        assert_eq!(values("e4m3"), [1.0, -1.0, 448.0]);
        assert_eq!(values("e5m2"), [1.0, -1.0]);
        assert_eq!(values("half"), [1.0]);
        // An unsupported type is an error only when its values are read.
        assert!(bridge::to_data(&tensors["odd"]).unwrap_err().to_string().contains("F8_E8M0"));
    }

    #[test]
    fn names_with_control_characters_are_refused() {
        let (_folder, path) = written(&[("a\u{1b}[2J", Dtype::U8, &[1])]);
        let said = open(&path).unwrap_err().to_string();
        assert!(said.contains("control characters: \"a\\u{1b}[2J\"") && !said.contains('\u{1b}'), "{said}");
    }

    #[test]
    fn eight_bit_weights_with_separate_scales_are_refused() {
        let one = 1.0_f32.to_le_bytes();
        let (_folder, path) = written(&[("a.scale_weight", Dtype::F32, &one), ("a.weight", Dtype::F8_E4M3, &[0x38])]);
        let said = open(&path).unwrap_err().to_string();
        assert!(said.contains("separate scales (`a.scale_weight`)"), "{said}");
    }
}

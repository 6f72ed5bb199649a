//! Checkpoints: our own format in this file, and published checkpoints in [`official`] (names, opening,
//! reading, writing).
//! How files are opened or named can be changed in this folder alone. A change to the layout of our own
//! format needs a new [`FORMAT`].
//!
//! A checkpoint is one safetensors file with weights, average, optimizer state, step and the resolved
//! document. It is written next to its final name and then renamed, so a killed run leaves either the whole
//! file or no file. Reading verifies a SHA-256 of the whole content.

pub mod component;
pub mod container;
mod element;
pub mod facts;
pub mod file_kind;
pub mod names;
pub mod official;
pub mod open;
mod pickle;
pub mod published_config;
mod recognise;
pub mod refit;
pub mod tensor_file;
mod torch_file;

use crate::error::{Error, Result};
use burn::tensor::TensorData;
use facts::DatasetFacts;
use file_kind::regular;
use safetensors::tensor::{Dtype, Metadata};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tensor_file::{Entry, foreign_dtype, hard_link, header, header_of, own_dtype, write_tensors};

/// Version of this layout. The name of every version starts with `ANY_FORMAT`.
pub const FORMAT: &str = "unguided-checkpoint-3";

/// The layout before it, which had no facts of the dataset, and is still read.
const EARLIER_FORMAT: &str = "unguided-checkpoint-2";
const ANY_FORMAT: &str = "unguided-checkpoint-";

/// Tensor names: `model/PATH` and `ema/PATH` per parameter, and `optimizer` for Burn's serialized state.
const MODEL: &str = "model";
const EMA: &str = "ema";
const OPTIMIZER: &str = "optimizer";

/// Number of bytes per read.
const PIECE: usize = 1 << 20;

/// Everything that a run needs to resume and that a sampler needs.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Completed optimizer steps.
    pub step: usize,
    /// The resolved pipeline document.
    pub document: String,
    /// Weights in training, by parameter path.
    pub model: BTreeMap<String, TensorData>,
    /// Exponential moving average of the weights, if the run keeps one.
    pub ema: Option<BTreeMap<String, TensorData>>,
    /// Values that the objective keeps between measurements.
    pub memory: BTreeMap<String, f64>,
    /// Sum and count of the training losses since the previous regular checkpoint.
    pub losses: (f64, usize),
    /// Optimizer state, as serialized by Burn.
    pub optimizer: Vec<u8>,
    /// Facts of the dataset; `None` if no dataset was read.
    pub dataset: Option<DatasetFacts>,
}

impl Checkpoint {
    /// Writes the checkpoint to `path`, atomically and with its checksum.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors: Vec<Entry<'_>> = Vec::new();
        for (group, values) in [(MODEL, Some(&self.model)), (EMA, self.ema.as_ref())] {
            for (name, data) in values.into_iter().flatten() {
                let dtype = foreign_dtype(data.dtype());
                tensors.push((format!("{group}/{name}"), dtype, data.shape().to_vec(), data.as_bytes()));
            }
        }
        tensors.push((OPTIMIZER.to_string(), Dtype::U8, vec![self.optimizer.len()], &self.optimizer));
        tensors.sort_by(|(name, ..), (other, ..)| name.cmp(other));
        let losses = format!("{} {}", self.losses.0, self.losses.1);
        let memory = serde_json::to_string(&self.memory).map_err(|e| Error::file(path, e.to_string()))?;
        let dataset = match &self.dataset {
            Some(facts) => serde_json::to_string(facts).map_err(|e| Error::file(path, e.to_string()))?,
            None => String::new(),
        };
        let mut checksum = Checksum::new(self.step, &[&losses, &memory, &self.document, &dataset]);
        for (name, dtype, shape, bytes) in &tensors {
            checksum.tensor(name, *dtype, shape, bytes.len());
            checksum.0.update(bytes);
        }
        let metadata = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("step".to_string(), self.step.to_string()),
            ("losses".to_string(), losses),
            ("memory".to_string(), memory),
            ("document".to_string(), self.document.clone()),
            ("dataset".to_string(), dataset),
            ("sha256".to_string(), checksum.text()),
        ]);
        write_tensors(path, tensors, Some(metadata))
    }

    /// Returns the name of a weight that is not finite, in training or averaged; `None` if all are finite.
    pub fn not_finite(&self) -> Option<&str> {
        let all = self.model.iter().chain(self.ema.iter().flatten());
        let mut wrong = all.filter(|(_, data)| match data.as_slice::<f32>() {
            // `0 * value` is NaN if the value is NaN or infinite, so the sum shows whether all are finite. It needs no
            // branch per value.
            Ok(values) => values.iter().map(|value| value * 0.0).sum::<f32>().is_nan(),
            Err(_) => data.iter::<f64>().any(|value| !value.is_finite()),
        });
        wrong.next().map(|(name, _)| name.as_str())
    }

    /// Reads and verifies a checkpoint.
    ///
    /// # Errors
    /// If the file is missing, truncated, altered, or not one of our checkpoints.
    pub fn load(path: &Path) -> Result<Self> {
        Self::read(path, &mut |_| true)
    }

    /// Reads and verifies a checkpoint, but keeps only what a sampler needs: the average, or the weights if
    /// there is no average. Either becomes `model`. For a run with an average and Adam's moments, this is a
    /// quarter of the file.
    ///
    /// # Errors
    /// If the file is missing, truncated, altered, or not one of our checkpoints.
    pub fn load_for_sampling(path: &Path) -> Result<Self> {
        // Tensors arrive sorted by name, so the average comes before the weights.
        let mut averaged = false;
        let mut checkpoint = Self::read(path, &mut |group| {
            averaged |= group == EMA;
            group == EMA || (group == MODEL && !averaged)
        })?;
        if let Some(average) = checkpoint.ema.take() {
            checkpoint.model = average;
        }
        Ok(checkpoint)
    }

    /// Reads a checkpoint tensor by tensor, sorted by name, and keeps the tensors of the groups that are
    /// `wanted`.
    fn read(path: &Path, wanted: &mut dyn FnMut(&str) -> bool) -> Result<Self> {
        let damaged = |what: String| Error::file(path, format!("damaged checkpoint: {what}"));
        let altered = |what: &dyn Display| damaged(format!("truncated or altered ({what})"));
        regular(path)?;
        let mut file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let header = header_of(&mut file, path)?;
        let layout: Metadata = serde_json::from_slice(&header).map_err(|e| altered(&e))?;
        let (begin, length) = (8 + header.len(), file.metadata().map_err(|e| Error::io(path, e))?.len());
        let declared = (begin + layout.data_len()) as u64;
        if declared != length {
            return Err(altered(&format!("{length} of {declared} bytes")));
        }
        let metadata = layout.metadata().as_ref();
        let metadata = match metadata.and_then(|metadata| Some((metadata, metadata.get("format")?))) {
            Some((metadata, format)) if format == FORMAT || format == EARLIER_FORMAT => metadata,
            Some((_, format)) if format.starts_with(ANY_FORMAT) => {
                let what = format!("is a checkpoint of another Unguided version ({format}); this one reads {FORMAT}");
                return Err(Error::file(path, what));
            }
            _ => {
                let what =
                    "is a safetensors file but not an Unguided checkpoint (no `format` in its metadata); use `convert`";
                return Err(Error::file(path, what));
            }
        };
        let get =
            |name: &str| metadata.get(name).cloned().ok_or_else(|| damaged(format!("its metadata has no `{name}`")));
        let step = get("step")?.parse().map_err(|_| damaged("its step is not a number".into()))?;
        let (document, losses, memory) = (get("document")?, get("losses")?, get("memory")?);
        consistent(path, step, &document).map_err(damaged)?;
        // The earlier layout has no `dataset`, so its checksum does not cover one.
        let dataset = metadata.get("dataset").cloned();
        if dataset.is_some() != (get("format")? == FORMAT) {
            return Err(altered(&"its layout is not that of its format"));
        }
        let texts: Vec<&str> = [Some(&losses), Some(&memory), Some(&document), dataset.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let mut checksum = Checksum::new(step, &texts);
        let (mut names, mut kept) = (layout.offset_keys(), Vec::new());
        names.sort();
        for name in names {
            let info = layout.info(&name).expect("the name comes from this layout");
            let (start, end) = info.data_offsets;
            checksum.tensor(&name, info.dtype, &info.shape, end - start);
            file.seek(SeekFrom::Start((begin + start) as u64)).map_err(|e| Error::io(path, e))?;
            let wanted = wanted(name.split('/').next().unwrap_or_default());
            let mut bytes = Vec::with_capacity(if wanted { end - start } else { PIECE });
            let mut rest = end - start;
            while rest > 0 {
                let (have, piece) = (bytes.len(), rest.min(PIECE));
                (&file).take(piece as u64).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
                if bytes.len() - have < piece {
                    return Err(altered(&"it shrank while it was read"));
                }
                checksum.0.update(&bytes[have..]);
                rest -= piece;
                if !wanted {
                    bytes.clear();
                }
            }
            if wanted {
                kept.push((name, info, bytes));
            }
        }
        if checksum.text() != get("sha256")? {
            return Err(damaged(
                "its content does not match its SHA-256; the file changed after it was written".into(),
            ));
        }
        let memory = serde_json::from_str(&memory).map_err(|e| damaged(format!("its `memory` is invalid: {e}")))?;
        let losses = sum_and_number(&losses).ok_or_else(|| damaged("its `losses` are not finite numbers".into()))?;
        let dataset = match dataset.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(serde_json::from_str(text).map_err(|e| damaged(format!("its `dataset` is invalid: {e}")))?)
            }
        };
        let mut checkpoint = Self { step, document, memory, losses, dataset, ..Self::default() };
        for (name, info, bytes) in kept {
            let values = match name.split_once('/') {
                None if name == OPTIMIZER => {
                    checkpoint.optimizer = bytes;
                    continue;
                }
                Some((MODEL, parameter)) => (&mut checkpoint.model, parameter),
                Some((EMA, parameter)) => (checkpoint.ema.get_or_insert_default(), parameter),
                _ => return Err(damaged(format!("unknown tensor `{name}`"))),
            };
            let dtype = own_dtype(info.dtype).ok_or_else(|| damaged(format!("`{name}` has type {:?}", info.dtype)))?;
            values.0.insert(values.1.to_string(), TensorData::from_bytes_vec(bytes, info.shape.clone(), dtype));
        }
        if let (false, Some(ema)) = (checkpoint.model.is_empty(), &checkpoint.ema)
            && !ema.keys().eq(checkpoint.model.keys())
        {
            return Err(damaged("its average has other parameters than its weights".into()));
        }
        Ok(checkpoint)
    }
}

/// Checks the step of a checkpoint against its file name and against the number of steps of its document.
///
/// # Errors
/// If they contradict each other. The text describes the contradiction.
fn consistent(path: &Path, step: usize, document: &str) -> std::result::Result<(), String> {
    if let Some(named) = step_of(path).filter(|named| *named != step) {
        return Err(format!("its name says step {named}, its content says step {step}"));
    }
    let document: serde_json::Value = serde_json::from_str(document).unwrap_or_default();
    match document.pointer("/train/steps").and_then(serde_json::Value::as_u64) {
        Some(last) if step as u64 > last => Err(format!("its step {step} is beyond the last step {last} of its run")),
        _ => Ok(()),
    }
}

/// Reads the metadata of a native checkpoint of any version from its header; `None` if the file is not a
/// native checkpoint.
///
/// # Errors
/// If the file cannot be read.
pub fn metadata(path: &Path) -> Result<Option<HashMap<String, String>>> {
    Ok(header(path)?.filter(|metadata| metadata.get("format").is_some_and(|f| f.starts_with(ANY_FORMAT))))
}

/// Makes `path` the best checkpoint of its folder, `best.safetensors`, if its mean loss is below the best
/// one's.
///
/// # Errors
/// If a file cannot be read or written.
pub fn keep_best(path: &Path) -> Result<()> {
    let loss = |path: &Path| -> Result<f64> {
        let losses = metadata(path)?.and_then(|metadata| sum_and_number(metadata.get("losses")?));
        Ok(losses.filter(|(_, count)| *count > 0).map_or(f64::INFINITY, |(sum, count)| sum / count as f64))
    };
    let best = path.with_file_name("best.safetensors");
    if best.exists() && loss(path)? >= loss(&best)? {
        return Ok(());
    }
    hard_link(path, &best)
}

fn sum_and_number(losses: &str) -> Option<(f64, usize)> {
    let (sum, count) = losses.split_once(' ')?;
    Some((sum.parse().ok().filter(|sum: &f64| sum.is_finite())?, count.parse().ok()?))
}

/// SHA-256 of a checkpoint. Each field is hashed after its length.
struct Checksum(Sha256);

impl Checksum {
    fn new(step: usize, texts: &[&str]) -> Self {
        let mut all = Self(Sha256::new());
        all.field(&(step as u64).to_le_bytes());
        texts.iter().for_each(|text| all.field(text.as_bytes()));
        all
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Hashes the name, type, shape and size of a tensor. The caller then hashes its values.
    fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: usize) {
        self.field(name.as_bytes());
        self.field(format!("{dtype:?} {shape:?}").as_bytes());
        self.0.update((bytes as u64).to_le_bytes());
    }

    fn text(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Lists the checkpoints of a run folder, oldest first.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if step_of(&path).is_some() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Parses the step of a checkpoint from its file name; `None` if the name has no step.
pub fn step_of(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// Returns the file name of the checkpoint at `step`. Names sort by step.
pub fn file_name(step: usize) -> String {
    format!("step-{step:09}.safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(ema: bool) -> Checkpoint {
        let values = |x: f32| BTreeMap::from([("layer.weight".to_string(), TensorData::new(vec![x; 6], [2, 3]))]);
        Checkpoint {
            step: 7,
            document: "{}".to_string(),
            model: values(1.0),
            ema: ema.then(|| values(2.0)),
            memory: BTreeMap::from([("scale".to_string(), 0.5)]),
            losses: (0.1 + 0.2, 3),
            // Longer than one piece.
            optimizer: (0..PIECE + 5).map(|i| i as u8).collect(),
            dataset: Some(DatasetFacts {
                class_names: None,
                items: 5,
                listing: "cd".to_string(),
                fingerprint: "ab".to_string(),
            }),
        }
    }

    #[test]
    fn what_was_saved_is_loaded_whole_or_for_sampling() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(7));
        for ema in [true, false] {
            let saved = written(ema);
            saved.save(&path).unwrap();
            let whole = Checkpoint::load(&path).unwrap();
            assert_eq!((&whole.model, &whole.ema), (&saved.model, &saved.ema));
            assert!(whole.optimizer == saved.optimizer && whole.losses == saved.losses && whole.memory == saved.memory);
            let sampling = Checkpoint::load_for_sampling(&path).unwrap();
            assert_eq!(Some(sampling.model), if ema { saved.ema } else { Some(saved.model) });
            assert_eq!((&whole.dataset, &sampling.dataset), (&saved.dataset, &saved.dataset));
            assert!(sampling.ema.is_none() && sampling.optimizer.is_empty());
            assert_eq!((sampling.step, sampling.document), (7, "{}".to_string()));
        }
    }

    #[test]
    fn one_bit_anywhere_is_noticed_also_in_what_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(7));
        written(true).save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        for place in (0..bytes.len()).step_by(bytes.len() / 40).chain(0..64).chain(bytes.len() - 64..bytes.len()) {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(Checkpoint::load(&path).is_err() && Checkpoint::load_for_sampling(&path).is_err(), "{place}");
        }
        for length in [0, 7, 8, 100, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            let said = Checkpoint::load_for_sampling(&path).unwrap_err().to_string();
            assert!(said.contains("truncated or altered"), "{length}: {said}");
        }
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        assert!(Checkpoint::load(&path).is_err());
    }

    #[test]
    fn sealed_metadata_that_contradict_each_other_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(7));
        let said = |checkpoint: &Checkpoint| {
            checkpoint.save(&path).unwrap();
            Checkpoint::load(&path).unwrap_err().to_string()
        };
        let step = Checkpoint { step: 8, ..written(true) };
        assert!(said(&step).contains("its name says step 7, its content says step 8"));
        let beyond = Checkpoint { document: "{\"train\":{\"steps\":6}}".into(), ..written(true) };
        assert!(said(&beyond).contains("its step 7 is beyond the last step 6"));
        let losses = Checkpoint { losses: (f64::NAN, 3), ..written(true) };
        assert!(said(&losses).contains("`losses` are not finite"));
        let mut average = written(true);
        average.ema.as_mut().unwrap().clear();
        average.ema.as_mut().unwrap().insert("other".into(), TensorData::new(vec![1.0_f32], [1]));
        assert!(said(&average).contains("its average has other parameters"));
    }

    #[test]
    fn weights_that_are_not_finite_are_named() {
        assert_eq!(written(true).not_finite(), None);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut checkpoint = written(true);
            let data = TensorData::new(vec![1.0, wrong], [2]);
            checkpoint.ema.as_mut().unwrap().insert("layer.bias".into(), data);
            assert_eq!(checkpoint.not_finite(), Some("layer.bias"));
        }
        // The largest finite values are finite.
        let mut checkpoint = written(false);
        checkpoint.model.insert("large".into(), TensorData::new(vec![f32::MAX; 3], [3]));
        assert_eq!(checkpoint.not_finite(), None);
    }

    #[test]
    fn checkpoints_of_other_versions_are_named_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(7));
        let metadata = HashMap::from([("format".to_string(), "unguided-checkpoint-1".to_string())]);
        write_tensors(&path, Vec::new(), Some(metadata)).unwrap();
        let said = Checkpoint::load(&path).unwrap_err().to_string();
        assert!(said.contains("(unguided-checkpoint-1); this one reads unguided-checkpoint-3"), "{said}");
    }
}

//! Checkpoints: one safetensors file that holds weights, average, optimizer, step and the resolved document.
//!
//! Written beside its final name and renamed, so a killed run leaves either the whole file or none. A SHA-256
//! over everything in it is checked on reading.

use crate::error::{Error, Result};
use burn::tensor::{DType, TensorData};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// The version of this layout.
const FORMAT: &str = "unguided-checkpoint-1";

/// Everything a run needs to go on, and everything a sampler needs.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: usize,
    /// The resolved pipeline document.
    pub document: String,
    /// Weights in training, by parameter path.
    pub model: BTreeMap<String, TensorData>,
    /// Their exponential moving average, if the run keeps one.
    pub ema: Option<BTreeMap<String, TensorData>>,
    /// What the objective remembers of its measurements.
    pub memory: BTreeMap<String, f64>,
    /// Mean training loss since the checkpoint before it; `None` where no training led to it.
    pub loss: Option<f64>,
    /// Optimizer state, as Burn writes it.
    pub optimizer: Vec<u8>,
}

impl Checkpoint {
    /// Writes it to `path`, atomically and with its checksum.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let groups = [("model", Some(&self.model)), ("ema", self.ema.as_ref())];
        let mut tensors = Vec::new();
        for (group, values) in groups {
            for (name, data) in values.into_iter().flatten() {
                tensors.push((
                    format!("{group}/{name}"),
                    foreign_dtype(data.dtype()),
                    data.shape().to_vec(),
                    data.as_bytes(),
                ));
            }
        }
        tensors.push(("optimizer".to_string(), Dtype::U8, vec![self.optimizer.len()], &self.optimizer[..]));
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                let view =
                    TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| Error::file(path, e.to_string()))?;
                Ok((name.clone(), view))
            })
            .collect::<Result<Vec<_>>>()?;
        let loss = self.loss.map_or(String::new(), |loss| loss.to_string());
        let memory = serde_json::to_string(&self.memory).map_err(|e| Error::file(path, e.to_string()))?;
        let checksum = checksum(&views, self.step, [&loss, &memory, &self.document]);
        let metadata = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("step".to_string(), self.step.to_string()),
            ("loss".to_string(), loss),
            ("memory".to_string(), memory),
            ("document".to_string(), self.document.clone()),
            ("sha256".to_string(), checksum),
        ]);
        write_tensors(path, views, Some(metadata))
    }

    /// Reads and verifies a checkpoint.
    ///
    /// # Errors
    /// If the file is missing, truncated, altered, or no checkpoint of ours.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        let damaged = |what: String| Error::file(path, format!("damaged checkpoint: {what}"));
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| damaged(format!("truncated or altered ({e})")))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(format!("truncated or altered ({e})")))?;
        let Some(metadata) = header.metadata().as_ref().filter(|m| m.get("format").is_some_and(|f| f == FORMAT)) else {
            return Err(Error::file(
                path,
                "a safetensors file, but no checkpoint of Unguided (no `format` in its metadata); use `convert`",
            ));
        };
        let get =
            |name: &str| metadata.get(name).cloned().ok_or_else(|| damaged(format!("no `{name}` in its metadata")));
        let step = get("step")?.parse().map_err(|_| damaged("its step is no number".into()))?;
        let (document, loss, memory) = (get("document")?, get("loss")?, get("memory")?);
        let mut views: Vec<(String, TensorView<'_>)> = file.tensors();
        views.sort_by(|a, b| a.0.cmp(&b.0));
        if checksum(&views, step, [&loss, &memory, &document]) != get("sha256")? {
            return Err(damaged(
                "its content does not match its SHA-256: bits have changed since it was written".into(),
            ));
        }
        let memory = serde_json::from_str(&memory).map_err(|e| damaged(format!("its memory: {e}")))?;
        let mut checkpoint = Self { step, document, memory, loss: loss.parse().ok(), ..Self::default() };
        for (name, view) in views {
            if name == "optimizer" {
                checkpoint.optimizer = view.data().to_vec();
                continue;
            }
            let (group, parameter) = name.split_once('/').ok_or_else(|| damaged(format!("unknown tensor `{name}`")))?;
            let values = match group {
                "model" => &mut checkpoint.model,
                "ema" => checkpoint.ema.get_or_insert_default(),
                _ => return Err(damaged(format!("unknown tensor `{name}`"))),
            };
            let dtype =
                own_dtype(view.dtype()).ok_or_else(|| damaged(format!("`{name}` has type {:?}", view.dtype())))?;
            let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
            values.insert(parameter.to_string(), data);
        }
        Ok(checkpoint)
    }

    /// The weights to sample from: the average where there is one.
    pub fn sampling_weights(&self) -> BTreeMap<String, TensorData> {
        self.ema.clone().unwrap_or_else(|| self.model.clone())
    }
}

/// The metadata of a native checkpoint, from its header alone; `None` if the file is none of ours.
///
/// # Errors
/// If the file cannot be read.
pub fn metadata(path: &Path) -> Result<Option<HashMap<String, String>>> {
    Ok(header(path)?.filter(|metadata| metadata.get("format").is_some_and(|format| format == FORMAT)))
}

/// The metadata of a safetensors file, from its header alone; `None` if it has none, or is no such file.
///
/// # Errors
/// If the file cannot be read.
pub fn header(path: &Path) -> Result<Option<HashMap<String, String>>> {
    /// Other entries are passed over, not kept: they may be anything.
    #[derive(serde::Deserialize)]
    struct Header {
        __metadata__: Option<HashMap<String, String>>,
    }
    Ok(serde_json::from_slice(&header_bytes(path)?).ok().and_then(|header: Header| header.__metadata__))
}

/// The header of a safetensors file as it stands there, or the beginning of a file that is none.
///
/// # Errors
/// If the file cannot be read.
pub fn header_bytes(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let (mut length, mut header) = ([0; 8], Vec::new());
    if file.read_exact(&mut length).is_ok() {
        // The format allows no longer one.
        let length = u64::from_le_bytes(length).min(100_000_000);
        file.take(length).read_to_end(&mut header).map_err(|e| Error::io(path, e))?;
    }
    Ok(header)
}

/// Makes `path` the best checkpoint of its folder, `best.safetensors`, if its loss is smaller than the best one's.
///
/// # Errors
/// If a file cannot be read or written.
pub fn keep_best(path: &Path) -> Result<()> {
    let loss = |path: &Path| -> Result<f64> {
        let loss = metadata(path)?.and_then(|metadata| metadata.get("loss")?.parse().ok());
        Ok(loss.unwrap_or(f64::INFINITY))
    };
    let (best, partial) = (path.with_file_name("best.safetensors"), path.with_file_name("best.partial"));
    if best.exists() && loss(path)? >= loss(&best)? {
        return Ok(());
    }
    // A second name of the same bytes costs no space; file systems without such names get a copy.
    let _ = fs::remove_file(&partial);
    fs::hard_link(path, &partial)
        .or_else(|_| fs::copy(path, &partial).map(drop))
        .and_then(|()| fs::rename(&partial, &best))
        .map_err(|e| Error::io(&best, e))
}

/// Writes a safetensors file, tensor by tensor: no second copy of them is held. It is either whole or absent, also after a
/// crash.
///
/// # Errors
/// If it cannot be written.
pub fn write_tensors(
    path: &Path,
    mut tensors: Vec<(String, TensorView<'_>)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let refused = |what: &dyn std::fmt::Display| Error::file(path, what.to_string());
    // As crate `safetensors` orders them: the widest numbers first, so that all are aligned.
    tensors.sort_by(|(name, a), (other, b)| b.dtype().cmp(&a.dtype()).then(name.cmp(other)));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, view)| {
        let start = end;
        end += view.data().len();
        (name.clone(), TensorInfo { dtype: view.dtype(), shape: view.shape().to_vec(), data_offsets: (start, end) })
    });
    let header = Metadata::new(metadata, infos.collect()).map_err(|e| refused(&e))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| refused(&e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    write_parts(path, [&length, &header[..]].into_iter().chain(tensors.iter().map(|(_, view)| view.data())))
}

/// Writes a file so that it is either whole or absent, also after a crash.
///
/// # Errors
/// If it cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_parts(path, [bytes])
}

fn write_parts<'a>(path: &Path, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
    use std::io::Write;
    let partial = path.with_extension("partial");
    let write = || {
        let mut file = std::io::BufWriter::new(fs::File::create(&partial)?);
        parts.into_iter().try_for_each(|part| file.write_all(part))?;
        file.into_inner()?.sync_all()
    };
    write().map_err(|e| Error::io(&partial, e))?;
    fs::rename(&partial, path).map_err(|e| Error::io(path, e))?;
    // The rename itself must reach the disk: sync the folder where the system can.
    if let Some(folder) = path.parent()
        && let Ok(folder) = fs::File::open(folder)
    {
        let _ = folder.sync_all();
    }
    Ok(())
}

fn checksum(views: &[(String, TensorView<'_>)], step: usize, texts: [&str; 3]) -> String {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(&(step as u64).to_le_bytes());
    texts.iter().for_each(|text| field(text.as_bytes()));
    for (name, view) in views {
        field(name.as_bytes());
        field(format!("{:?} {:?}", view.dtype(), view.shape()).as_bytes());
        field(view.data());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The safetensors data type of one of ours.
///
/// # Panics
/// If it is no float.
pub fn foreign_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        other => panic!("weights are floats, not {other:?}"),
    }
}

/// Our data type for one of a safetensors file; `None` if it holds no float.
pub fn own_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => return None,
    })
}

/// The checkpoints of a run folder, oldest first.
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
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with("step-") && name.ends_with(".safetensors") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The file name of the checkpoint at `step`; names sort by step.
pub fn file_name(step: usize) -> String {
    format!("step-{step:09}.safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_written_as_crate_safetensors_writes_them() {
        let bytes: Vec<u8> = (0..24).collect();
        let view = |dtype, shape: &[usize], count| TensorView::new(dtype, shape.to_vec(), &bytes[..count]).unwrap();
        let views = || {
            let all = [
                ("odd", view(Dtype::U8, &[3], 3)),
                ("narrow", view(Dtype::BF16, &[2, 2], 8)),
                ("b", view(Dtype::F32, &[3, 2], 24)),
                ("none", view(Dtype::F32, &[0], 0)),
                ("a", view(Dtype::F32, &[1], 4)),
            ];
            all.map(|(name, view)| (name.to_string(), view)).to_vec()
        };
        let metadata = || Some(HashMap::from([("format".to_string(), "a test".to_string())]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tensors.safetensors");
        write_tensors(&path, views(), metadata()).unwrap();
        assert!(fs::read(&path).unwrap() == safetensors::serialize(views(), metadata()).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the file");
    }
}

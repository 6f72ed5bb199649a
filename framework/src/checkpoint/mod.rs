//! Checkpoints: one safetensors file that holds weights, average, optimizer, step and the resolved document.
//!
//! Written beside its final name and renamed, so a killed run leaves either the whole file or none. A SHA-256
//! over everything in it is checked on reading.

use crate::error::{Error, Result};
use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The version of this layout, and what all versions begin with.
pub const FORMAT: &str = "unguided-checkpoint-2";
const ANY_FORMAT: &str = "unguided-checkpoint-";

/// What its tensors are called: the weights and their average, each before the path of a parameter, and Burn's bytes.
const MODEL: &str = "model";
const EMA: &str = "ema";
const OPTIMIZER: &str = "optimizer";

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

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
    /// Sum of the training losses since the regular checkpoint before it, and their number.
    pub losses: (f64, usize),
    /// Optimizer state, as Burn writes it.
    pub optimizer: Vec<u8>,
}

impl Checkpoint {
    /// Writes it to `path`, atomically and with its checksum.
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
        let mut checksum = Checksum::new(self.step, [&losses, &memory, &self.document]);
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
            ("sha256".to_string(), checksum.text()),
        ]);
        write_tensors(path, tensors, Some(metadata))
    }

    /// Reads and verifies a checkpoint.
    ///
    /// # Errors
    /// If the file is missing, truncated, altered, or no checkpoint of ours.
    pub fn load(path: &Path) -> Result<Self> {
        Self::read(path, &mut |_| true)
    }

    /// Reads and verifies a checkpoint, of which it keeps what a sampler needs: the average where there is one, or else the
    /// weights, as its `model`. With an average and Adam's moments that is a quarter of the file.
    ///
    /// # Errors
    /// If the file is missing, truncated, altered, or no checkpoint of ours.
    pub fn load_for_sampling(path: &Path) -> Result<Self> {
        // Names come in their order, the average before the weights.
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

    /// Reads a checkpoint tensor by tensor, in the order of their names, and keeps those of the groups that are `wanted`.
    fn read(path: &Path, wanted: &mut dyn FnMut(&str) -> bool) -> Result<Self> {
        let damaged = |what: String| Error::file(path, format!("damaged checkpoint: {what}"));
        let altered = |what: &dyn Display| damaged(format!("truncated or altered ({what})"));
        let mut file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let header = header_of(&mut file, path)?;
        let layout: Metadata = serde_json::from_slice(&header).map_err(|e| altered(&e))?;
        let (begin, length) = (8 + header.len(), file.metadata().map_err(|e| Error::io(path, e))?.len());
        let declared = (begin + layout.data_len()) as u64;
        if declared != length {
            return Err(altered(&format!("{length} bytes of {declared}")));
        }
        let metadata = layout.metadata().as_ref();
        let metadata = match metadata.and_then(|metadata| Some((metadata, metadata.get("format")?))) {
            Some((metadata, format)) if format == FORMAT => metadata,
            Some((_, format)) if format.starts_with(ANY_FORMAT) => {
                let what = format!("a checkpoint of another version of Unguided ({format}); this one reads {FORMAT}");
                return Err(Error::file(path, what));
            }
            _ => {
                let what =
                    "a safetensors file, but no checkpoint of Unguided (no `format` in its metadata); use `convert`";
                return Err(Error::file(path, what));
            }
        };
        let get =
            |name: &str| metadata.get(name).cloned().ok_or_else(|| damaged(format!("no `{name}` in its metadata")));
        let step = get("step")?.parse().map_err(|_| damaged("its step is no number".into()))?;
        let (document, losses, memory) = (get("document")?, get("losses")?, get("memory")?);
        let mut checksum = Checksum::new(step, [&losses, &memory, &document]);
        let (mut names, mut kept) = (layout.offset_keys(), Vec::new());
        names.sort();
        for name in names {
            let info = layout.info(&name).expect("a name of its own");
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
                    return Err(altered(&"it became shorter"));
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
                "its content does not match its SHA-256: bits have changed since it was written".into(),
            ));
        }
        let memory = serde_json::from_str(&memory).map_err(|e| damaged(format!("its memory: {e}")))?;
        let losses = sum_and_number(&losses).ok_or_else(|| damaged("its losses are no numbers".into()))?;
        let mut checkpoint = Self { step, document, memory, losses, ..Self::default() };
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
        Ok(checkpoint)
    }
}

/// The metadata of a native checkpoint of any version, from its header alone; `None` if the file is none of ours.
///
/// # Errors
/// If the file cannot be read.
pub fn metadata(path: &Path) -> Result<Option<HashMap<String, String>>> {
    Ok(header(path)?.filter(|metadata| metadata.get("format").is_some_and(|f| f.starts_with(ANY_FORMAT))))
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
    header_of(&mut fs::File::open(path).map_err(|e| Error::io(path, e))?, path)
}

fn header_of(file: &mut fs::File, path: &Path) -> Result<Vec<u8>> {
    let (mut length, mut header) = ([0; 8], Vec::new());
    if file.read_exact(&mut length).is_ok() {
        // The format allows no longer one.
        let length = u64::from_le_bytes(length).min(100_000_000);
        (&*file).take(length).read_to_end(&mut header).map_err(|e| Error::io(path, e))?;
    }
    Ok(header)
}

/// Makes `path` the best checkpoint of its folder, `best.safetensors`, if its loss is smaller than the best one's.
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
    second_name(path, &best)
}

/// Gives a file a second name, in place of what had it: the same bytes at no cost, or a copy where a file system has no such
/// names.
///
/// # Errors
/// If it cannot be written.
pub fn second_name(path: &Path, name: &Path) -> Result<()> {
    let partial = name.with_extension("partial");
    let _ = fs::remove_file(&partial);
    // A link is followed: its own name may mean nothing in another folder.
    fs::canonicalize(path)
        .and_then(|path| fs::hard_link(&path, &partial).or_else(|_| fs::copy(&path, &partial).map(drop)))
        .and_then(|()| fs::rename(&partial, name))
        .map_err(|e| Error::io(name, e))?;
    // Still there where both names were the file's before.
    let _ = fs::remove_file(&partial);
    Ok(())
}

fn sum_and_number(losses: &str) -> Option<(f64, usize)> {
    let (sum, count) = losses.split_once(' ')?;
    Some((sum.parse().ok()?, count.parse().ok()?))
}

/// A tensor of a safetensors file: name, type, shape, numbers.
pub type Entry<'a> = (String, Dtype, Vec<usize>, &'a [u8]);

/// Writes a safetensors file, tensor by tensor: no second copy of them is held. It is either whole or absent, also after a
/// crash.
///
/// # Errors
/// If it cannot be written.
pub fn write_tensors(
    path: &Path,
    mut tensors: Vec<Entry<'_>>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let refused = |what: &dyn Display| Error::file(path, what.to_string());
    // As crate `safetensors` orders them: the widest numbers first, so that all are aligned.
    tensors.sort_by(|(name, a, ..), (other, b, ..)| b.cmp(a).then(name.cmp(other)));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let start = end;
        end += bytes.len();
        (name.clone(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) })
    });
    let header = Metadata::new(metadata, infos.collect()).map_err(|e| refused(&e))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| refused(&e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    write_atomically(path, [&length, &header[..]].into_iter().chain(tensors.into_iter().map(|(.., bytes)| bytes)))
}

/// Writes the parts of a file one after another, so that it is either whole or absent, also after a crash.
///
/// # Errors
/// If it cannot be written.
pub fn write_atomically<'a>(path: &Path, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
    let partial = path.with_extension("partial");
    // It may be a second name, whose bytes are not ours to overwrite.
    let _ = fs::remove_file(&partial);
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

/// SHA-256 of a checkpoint: of its fields, each behind its length.
struct Checksum(Sha256);

impl Checksum {
    fn new(step: usize, texts: [&str; 3]) -> Self {
        let mut all = Self(Sha256::new());
        all.field(&(step as u64).to_le_bytes());
        texts.iter().for_each(|text| all.field(text.as_bytes()));
        all
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// What stands before the numbers of a tensor, which come next.
    fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: usize) {
        self.field(name.as_bytes());
        self.field(format!("{dtype:?} {shape:?}").as_bytes());
        self.0.update((bytes as u64).to_le_bytes());
    }

    fn text(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The safetensors data type of one of ours.
///
/// # Panics
/// If no tensor of ours has it: they are floats, ids and classes.
pub fn foreign_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        other => panic!("{other:?} tensors are not written"),
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
        if step_of(&path).is_some() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The step of a checkpoint, from its file name; `None` if it is not named by its step.
pub fn step_of(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// The file name of the checkpoint at `step`; names sort by step.
pub fn file_name(step: usize) -> String {
    format!("step-{step:09}.safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    #[test]
    fn tensors_are_written_as_crate_safetensors_writes_them() {
        let bytes: Vec<u8> = (0..24).collect();
        let all: Vec<(&str, Dtype, &[usize], usize)> = vec![
            ("odd", Dtype::U8, &[3], 3),
            ("narrow", Dtype::BF16, &[2, 2], 8),
            ("b", Dtype::F32, &[3, 2], 24),
            ("none", Dtype::F32, &[0], 0),
            ("a", Dtype::F32, &[1], 4),
        ];
        let views = all.iter().map(|(name, dtype, shape, count)| {
            (name.to_string(), TensorView::new(*dtype, shape.to_vec(), &bytes[..*count]).unwrap())
        });
        let stored =
            all.iter().map(|(name, dtype, shape, count)| (name.to_string(), *dtype, shape.to_vec(), &bytes[..*count]));
        let metadata = || Some(HashMap::from([("format".to_string(), "a test".to_string())]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tensors.safetensors");
        write_tensors(&path, stored.collect(), metadata()).unwrap();
        assert!(fs::read(&path).unwrap() == safetensors::serialize(views, metadata()).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the file");
    }

    fn written(ema: bool) -> Checkpoint {
        let values = |x: f32| BTreeMap::from([("layer.weight".to_string(), TensorData::new(vec![x; 6], [2, 3]))]);
        Checkpoint {
            step: 7,
            document: "{}".to_string(),
            model: values(1.0),
            ema: ema.then(|| values(2.0)),
            memory: BTreeMap::from([("scale".to_string(), 0.5)]),
            losses: (0.1 + 0.2, 3),
            // Of more than a piece.
            optimizer: (0..PIECE + 5).map(|i| i as u8).collect(),
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
    fn checkpoints_of_other_versions_are_named_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(7));
        let metadata = HashMap::from([("format".to_string(), "unguided-checkpoint-1".to_string())]);
        write_tensors(&path, Vec::new(), Some(metadata)).unwrap();
        let said = Checkpoint::load(&path).unwrap_err().to_string();
        assert!(said.contains("(unguided-checkpoint-1); this one reads unguided-checkpoint-2"), "{said}");
    }

    #[test]
    fn a_second_name_shares_no_bytes_with_what_is_written_next() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_atomically(&at("step.safetensors"), [b"first".as_slice()]).unwrap();
        // Twice: the second time both names are the file's already.
        for _ in 0..2 {
            second_name(&at("step.safetensors"), &at("best.safetensors")).unwrap();
            second_name(&at("best.safetensors"), &at("step.safetensors")).unwrap();
        }
        write_atomically(&at("step.safetensors"), [b"second".as_slice()]).unwrap();
        assert_eq!(fs::read(at("best.safetensors")).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left over");
    }

    #[cfg(unix)]
    #[test]
    fn a_second_name_of_a_link_is_one_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("inner")).unwrap();
        fs::write(at("file"), "bytes").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        second_name(&at("link"), &at("inner/name")).unwrap();
        assert_eq!(fs::read(at("inner/name")).unwrap(), b"bytes");
    }
}

//! Safetensors files: atomic writing, hard links, and reading of headers.

use crate::checkpoint::file_kind::regular;
use crate::error::{Error, Result};
use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt::Display;
use std::fs;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Reads the metadata of a safetensors file from its header; `None` if the file has none, or is not a
/// safetensors file.
///
/// # Errors
/// If the file cannot be read.
pub fn header(path: &Path) -> Result<Option<HashMap<String, String>>> {
    /// The other entries of a header are skipped, because they may be anything.
    #[derive(serde::Deserialize)]
    struct Header {
        __metadata__: Option<HashMap<String, String>>,
    }
    Ok(serde_json::from_slice(&header_bytes(path)?).ok().and_then(|header: Header| header.__metadata__))
}

/// Reads the raw header of a safetensors file. For any other file, it returns some of its first bytes.
///
/// # Errors
/// If the file cannot be read.
pub fn header_bytes(path: &Path) -> Result<Vec<u8>> {
    regular(path)?;
    header_of(&mut fs::File::open(path).map_err(|e| Error::io(path, e))?, path)
}

pub(crate) fn header_of(file: &mut fs::File, path: &Path) -> Result<Vec<u8>> {
    let (mut length, mut header) = ([0; 8], Vec::new());
    if file.read_exact(&mut length).is_ok() {
        // The format allows at most 100 MB.
        let length = u64::from_le_bytes(length).min(100_000_000);
        (&*file).take(length).read_to_end(&mut header).map_err(|e| Error::io(path, e))?;
    }
    Ok(header)
}

/// Makes `name` a hard link to a file and replaces any file of that name. It copies the file if the file
/// system has no hard links.
///
/// # Errors
/// If the link or copy cannot be written.
pub fn hard_link(path: &Path, name: &Path) -> Result<()> {
    let partial = partial(name);
    let _ = fs::remove_file(&partial);
    // Follow a symbolic link: its relative target may not exist in another folder.
    fs::canonicalize(path)
        .and_then(|path| fs::hard_link(&path, &partial).or_else(|_| fs::copy(&path, &partial).map(drop)))
        .and_then(|()| fs::rename(&partial, name))
        .map_err(|e| Error::io(name, e))?;
    // rename(2) does nothing if both paths are links to the same inode, so remove the temporary link.
    let _ = fs::remove_file(&partial);
    Ok(())
}

/// A tensor of a safetensors file: name, type, shape, bytes.
pub type Entry<'a> = (String, Dtype, Vec<usize>, &'a [u8]);

/// Writes a safetensors file tensor by tensor, without a second copy of the values. The file is either
/// complete or absent, even after a crash.
///
/// # Errors
/// If the file cannot be written.
pub fn write_tensors(
    path: &Path,
    mut tensors: Vec<Entry<'_>>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let refused = |what: &dyn Display| Error::file(path, what.to_string());
    // The order of the crate `safetensors`: widest element type first, which aligns every tensor.
    tensors.sort_by(|(name, a, ..), (other, b, ..)| b.cmp(a).then(name.cmp(other)));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let start = end;
        end += bytes.len();
        (name.clone(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) })
    });
    let header = Metadata::new(metadata, infos.collect()).map_err(|e| refused(&e))?;
    let mut header = serde_json::to_value(&header).map_err(|e| refused(&e))?;
    // The metadata are in a hash map. In sorted order, equal content gives equal bytes.
    header.get_mut("__metadata__").and_then(Value::as_object_mut).into_iter().for_each(Map::sort_keys);
    let mut header = serde_json::to_vec(&header).map_err(|e| refused(&e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    write_atomically(path, [&length, &header[..]].into_iter().chain(tensors.into_iter().map(|(.., bytes)| bytes)))
}

/// Writes the parts of a file one after another. The file is either complete or absent, even after a crash.
///
/// # Errors
/// If the file cannot be written.
pub fn write_atomically<'a>(path: &Path, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
    atomically(path, |file| parts.into_iter().try_for_each(|part| file.write_all(part)))
}

/// Creates a file with the content that `write` writes. The file is either complete or absent, even after a crash. A
/// failed write leaves no file.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    let partial = partial(path);
    // `partial` may be a leftover hard link to another checkpoint. Unlink it instead of truncating the shared
    // file.
    let _ = fs::remove_file(&partial);
    let written = || {
        let mut file = BufWriter::new(fs::File::create(&partial)?);
        write(&mut file)?;
        file.into_inner()?.sync_all()
    };
    if let Err(error) = written() {
        let _ = fs::remove_file(&partial);
        return Err(Error::io(&partial, error));
    }
    fs::rename(&partial, path).map_err(|e| Error::io(path, e))?;
    // The rename itself must reach the disk, so sync the folder if the system can.
    if let Some(folder) = path.parent()
        && let Ok(folder) = fs::File::open(folder)
    {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Returns the name under which a file is written before it is complete: its own name and `.partial`. The ending stays,
/// so that `a.pt` and `a.bin` have different partial names.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

/// Converts our data type to the safetensors type.
///
/// # Panics
/// If the type is not one that we write. We write floats, ids and classes.
pub fn foreign_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        other => panic!("tensors of type {other:?} are not written"),
    }
}

/// Converts a safetensors type to our data type; `None` if it is not a float type.
pub fn own_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => return None,
    })
}

/// Writes named tensors as safetensors.
///
/// # Errors
/// If the file cannot be written.
pub fn save_tensors(tensors: &[(String, TensorData)], path: &Path) -> Result<()> {
    let stored = tensors.iter().map(|(name, data)| {
        let dtype = foreign_dtype(data.dtype());
        (name.clone(), dtype, data.shape().to_vec(), data.as_bytes())
    });
    write_tensors(path, stored.collect(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    #[test]
    fn a_failed_write_leaves_nothing_and_names_that_differ_in_their_ending_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("model.partial"), "a file of the user").unwrap();
        let failed = atomically(&path("model.pt"), |file| {
            file.write_all(b"half")?;
            Err(std::io::Error::other("the disk is full"))
        });
        assert!(failed.unwrap_err().to_string().contains("the disk is full"));
        assert!(!path("model.pt").exists() && fs::read_dir(folder.path()).unwrap().count() == 1);
        atomically(&path("model.pt"), |file| {
            write_atomically(&path("model.safetensors"), [&b"inner"[..]]).unwrap();
            file.write_all(b"outer")
        })
        .unwrap();
        assert_eq!(fs::read(path("model.pt")).unwrap(), b"outer");
        assert_eq!(fs::read(path("model.safetensors")).unwrap(), b"inner");
        assert_eq!(fs::read(path("model.partial")).unwrap(), b"a file of the user");
    }

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
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the file remains");
    }

    #[test]
    fn a_second_name_shares_no_bytes_with_what_is_written_next() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_atomically(&at("step.safetensors"), [b"first".as_slice()]).unwrap();
        // In the second round, both names already link to the same file.
        for _ in 0..2 {
            hard_link(&at("step.safetensors"), &at("best.safetensors")).unwrap();
            hard_link(&at("best.safetensors"), &at("step.safetensors")).unwrap();
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
        hard_link(&at("link"), &at("inner/name")).unwrap();
        assert_eq!(fs::read(at("inner/name")).unwrap(), b"bytes");
    }
}

//! Writes tensors as `torch.save` does: a zip that holds a pickle of their names, and one storage per tensor.

use crate::checkpoint::tensor_file::atomically;
use crate::error::{Error, Result};
use burn::tensor::{DType, TensorData};
use std::io::{Error as IoError, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The folder within the zip.
const ROOT: &str = "archive";
/// torch aligns storages, so that they can be mapped.
const ALIGNMENT: u16 = 64;

/// Writes named tensors as a dictionary of `torch.save`: `{name: tensor}`, or `{entry: {name: tensor}}`.
///
/// # Errors
/// If the file cannot be written, or a tensor is neither a float nor an i64 tensor.
pub(crate) fn save(tensors: &[(String, TensorData)], path: &Path, entry: &str) -> Result<()> {
    let pickle = pickle(tensors, entry).map_err(|what| Error::file(path, what))?;
    atomically(path, |file| {
        let failed = |error: zip::result::ZipError| IoError::other(error);
        let mut archive = ZipWriter::new(file);
        let mut add = |name: String, bytes: &[u8]| {
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(bytes.len() >= u32::MAX as usize)
                .with_alignment(ALIGNMENT);
            archive.start_file(format!("{ROOT}/{name}"), options).map_err(failed)?;
            archive.write_all(bytes)
        };
        add("data.pkl".into(), &pickle)?;
        add("byteorder".into(), b"little")?;
        for (i, (_, data)) in tensors.iter().enumerate() {
            add(format!("data/{i}"), data.as_bytes())?;
        }
        add("version".into(), b"3\n")?;
        archive.finish().map_err(failed).map(drop)
    })
}

/// Returns the pickle of a dictionary from names to tensors, within a dictionary of the one key `entry` unless that is
/// empty. Storage `i` holds the values of tensor `i`.
fn pickle(tensors: &[(String, TensorData)], entry: &str) -> std::result::Result<Vec<u8>, String> {
    // Protocol 2, an empty dictionary, and a mark before its items.
    let mut out = b"\x80\x02}(".to_vec();
    if !entry.is_empty() {
        text(&mut out, entry);
        out.extend(b"}(");
    }
    for (i, (name, data)) in tensors.iter().enumerate() {
        let class = match data.dtype() {
            DType::F64 => "DoubleStorage",
            DType::F32 => "FloatStorage",
            DType::F16 => "HalfStorage",
            DType::BF16 => "BFloat16Storage",
            DType::I64 => "LongStorage",
            other => return Err(format!("`{name}` has type {other:?}, which is not written for torch")),
        };
        let shape = data.shape().to_vec();
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{class}\n").as_bytes());
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        number(&mut out, shape.iter().product());
        out.extend(b"tQ");
        number(&mut out, 0);
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        for all in [&shape, &strides] {
            out.push(b'(');
            all.iter().for_each(|n| number(&mut out, *n));
            out.push(b't');
        }
        // No gradient, no hooks.
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(if entry.is_empty() { &b"u."[..] } else { b"uu." });
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn number(out: &mut Vec<u8>, number: usize) {
    match i32::try_from(number) {
        Ok(small) => {
            out.push(b'J');
            out.extend(small.to_le_bytes());
        }
        Err(_) => {
            // A long integer of eight bytes.
            out.extend(b"\x8a\x08");
            out.extend((number as u64).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::open::open;
    use burn::store::bridge;

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ckpt");
        let tensors: Vec<(String, TensorData)> = vec![
            ("a.weight".into(), TensorData::new(vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])),
            ("b".into(), TensorData::new(vec![0.5_f32], [1])),
            ("c".into(), TensorData::new(vec![7_i64, -1], [1, 2])),
        ];
        for (entry, prefix) in [("", ""), ("ema", "ema.")] {
            save(&tensors, &path, entry).unwrap();
            let read = open(&path).unwrap();
            assert_eq!(read.len(), 3);
            for (name, data) in &tensors {
                assert_eq!(bridge::to_data(&read[&format!("{prefix}{name}")]).unwrap(), *data, "{name}");
            }
            // Our own reader of pickles agrees. It returns floats only.
            let own = crate::checkpoint::pickle::tensors(&path).unwrap();
            assert_eq!(own.len(), 2);
        }
    }
}

//! Hand-made files in the format of `torch.save`: pickles of tensors, and the zip around them.

use std::io::{Result, Seek, SeekFrom, Write};

/// A file in a zip, and the headers that describe it.
pub struct Entry<'a> {
    pub name: String,
    pub bytes: &'a [u8],
    /// Number of zeros after `bytes`. They are a hole in the file and take no disk space.
    pub hole: u32,
    /// 0 = stored, 8 = deflated.
    pub method: u16,
    /// Unpacked length in the header, which may be false.
    pub says: u32,
}

/// Writes a zip without checksums, as torch can.
pub fn zip(file: &mut (impl Write + Seek), entries: &[Entry<'_>]) -> Result<()> {
    let mut directory = Vec::new();
    for Entry { name, bytes, hole, method, says } in entries {
        let offset = file.stream_position()? as u32;
        let common = [
            &[20, 0, 0, 0][..],
            &method.to_le_bytes(),
            &[0; 8],
            &(bytes.len() as u32 + hole).to_le_bytes(),
            &says.to_le_bytes(),
            &(name.len() as u16).to_le_bytes(),
            &[0; 2],
        ]
        .concat();
        file.write_all(&[&b"PK\x03\x04"[..], &common, name.as_bytes(), bytes].concat())?;
        file.seek(SeekFrom::Current(i64::from(*hole)))?;
        let place = [&[0; 10][..], &offset.to_le_bytes()].concat();
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &common, &place, name.as_bytes()].concat());
    }
    let (count, at) = ((entries.len() as u16).to_le_bytes(), file.stream_position()? as u32);
    let size = directory.len() as u32;
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size.to_le_bytes(), &at.to_le_bytes(), &[0; 2]].concat();
    file.write_all(&[directory, end].concat())
}

pub fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

pub fn number(number: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &number.to_le_bytes()].concat()
}

fn numbers(all: &[i64]) -> Vec<u8> {
    [b"(".to_vec(), all.iter().flat_map(|n| number(*n)).collect(), b"t".to_vec()].concat()
}

/// Returns the pickle code of a tensor in the storage `key`, which is declared to hold `count` elements.
pub fn tensor(key: &str, count: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage = [&text("storage")[..], b"ctorch\nFloatStorage\n", &text(key), &text("cpu"), &number(count)].concat();
    let parts = [number(offset), numbers(shape), numbers(strides)].concat();
    [&b"ctorch._utils\n_rebuild_tensor_v2\n(("[..], &storage, b"tQ", &parts, b"\x89}tR"].concat()
}

pub fn dictionary(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&b"}("[..], key, value, b"u"].concat()
}

/// Returns the complete pickle of an object.
pub fn whole(object: &[u8]) -> Vec<u8> {
    [&b"\x80\x02"[..], object, b"."].concat()
}

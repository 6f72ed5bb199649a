//! Element types of tensors in official files, and the lazy reading of one tensor. Eight-bit floats become f32.
//!
//!   e4m3: (-1)^s 2^(e - 7) (1 + m / 8);  e = 0: (-1)^s 2^-6 m / 8;  e = 15 and m = 7: NaN; no infinity
//!   e5m2: the upper byte of an f16
//!
//! Source: arXiv:2209.05433 table 1.

use burn::store::{bridge, burn_pack};
use burn::tensor::{DType, TensorData};
use half::f16;
use safetensors::tensor::Dtype;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Element type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// A type that tensors also have in memory.
    Plain(DType),
    /// Eight-bit float with four exponent bits (`float8_e4m3fn`).
    E4m3,
    /// Eight-bit float with five exponent bits (`float8_e5m2`).
    E5m2,
}

impl Element {
    /// Returns the element type of a safetensors tensor; `None` if it is not read.
    pub(crate) fn of_safetensors(dtype: Dtype) -> Option<Self> {
        Some(Self::Plain(match dtype {
            Dtype::F8_E4M3 => return Some(Self::E4m3),
            Dtype::F8_E5M2 => return Some(Self::E5m2),
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::I64 => DType::I64,
            Dtype::I32 => DType::I32,
            Dtype::I16 => DType::I16,
            Dtype::I8 => DType::I8,
            Dtype::U64 => DType::U64,
            Dtype::U32 => DType::U32,
            Dtype::U16 => DType::U16,
            Dtype::U8 | Dtype::BOOL => DType::U8,
            _ => return None,
        }))
    }

    /// Returns the number of bytes per element in the file.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.size(),
            Self::E4m3 | Self::E5m2 => 1,
        }
    }

    /// Returns the type in memory.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::Plain(dtype) => dtype,
            Self::E4m3 | Self::E5m2 => DType::F32,
        }
    }

    fn data(self, bytes: Vec<u8>, shape: &[usize]) -> TensorData {
        let decoded = |decode: fn(u8) -> f32| {
            TensorData::new(bytes.iter().map(|byte| decode(*byte)).collect::<Vec<f32>>(), shape.to_vec())
        };
        match self {
            Self::Plain(dtype) => TensorData::from_bytes_vec(bytes, shape.to_vec(), dtype),
            Self::E4m3 => decoded(e4m3),
            Self::E5m2 => decoded(e5m2),
        }
    }
}

fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7),
    };
    if byte >> 7 == 1 { -size } else { size }
}

fn e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// Returns a tensor whose values are read from a file when they are requested. `place` is the offset and the size of
/// its values, in bytes.
pub(crate) fn deferred(
    path: &Path,
    name: String,
    element: Element,
    shape: Vec<usize>,
    place: (u64, usize),
) -> burn_pack::Tensor {
    let (path, declared) = (path.to_path_buf(), shape.clone());
    let data = move || {
        let bytes = read(&path, place).map_err(|e| burn_pack::Error::IoError(e.to_string()))?;
        Ok(element.data(bytes, &declared))
    };
    bridge::deferred(name, element.dtype(), shape.into(), None, data)
}

/// Returns a placeholder for a tensor that cannot be read. Reading its values returns the error `what`.
pub(crate) fn unreadable(name: String, shape: Vec<usize>, what: String) -> burn_pack::Tensor {
    bridge::deferred(name, DType::F32, shape.into(), None, move || Err(burn_pack::Error::IoError(what.clone())))
}

/// Reads bytes of a file, given their offset and number.
///
/// # Errors
/// If the file is too short or cannot be read.
pub(crate) fn read(path: &Path, (offset, size): (u64, usize)) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = vec![0; size];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_worked_by_hand() {
        // 0x38 = 0 0111 000: 2^0. 0x7e = 0 1111 110: 2^8 (1 + 6/8) = 448, the largest. 0x01: 2^-6 / 8 = 2^-9.
        for (byte, value) in
            [(0x00, 0.0), (0x38, 1.0), (0xb8, -1.0), (0x7e, 448.0), (0x01, 2_f32.powi(-9)), (0x3c, 1.5)]
        {
            assert_eq!(e4m3(byte), value, "{byte:#04x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        // 0x3c = 0 01111 00: 2^0. 0x7b = 0 11110 11: 2^15 (1 + 3/4) = 57344, the largest. 0x01: 2^-14 / 4 = 2^-16.
        for (byte, value) in [(0x00, 0.0), (0x3c, 1.0), (0xbc, -1.0), (0x7b, 57344.0), (0x01, 2_f32.powi(-16))] {
            assert_eq!(e5m2(byte), value, "{byte:#04x}");
        }
        assert!(e5m2(0x7c).is_infinite() && e5m2(0x7d).is_nan());
    }
}

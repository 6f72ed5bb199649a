//! The optimizer state as bytes. Burn writes the states of the parameters in the order of a hash table, so the bytes of
//! two equal states differ. Here they are sorted, and can be divided by parameter.

use crate::error::{Error, Result};
use burn::store::burn_pack::{self, Reader, Tensor, Writer};
use burn::tensor::Bytes;

fn unreadable(error: burn_pack::Error) -> Error {
    Error::Run(format!("the optimizer state cannot be read: {error}"))
}

/// Joins records of different parameters to one. Its bytes depend only on the states.
///
/// # Errors
/// If a record is damaged.
pub fn joined(records: Vec<Vec<u8>>) -> Result<Vec<u8>> {
    selected(records, &|_| true)
}

/// Returns the record of the parameters whose ids are wanted.
///
/// # Errors
/// If the record is damaged.
pub fn part(record: Vec<u8>, wanted: &dyn Fn(u64) -> bool) -> Result<Vec<u8>> {
    selected(vec![record], wanted)
}

fn selected(records: Vec<Vec<u8>>, wanted: &dyn Fn(u64) -> bool) -> Result<Vec<u8>> {
    // The name of every entry is the parameter's id, and `.` and the name of a field unless it is the parameter's path.
    let is_wanted = |name: &str| name.split('.').next().and_then(|id| id.parse::<u64>().ok()).is_none_or(wanted);
    let (mut tensors, mut scalars, mut paths) = (Vec::<(String, Tensor)>::new(), Vec::new(), Vec::new());
    for record in records {
        let reader = Reader::from_bytes(Bytes::from_bytes_vec(record)).map_err(unreadable)?;
        scalars.extend(reader.scalars().iter().map(|(name, value)| (name.clone(), *value)));
        paths.extend(reader.metadata().iter().map(|(id, path)| (id.clone(), path.clone())));
        for tensor in reader.into_tensors().map_err(unreadable)? {
            let (name, dtype, shape, id, bytes) = tensor.into_parts().map_err(unreadable)?;
            if is_wanted(&name) {
                tensors.push((name.clone(), Tensor::new(name, dtype, shape, id, bytes)));
            }
        }
    }
    tensors.sort_by(|(name, _), (other, _)| name.cmp(other));
    let mut writer = Writer::new(tensors.into_iter().map(|(_, tensor)| tensor).collect());
    for (name, value) in scalars.iter().filter(|(name, _)| is_wanted(name)) {
        writer = writer.with_scalar(name, *value);
    }
    for (id, path) in paths.iter().filter(|(id, _)| is_wanted(id)) {
        writer = writer.with_metadata(id, path);
    }
    let bytes = writer.into_bytes().map_err(|e| Error::Run(format!("the optimizer state cannot be written: {e}")))?;
    Ok(bytes.try_into_vec().unwrap_or_else(|bytes| bytes.to_vec()))
}

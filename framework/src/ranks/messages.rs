//! What the ranks tell rank 0 after a step, and what rank 0 tells the others after measuring.

use crate::data::loader::Unreadable;
use crate::error::{Error, Result};
use crate::ranks::collective::Collective;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Loss and logged means of one forward pass.
pub type PassValues = (f64, BTreeMap<String, f64>);

/// The part of a step's report that one rank knows. Numbers travel as bits, because JSON has no NaN.
#[derive(Default, Serialize, Deserialize)]
struct Part {
    passes: Vec<(u64, BTreeMap<String, u64>)>,
    skipped: Vec<(String, u64)>,
}

fn bits(values: &BTreeMap<String, f64>) -> BTreeMap<String, u64> {
    values.iter().map(|(name, value)| (name.clone(), value.to_bits())).collect()
}

fn values(bits: BTreeMap<String, u64>) -> BTreeMap<String, f64> {
    bits.into_iter().map(|(name, bits)| (name, f64::from_bits(bits))).collect()
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data has a JSON form")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Run(format!("a message of another rank is damaged: {e}")))
}

/// Returns the losses and logged means of all passes, in the order of the passes, and the skipped items. Rank 0 gets
/// those of all ranks, the others their own.
///
/// # Errors
/// If a message is damaged.
pub fn collect(
    ranks: &dyn Collective,
    passes: Vec<PassValues>,
    skipped: Vec<Unreadable>,
) -> Result<(Vec<PassValues>, Vec<Unreadable>)> {
    if ranks.size() == 1 {
        return Ok((passes, skipped));
    }
    let part = Part {
        passes: passes.iter().map(|(loss, logged)| (loss.to_bits(), bits(logged))).collect(),
        skipped: skipped.iter().map(|item| (item.error.clone(), item.epoch)).collect(),
    };
    let parts = ranks.collect(encode(&part));
    if ranks.rank() > 0 {
        return Ok((passes, skipped));
    }
    let (mut all, mut unreadable) = (Vec::new(), Vec::new());
    for bytes in parts {
        let part: Part = decode(&bytes)?;
        all.extend(part.passes.into_iter().map(|(loss, logged)| (f64::from_bits(loss), values(logged))));
        unreadable.extend(part.skipped.into_iter().map(|(error, epoch)| Unreadable { error, epoch }));
    }
    Ok((all, unreadable))
}

/// Returns the measurements of rank 0 on every rank; `None` if rank 0 was interrupted.
///
/// # Errors
/// If the message is damaged.
pub fn measured(
    ranks: &dyn Collective,
    measured: Option<BTreeMap<String, f64>>,
) -> Result<Option<BTreeMap<String, f64>>> {
    if ranks.size() == 1 {
        return Ok(measured);
    }
    let sent: Option<BTreeMap<String, u64>> = decode(&ranks.broadcast(encode(&measured.as_ref().map(bits))))?;
    Ok(sent.map(values))
}

/// Returns whether any rank sets each flag.
pub fn any<const N: usize>(ranks: &dyn Collective, flags: [bool; N]) -> [bool; N] {
    if ranks.size() == 1 {
        return flags;
    }
    let all = ranks.gather(&flags.map(|flag| f64::from(u8::from(flag))));
    std::array::from_fn(|i| all.iter().skip(i).step_by(N).any(|flag| *flag > 0.0))
}

//! Recognises the network in an official file: its format, the prefix of its names, and what else the file holds.

use crate::checkpoint::names::OfficialNames;
use crate::checkpoint::open::{Tensors, open, within};
use crate::error::{Error, Problem, Result};
use burn::store::burn_pack;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// Components that training wrappers insert into names: torch.compile, FSDP, activation checkpoints, DeepSpeed.
const INSERTED: [&str; 4] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];

/// A network that was found in a file.
pub(crate) struct Found<'a> {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its tensors, without the components that wrappers inserted.
    pub(crate) tensors: Tensors,
    /// The format that matches.
    pub(crate) names: &'a OfficialNames,
    /// The prefix of the network's names, such as `module.`.
    pub(crate) prefix: String,
    /// Components that wrappers inserted and that were removed.
    pub(crate) removed: Vec<String>,
}

/// How well a format and a prefix match: the number of names, and whether the format declares the prefix.
type Score = (usize, u8);

/// Opens a file and finds the network in it: the format and prefix that match the most names. `own` are our parameter
/// paths. Prefixes that the format declares are preferred, then prefixes of weight averages.
///
/// # Errors
/// If the file cannot be read, or matches no format.
pub(crate) fn recognise<'a>(
    own: &[&str],
    formats: &'a [OfficialNames],
    path: &Path,
    format: Option<&str>,
) -> Result<Found<'a>> {
    let candidates: Vec<&OfficialNames> =
        formats.iter().filter(|names| format.is_none_or(|format| format == names.format)).collect();
    let Some(folder) = candidates.first().map(|names| names.folder) else {
        let known: Vec<&str> = formats.iter().map(|names| names.format).collect();
        let asked = format.unwrap_or_default();
        return Err(Error::file(path, format!("the network has no format `{asked}`, only {known:?}")));
    };
    let path = within(path, folder);
    let (tensors, removed) = without_wrappers(open(&path)?);
    let mut best: Option<(Score, &OfficialNames, String)> = None;
    for names in &candidates {
        let theirs: HashSet<String> = own.iter().map(|own| (names.of)(own).name).collect();
        let counts = counts(&tensors, &theirs);
        let declared = names.nesting.iter().copied().chain([""]);
        let others = counts.keys().copied().filter(|prefix| !prefix.is_empty() && !names.nesting.contains(prefix));
        for prefix in declared.chain(others) {
            let count = counts.get(prefix).copied().unwrap_or_default();
            let is_declared = prefix.is_empty() || names.nesting.contains(&prefix);
            // A few equal names under a prefix are not enough to recognise this network.
            if count == 0 || !is_declared && 2 * count < theirs.len() {
                continue;
            }
            let score = (count, if is_declared { 2 } else { u8::from(is_average(prefix)) });
            if best.as_ref().is_none_or(|(most, ..)| score > *most) {
                best = Some((score, *names, prefix.to_string()));
            }
        }
    }
    match best {
        Some((_, names, prefix)) => Ok(Found { path, tensors, names, prefix, removed }),
        None => Err(unknown(&path, &tensors, &candidates, own)),
    }
}

/// Counts for each prefix how many of the names a file holds under it.
fn counts<'a>(tensors: &'a Tensors, names: &HashSet<String>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for key in tensors.keys() {
        let starts = key.match_indices('.').map(|(dot, _)| dot + 1);
        for start in [0].into_iter().chain(starts) {
            if names.contains(&key[start..]) {
                *counts.entry(&key[..start]).or_default() += 1;
            }
        }
    }
    counts
}

/// Whether a prefix names a moving average of the weights, such as `ema_model.` or `state_dict_ema.`.
fn is_average(prefix: &str) -> bool {
    prefix.split(['.', '_']).any(|word| word == "ema")
}

/// Removes the components that wrappers insert into names. Leaves the names as they are if two would become equal.
fn without_wrappers(tensors: Tensors) -> (Tensors, Vec<String>) {
    let is_inserted = |part: &&str| INSERTED.contains(part);
    let removed: BTreeSet<String> =
        tensors.keys().flat_map(|name| name.split('.').filter(is_inserted)).map(str::to_string).collect();
    let short = |name: &str| name.split('.').filter(|part| !is_inserted(part)).collect::<Vec<_>>().join(".");
    let distinct: BTreeSet<String> = tensors.keys().map(|name| short(name)).collect();
    if removed.is_empty() || distinct.len() < tensors.len() {
        return (tensors, Vec::new());
    }
    let renamed = tensors.into_iter().map(|(name, tensor): (String, burn_pack::Tensor)| (short(&name), tensor));
    (renamed.collect(), removed.into_iter().collect())
}

/// What happens to a tensor that is not a parameter: it is ignored, or it belongs to the network and is refused.
pub(crate) enum Left {
    /// It is ignored, for this reason.
    Ignored(String),
    /// It is a part of the network that the document lacks.
    Part,
}

/// Decides about a tensor that is not a parameter. `parts` are the first components of the network's names.
///
/// A tensor outside the network is left: it has another prefix, or it is neither within a part of the network nor named
/// like a weight. Leaving a part of the network would silently change what the network computes.
pub(crate) fn left(name: &str, names: &OfficialNames, prefix: &str, parts: &BTreeSet<&str>) -> Left {
    let within = name.strip_prefix(prefix);
    // A name may be inside the prefix or elsewhere in the container.
    let seen = within.unwrap_or(name);
    let named = |part: &str| seen.starts_with(part) || name.ends_with(part);
    if let Some((_, why)) = names.ignored.iter().find(|(part, _)| named(part)) {
        return Left::Ignored((*why).to_string());
    }
    let copy = names.nesting.iter().find(|other| **other != prefix && name.starts_with(**other));
    if let Some(other) = copy {
        return Left::Ignored(format!("the copy under `{}`", other.trim_end_matches('.')));
    }
    let Some(within) = within else { return Left::Ignored("outside the network".into()) };
    let first = within.split('.').next().unwrap_or_default();
    let is_weight = within.ends_with(".weight") || within.ends_with(".bias");
    if parts.contains(first) || is_weight { Left::Part } else { Left::Ignored("outside the network".into()) }
}

/// Describes a file that holds no network of these formats.
fn unknown(path: &Path, tensors: &Tensors, candidates: &[&OfficialNames], own: &[&str]) -> Error {
    let any = |parts: &[&str]| tensors.keys().any(|name| parts.iter().any(|part| name.contains(part)));
    let special = [
        (
            &["lora_up", "lora_down", "lora_A", "lora_B", ".lora.up", ".lora.down", "lokr_", "hada_w"][..],
            "a LoRA (low-rank changes of a network), not a whole network",
            "merge it into its network with the tool that made it, and name the merged file",
        ),
        (&["emb_params", "string_to_param"], "a textual inversion (an embedding), not a network", "name the network"),
        (&["control_model.", "controlnet_"], "a ControlNet, not the network that it controls", "name the network"),
        (
            &[".qweight", ".quant_map", ".absmax", ".quant_state"],
            "a quantized network",
            "use a file of the same network in 16 or 32 bits",
        ),
    ];
    if let Some((_, what, fix)) = special.into_iter().find(|(parts, ..)| any(parts)) {
        return Problem::new("", format!("{} is {what}", path.display())).fix(fix).into();
    }
    let mut sought: Vec<String> = Vec::new();
    for names in candidates {
        let name = format!("`{}`", (names.of)(own.first().copied().unwrap_or_default()).name);
        if !sought.contains(&name) {
            sought.push(name);
        }
    }
    let some: Vec<&str> = tensors.keys().take(3).map(String::as_str).collect();
    let what = format!("holds no {}, so it is not a checkpoint of this network", sought.join(" and no "));
    Error::file(path, format!("{what}; its first tensors are {some:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::{Layout, OFFICIAL, OfficialName};
    use crate::checkpoint::tensor_file::save_tensors;
    use burn::tensor::TensorData;
    use std::sync::Arc;

    const OWN: [&str; 3] = ["embed.weight", "blocks.0.weight", "blocks.1.weight"];

    fn formats() -> Vec<OfficialNames> {
        vec![OfficialNames {
            format: OFFICIAL,
            folder: "",
            of: Arc::new(|path| OfficialName { name: path.to_string(), layout: Layout::Same }),
            nesting: &["ema.", "model."],
            ignored: &[("opt.", "optimizer state")],
            optional: &[],
        }]
    }

    /// Returns the prefix and the removed components of a file with these names, or the error.
    fn found(names: &[String]) -> Result<(String, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors: Vec<_> = names.iter().map(|name| (name.clone(), TensorData::new(vec![0.0_f32], [1]))).collect();
        save_tensors(&tensors, &path).unwrap();
        let formats = formats();
        recognise(&OWN, &formats, &path, None).map(|found| (found.prefix, found.removed))
    }

    fn under(prefixes: &[&str]) -> Vec<String> {
        prefixes.iter().flat_map(|prefix| OWN.map(|name| format!("{prefix}{name}"))).collect()
    }

    #[test]
    fn wrappers_are_stripped_and_averages_are_preferred() {
        let none: Vec<String> = Vec::new();
        for (prefixes, expected) in [
            (&[""][..], ""),
            (&["module."], "module."),
            (&["model.", "ema."], "ema."),
            (&["model.module.", "ema.module."], "ema.module."),
            (&["online_model.", "ema_model."], "ema_model."),
            (&["state_dict.", "state_dict_ema."], "state_dict_ema."),
            (&["state_dict.model."], "state_dict.model."),
        ] {
            assert_eq!(found(&under(prefixes)).unwrap(), (expected.to_string(), none.clone()), "{prefixes:?}");
        }
        let compiled = vec!["_orig_mod".to_string()];
        assert_eq!(found(&under(&["_orig_mod."])).unwrap(), (String::new(), compiled.clone()));
        assert_eq!(found(&under(&["module._orig_mod."])).unwrap(), ("module.".to_string(), compiled.clone()));
        let blocks = ["embed.weight", "blocks.0._orig_mod.weight", "blocks.1._orig_mod.weight"].map(String::from);
        assert_eq!(found(&blocks).unwrap(), (String::new(), compiled));
    }

    #[test]
    fn a_lora_is_named_as_one() {
        let names = ["lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.alpha"].map(String::from);
        let said = found(&names).unwrap_err().to_string();
        assert!(said.contains("is a LoRA"), "{said}");
        let other = found(&["a.b".to_string()]).unwrap_err().to_string();
        assert!(other.contains("holds no `embed.weight`, so it is not a checkpoint of this network"), "{other}");
    }

    #[test]
    fn tensors_outside_the_network_are_left_and_parts_of_it_are_not() {
        let (formats, parts) = (formats(), BTreeSet::from(["embed", "blocks"]));
        let is_left = |name: &str, prefix: &str| matches!(left(name, &formats[0], prefix, &parts), Left::Ignored(_));
        for name in ["__index", "denoiser.sigmas", "step", "opt.state", "model.blocks.2.weight"] {
            assert!(is_left(name, ""), "{name}");
        }
        assert!(is_left("other.blocks.2.weight", "module."));
        for name in ["blocks.2.weight", "label_emb.weight", "blocks.0.scale"] {
            assert!(!is_left(name, ""), "{name}");
            assert!(!is_left(&format!("module.{name}"), "module."), "{name}");
        }
    }
}

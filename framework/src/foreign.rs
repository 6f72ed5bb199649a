//! Official checkpoints: what a parameter is called there, how it lies in the file, and reading and writing them.
//!
//! `.pt`, `.pth`, `.ckpt` (zip and legacy pickles) and `.safetensors`. Tensors are read one at a time. Of a pickle only
//! the calls that rebuild tensors are interpreted; no other code that it names is run.

use crate::checkpoint::write_atomically;
use crate::error::{Error, Result};
use crate::weights;
use burn::module::Module;
use burn::store::{ModuleStore, PytorchStore, SafetensorsStore, bridge, burn_pack};
use burn::tensor::{DType, TensorData};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// How a parameter lies in the official file, seen from ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same shape.
    Same,
    /// A linear weight: theirs `[out, in]`, ours `[in, out]`.
    Transposed,
    /// A patch-embedding convolution: theirs `[out, C, p, p]`, ours `[p p C, out]` with the channel last.
    PatchConv {
        /// Side of a patch.
        patch: usize,
    },
    /// The same numbers in another shape (theirs).
    Reshaped(Vec<usize>),
    /// One of `of` equal parts of their tensor, which holds several of our parameters one after another along its first
    /// dimension (fused queries, keys and values).
    Part {
        /// Which part, from 0.
        index: usize,
        /// How many parts.
        of: usize,
    },
}

/// The official name and layout of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignName {
    /// Name in the official file.
    pub name: String,
    /// Layout in the official file.
    pub layout: Layout,
}

/// The official files of one backbone or tokenizer.
#[derive(Clone)]
pub struct ForeignNames {
    /// The official name of the parameter at our path.
    pub of: Arc<dyn Fn(&str) -> ForeignName + Send + Sync>,
    /// Prefixes under which training containers nest the weights, best first, e.g. ``ema.`, `model.``.
    pub nesting: &'static [&'static str],
    /// Names in the file, by their beginning or end, that are not weights, and why they are ignored.
    pub ignored: &'static [(&'static str, &'static str)],
    /// Parameters of ours, by the beginning of their path, that a file may lack (a guidance input), and how they
    /// start then. The first match counts.
    pub optional: &'static [(&'static str, Fresh)],
}

/// How a parameter that the file lacks starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// At zero: the last layer of a new term, so that the network starts as the published one.
    Zero,
    /// As it was drawn: the layers below, which would not learn from zero.
    Drawn,
}

/// The tensors of a file by name, unread.
type Tensors = BTreeMap<String, burn_pack::Tensor>;

/// Opens an official file. Container entries that are no tensors are left out by the reader.
///
/// # Errors
/// If the file is missing, damaged, or of no known format.
pub fn open(path: &Path) -> Result<Tensors> {
    if !path.exists() {
        return Err(Error::file(path, "no such file"));
    }
    let safetensors = path.extension().is_some_and(|e| e == "safetensors");
    let tensors = if safetensors {
        SafetensorsStore::from_file(path)
            .map_indices_contiguous(false)
            .get_all_tensors()
            .cloned()
            .map_err(|e| e.to_string())
    } else {
        PytorchStore::from_file(path)
            .map_indices_contiguous(false)
            .get_all_tensors()
            .cloned()
            .map_err(|e| e.to_string())
    };
    tensors.map_err(|what| {
        Error::file(path, format!("cannot be read as a checkpoint (.pt, .pth, .ckpt, .safetensors): {what}"))
    })
}

/// What became of every tensor of a foreign file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Container prefix under which the weights were found.
    pub nesting: String,
    /// Tensors that became parameters: official name, our path.
    pub used: Vec<(String, String)>,
    /// Tensors left out, and why.
    pub ignored: Vec<(String, String)>,
    /// Parameters that the file lacks, and how they start.
    pub fresh: Vec<(String, Fresh)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nesting = if self.nesting.is_empty() { String::new() } else { format!(" (under `{}`)", self.nesting) };
        write!(
            f,
            "{} tensors used{nesting}, {} ignored, {} new parameters",
            self.tensors_used().len(),
            self.ignored.len(),
            self.fresh.len()
        )?;
        for (name, why) in &self.ignored {
            write!(f, "\n  ignored  {name}: {why}")?;
        }
        for (path, fresh) in &self.fresh {
            let how = match fresh {
                Fresh::Zero => "starts at zero",
                Fresh::Drawn => "starts as drawn",
            };
            write!(f, "\n  new      {path}: {how}")?;
        }
        Ok(())
    }
}

impl Report {
    /// The names of the used tensors; one that holds several parameters counts once.
    fn tensors_used(&self) -> BTreeSet<&str> {
        self.used.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Puts the weights of an official file into a network.
///
/// # Errors
/// If a weight is missing, unknown, or of another shape: all of them are named.
pub fn load<M: Module>(network: M, names: &ForeignNames, path: &Path) -> Result<(M, Report)> {
    let file = open(path)?;
    let parameters = weights::parameters(&network);
    // The best nesting under which the first parameter is found.
    let first = (names.of)(&parameters[0].0).name;
    let nesting = names
        .nesting
        .iter()
        .copied()
        .chain([""])
        .find(|prefix| file.contains_key(&format!("{prefix}{first}")))
        .ok_or_else(|| {
            let some: Vec<&str> = file.keys().take(3).map(String::as_str).collect();
            Error::file(
                path,
                format!("holds no `{first}`: it is no checkpoint of this network (its first tensors are {some:?})"),
            )
        })?;
    let mut report = Report { nesting: nesting.trim_end_matches('.').to_string(), ..Report::default() };
    let (mut values, mut considered) = (BTreeMap::new(), BTreeSet::new());
    let (mut problems, mut unknown) = (Vec::new(), Vec::new());
    for (own, shape, _) in &parameters {
        let ForeignName { name, layout } = (names.of)(own);
        let name = format!("{nesting}{name}");
        considered.insert(name.clone());
        let Some(tensor) = file.get(&name) else {
            match names.fresh(own) {
                Some(fresh) => {
                    values.extend(fresh.values(own, shape));
                    report.fresh.push((own.clone(), fresh));
                }
                None => problems.push(format!("missing `{name}` {:?}", layout.foreign_shape(shape))),
            }
            continue;
        };
        let data = bridge::to_data(tensor).map_err(|e| Error::file(path, format!("`{name}`: {e}")))?;
        match layout.to_own(data.convert_dtype(DType::F32), shape) {
            Ok(data) => {
                values.insert(own.clone(), data);
                report.used.push((name, own.clone()));
            }
            Err(what) => problems.push(format!("`{name}` {what}")),
        }
    }
    for name in file.keys() {
        if considered.contains(name) {
            continue;
        }
        // In the container as a whole, or beside the weights.
        let named = |part: &str| {
            let begins = |name: &str| name.starts_with(part);
            begins(name) || name.strip_prefix(nesting).is_some_and(begins) || name.ends_with(part)
        };
        let why = names.ignored.iter().find(|(part, _)| named(part)).map(|(_, why)| (*why).to_string());
        let copy = names.nesting.iter().find(|prefix| **prefix != nesting && name.starts_with(**prefix));
        match (why, copy) {
            (Some(why), _) => report.ignored.push((name.clone(), why)),
            (None, Some(prefix)) => {
                report.ignored.push((name.clone(), format!("the other weights, `{}`", prefix.trim_end_matches('.'))))
            }
            (None, None) => unknown.push(format!("unknown `{name}` {:?}", file[name].shape.to_vec())),
        }
    }
    refuse(path, &problems, &unknown)?;
    Ok((weights::import(network, &mut values), report))
}

/// Puts the numbers of a native checkpoint into a network that may have grown new optional parameters since.
///
/// # Errors
/// If a weight is missing, unknown, or of another shape: all of them are named.
pub fn adopt<M: Module>(
    network: M,
    names: &ForeignNames,
    mut from: BTreeMap<String, TensorData>,
    path: &Path,
) -> Result<(M, Report)> {
    let (mut report, mut values, mut problems) = (Report::default(), BTreeMap::new(), Vec::new());
    for (own, shape, _) in weights::parameters(&network) {
        match (from.remove(&own), names.fresh(&own)) {
            (Some(data), _) if data.shape().to_vec() == shape => {
                values.insert(own.clone(), data);
                report.used.push((own.clone(), own));
            }
            (Some(data), _) => problems.push(format!("`{own}` is {:?}, not {shape:?}", data.shape().to_vec())),
            (None, Some(fresh)) => {
                values.extend(fresh.values(&own, &shape));
                report.fresh.push((own, fresh));
            }
            (None, None) => problems.push(format!("missing `{own}`")),
        }
    }
    let unknown: Vec<String> = from.keys().map(|name| format!("unknown `{name}`")).collect();
    refuse(path, &problems, &unknown)?;
    Ok((weights::import(network, &mut values), report))
}

/// The first problems of a file as one error; nothing if there are none. What is wanted is named before what is not.
fn refuse(path: &Path, problems: &[String], unknown: &[String]) -> Result<()> {
    // A tensor that holds several parameters is named once.
    let mut named = BTreeSet::new();
    let problems: Vec<&String> = problems.iter().filter(|problem| named.insert(*problem)).collect();
    let shown: Vec<&str> = problems.iter().copied().take(8).chain(unknown.iter().take(4)).map(String::as_str).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let more = problems.len() + unknown.len() - shown.len();
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Err(Error::file(path, format!("does not fit what the document describes:\n  {}{more}", shown.join("\n  "))))
}

impl ForeignNames {
    /// How the parameter at `path` starts where a file lacks it; `None` = a file must have it.
    fn fresh(&self, path: &str) -> Option<Fresh> {
        self.optional.iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, fresh)| *fresh)
    }
}

impl Fresh {
    /// The numbers to put in place of those that were drawn.
    fn values(self, path: &str, shape: &[usize]) -> Option<(String, TensorData)> {
        let zeros = || TensorData::new(vec![0.0_f32; shape.iter().product()], shape.to_vec());
        (self == Self::Zero).then(|| (path.to_string(), zeros()))
    }
}

/// Writes a network under its official names and layouts, as safetensors.
///
/// # Errors
/// If the file cannot be written.
pub fn save<M: Module>(network: &M, names: &ForeignNames, path: &Path) -> Result<()> {
    let mut tensors: BTreeMap<String, BTreeMap<usize, TensorData>> = BTreeMap::new();
    for (own, data) in weights::export(network) {
        let ForeignName { name, layout } = (names.of)(&own);
        let index = if let Layout::Part { index, .. } = layout { index } else { 0 };
        tensors.entry(name).or_default().insert(index, layout.to_foreign(data));
    }
    let tensors = tensors.into_iter().map(|(name, parts)| (name, concatenate(parts.into_values().collect())));
    save_tensors(&tensors.collect::<Vec<_>>(), path)
}

/// Tensors one after another along their first dimension.
fn concatenate(mut parts: Vec<TensorData>) -> TensorData {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut shape = parts[0].shape().to_vec();
    shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
    let values = parts.into_iter().flat_map(|part| part.try_into_vec::<f32>().expect("weights are f32")).collect();
    TensorData::new::<f32, _>(values, shape)
}

/// Writes named tensors as safetensors.
///
/// # Errors
/// If the file cannot be written.
pub fn save_tensors(tensors: &[(String, TensorData)], path: &Path) -> Result<()> {
    use safetensors::tensor::{Dtype, TensorView};
    let views = tensors
        .iter()
        .map(|(name, data)| {
            let dtype = match data.dtype() {
                DType::F64 => Dtype::F64,
                DType::F32 => Dtype::F32,
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::BF16,
                DType::I64 => Dtype::I64,
                DType::I32 => Dtype::I32,
                other => panic!("{other:?} tensors are not written"),
            };
            let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes());
            Ok((name.clone(), view.map_err(|e| Error::file(path, e.to_string()))?))
        })
        .collect::<Result<Vec<_>>>()?;
    write_atomically(path, &safetensors::serialize(views, None).map_err(|e| Error::file(path, e.to_string()))?)
}

impl Layout {
    /// Their numbers in our layout.
    ///
    /// # Errors
    /// If their shape is not what this layout makes of `shape`.
    pub fn to_own(&self, data: TensorData, shape: &[usize]) -> std::result::Result<TensorData, String> {
        let (theirs, expected) = (data.shape().to_vec(), self.foreign_shape(shape));
        if theirs != expected {
            return Err(format!("is {theirs:?}; the document asks for {expected:?}"));
        }
        let values = data.try_into_vec::<f32>().map_err(|e| format!("{e:?}"))?;
        let values = match self {
            Self::Same | Self::Reshaped(_) => values,
            Self::Part { index, of } => {
                let count = values.len() / of;
                values[index * count..(index + 1) * count].to_vec()
            }
            Self::Transposed => transpose(&values, theirs[0], theirs[1]),
            Self::PatchConv { patch } => {
                let (out, channels, places) = (theirs[0], theirs[1], patch * patch);
                let at = |o: usize, channel: usize, place: usize| values[(o * channels + channel) * places + place];
                let rows = (0..places).flat_map(|place| (0..channels).map(move |channel| (place, channel)));
                rows.flat_map(|(place, channel)| (0..out).map(move |o| at(o, channel, place))).collect()
            }
        };
        Ok(TensorData::new(values, shape.to_vec()))
    }

    /// The shape of their tensor for our parameter of the given shape.
    fn foreign_shape(&self, shape: &[usize]) -> Vec<usize> {
        match self {
            Self::Same => shape.to_vec(),
            Self::Transposed => vec![shape[1], shape[0]],
            Self::PatchConv { patch } => vec![shape[1], shape[0] / (patch * patch), *patch, *patch],
            Self::Reshaped(theirs) => theirs.clone(),
            Self::Part { of, .. } => [&[shape[0] * of], &shape[1..]].concat(),
        }
    }

    /// Our numbers in their layout; of a part, the part.
    ///
    /// # Panics
    /// If they are not f32.
    pub fn to_foreign(&self, data: TensorData) -> TensorData {
        let shape = data.shape().to_vec();
        match self {
            Self::Same | Self::Part { .. } => data,
            Self::Reshaped(theirs) => {
                TensorData::new(data.try_into_vec::<f32>().expect("weights are f32"), theirs.clone())
            }
            Self::Transposed => {
                let values = data.try_into_vec::<f32>().expect("weights are f32");
                TensorData::new(transpose(&values, shape[0], shape[1]), [shape[1], shape[0]])
            }
            Self::PatchConv { patch } => {
                let (places, out) = (patch * patch, shape[1]);
                let channels = shape[0] / places;
                let values = data.try_into_vec::<f32>().expect("weights are f32");
                let at = |o: usize, channel: usize, place: usize| values[(place * channels + channel) * out + o];
                let rows = (0..out).flat_map(|o| (0..channels).map(move |channel| (o, channel)));
                let theirs =
                    rows.flat_map(|(o, channel)| (0..places).map(move |place| at(o, channel, place))).collect();
                TensorData::new::<f32, _>(theirs, [out, channels, *patch, *patch])
            }
        }
    }
}

fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| values[row * columns + column]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Linear;
    use crate::random::Random;
    use crate::weights::{Init, export, initialize};
    use burn::tensor::Device;

    /// Queries, keys and values, fused in the file.
    #[derive(Module, Debug)]
    struct Separate {
        q: Linear,
        k: Linear,
        v: Linear,
    }

    fn separate(seed: u64) -> Separate {
        let device = Device::flex();
        let linear = || Linear::new(2, 3, &device);
        let network = Separate { q: linear(), k: linear(), v: linear() };
        initialize(network, &Random::new(seed), &|_, _| Init::Normal(1.0))
    }

    fn fused() -> ForeignNames {
        let name = |path: &str| {
            let (part, rest) = path.split_once('.').expect("a layer and its parameter");
            let index = ["q", "k", "v"].iter().position(|name| *name == part).expect("one of the three");
            ForeignName { name: format!("qkv.{rest}"), layout: Layout::Part { index, of: 3 } }
        };
        ForeignNames { of: Arc::new(name), nesting: &["model."], ignored: &[("count", "a statistic")], optional: &[] }
    }

    #[test]
    fn parts_of_a_fused_tensor_round_trip() {
        let path = std::env::temp_dir().join(format!("unguided-fused-{}.safetensors", std::process::id()));
        let network = separate(1);
        save(&network, &fused(), &path).unwrap();
        let shapes: Vec<_> =
            open(&path).unwrap().into_iter().map(|(name, tensor)| (name, tensor.shape.to_vec())).collect();
        assert_eq!(shapes, [("qkv.bias".to_string(), vec![9]), ("qkv.weight".to_string(), vec![6, 3])]);
        let (loaded, report) = load(separate(2), &fused(), &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(export(&loaded), export(&network));
        assert!(report.to_string().starts_with("2 tensors used, 0 ignored"), "{report}");
    }

    #[test]
    fn what_is_ignored_is_named_within_the_nesting_too() {
        let path = std::env::temp_dir().join(format!("unguided-nested-{}.safetensors", std::process::id()));
        let tensor = |name: &str, shape: &[usize]| {
            (name.to_string(), TensorData::new(vec![0.0_f32; shape.iter().product()], shape.to_vec()))
        };
        let whole = [tensor("model.qkv.bias", &[9]), tensor("model.qkv.weight", &[6, 3]), tensor("model.count", &[1])];
        save_tensors(&whole, &path).unwrap();
        let (_, report) = load(separate(0), &fused(), &path).unwrap();
        assert_eq!(report.ignored, [("model.count".to_string(), "a statistic".to_string())]);
        // What is wanted and what is there, each named once.
        save_tensors(&[tensor("qkv.bias", &[9]), tensor("qkv.weight", &[3, 6]), tensor("other", &[2])], &path).unwrap();
        let refusal = load(separate(0), &fused(), &path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<&str> = refusal.lines().skip(1).collect();
        assert_eq!(lines, ["  `qkv.weight` is [3, 6]; the document asks for [6, 3]", "  unknown `other` [2]"]);
    }
}

//! Official checkpoints: what a parameter is called there, how it lies in the file, and reading and writing them.
//!
//! `.pt`, `.pth`, `.ckpt` (zip and legacy pickles) and `.safetensors`. Tensors are read one at a time.

use crate::backbone::BoxBackbone;
use crate::checkpoint::write_atomically;
use crate::error::{Error, Result};
use crate::weights;
use burn::store::{ModuleStore, PytorchStore, SafetensorsStore, bridge, burn_pack};
use burn::tensor::{DType, TensorData};
use std::collections::BTreeMap;
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
            self.used.len(),
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

/// Puts the weights of an official file into a network.
///
/// # Errors
/// If a weight is missing, unknown, or of another shape: all of them are named.
pub fn load(network: BoxBackbone, names: &ForeignNames, path: &Path) -> Result<(BoxBackbone, Report)> {
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
                format!("holds no `{first}`: it is no checkpoint of this backbone (its first tensors are {some:?})"),
            )
        })?;
    let mut report = Report { nesting: nesting.trim_end_matches('.').to_string(), ..Report::default() };
    let (mut values, mut problems) = (BTreeMap::new(), Vec::new());
    for (own, shape, _) in &parameters {
        let ForeignName { name, layout } = (names.of)(own);
        let name = format!("{nesting}{name}");
        let Some(tensor) = file.get(&name) else {
            match names.fresh(own) {
                Some(fresh) => {
                    values.extend(fresh.values(own, shape));
                    report.fresh.push((own.clone(), fresh));
                }
                None => problems.push(format!("missing `{name}`")),
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
        if report.used.iter().any(|(used, _)| used == name) {
            continue;
        }
        let why = names
            .ignored
            .iter()
            .find(|(part, _)| name.starts_with(part) || name.ends_with(part))
            .map(|(_, why)| (*why).to_string());
        let copy = names.nesting.iter().find(|prefix| **prefix != nesting && name.starts_with(**prefix));
        match (why, copy) {
            (Some(why), _) => report.ignored.push((name.clone(), why)),
            (None, Some(prefix)) => {
                report.ignored.push((name.clone(), format!("the other weights, `{}`", prefix.trim_end_matches('.'))))
            }
            (None, None) => problems.push(format!("unknown `{name}`")),
        }
    }
    refuse(path, &problems)?;
    Ok((weights::import(network, &mut values), report))
}

/// Puts the numbers of a native checkpoint into a network that may have grown new optional parameters since.
///
/// # Errors
/// If a weight is missing, unknown, or of another shape: all of them are named.
pub fn adopt(
    network: BoxBackbone,
    names: &ForeignNames,
    mut from: BTreeMap<String, TensorData>,
    path: &Path,
) -> Result<(BoxBackbone, Report)> {
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
    problems.extend(from.keys().map(|name| format!("unknown `{name}`")));
    refuse(path, &problems)?;
    Ok((weights::import(network, &mut values), report))
}

/// The first problems of a file as one error; nothing if there are none.
fn refuse(path: &Path, problems: &[String]) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let shown = problems.iter().take(12).cloned().collect::<Vec<_>>().join("\n  ");
    let more = problems.len().saturating_sub(12);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Err(Error::file(path, format!("does not fit the backbone of the document:\n  {shown}{more}")))
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
pub fn save(network: &BoxBackbone, names: &ForeignNames, path: &Path) -> Result<()> {
    let tensors: Vec<(String, TensorData)> = weights::export(network)
        .into_iter()
        .map(|(own, data)| {
            let ForeignName { name, layout } = (names.of)(&own);
            (name, layout.to_foreign(data))
        })
        .collect();
    save_tensors(&tensors, path)
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
        let theirs = data.shape().to_vec();
        let fits = match self {
            Self::Same => theirs == shape,
            Self::Transposed => theirs.len() == 2 && [theirs[1], theirs[0]] == *shape,
            Self::PatchConv { patch } => {
                theirs.len() == 4 && theirs[2..] == [*patch; 2] && [theirs[1] * patch * patch, theirs[0]] == *shape
            }
            Self::Reshaped(expected) => theirs == *expected,
        };
        if !fits {
            return Err(format!("is {theirs:?}, which is not the document's {shape:?} (as {self:?})"));
        }
        let values = data.try_into_vec::<f32>().map_err(|e| format!("{e:?}"))?;
        let values = match self {
            Self::Same | Self::Reshaped(_) => values,
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

    /// Our numbers in their layout.
    ///
    /// # Panics
    /// If they are not f32.
    pub fn to_foreign(&self, data: TensorData) -> TensorData {
        let shape = data.shape().to_vec();
        match self {
            Self::Same => data,
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

//! Official checkpoints: what a parameter is called there, how it lies in the file, and reading and writing them.
//!
//! `.pt`, `.pth`, `.ckpt` (zip and legacy pickles) and `.safetensors`. Tensors are read one at a time. Of a pickle only
//! the calls that rebuild tensors are interpreted; no other code that it names is run.

use crate::checkpoint::{self, write_tensors};
use crate::error::{Error, Result};
use crate::pickle::{self, Stored};
use crate::random::Random;
use crate::weights::{self, Drawing, Init};
use burn::module::Module;
use burn::store::{ModuleStore, PytorchStore, SafetensorsStore, bridge, burn_pack};
use burn::tensor::{DType, TensorData};
use schemars::JsonSchema;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
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

/// One published format of a backbone, a tokenizer or a text encoder. Where there are several, a file is recognised by
/// its names.
#[derive(Clone)]
pub struct ForeignNames {
    /// What documents and `convert` call the format.
    pub format: &'static str,
    /// The folder of this network within the folder of a whole pipeline; empty where there is none.
    pub folder: &'static str,
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

/// Weights that training, or a reference, starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A run's folder, a checkpoint, or the backbone's official file or folder.
    pub checkpoint: PathBuf,
    /// Which of the backbone's published formats the file has; null = recognised by the names in it.
    #[serde(default)]
    pub format: Option<String>,
}

impl Source {
    /// A file of any format.
    pub fn of(checkpoint: impl Into<PathBuf>) -> Self {
        Self { checkpoint: checkpoint.into(), format: None }
    }
}

/// Opens an official file, or a folder as `diffusers` and `transformers` write it: one file, or an index of shards.
/// Container entries that are no tensors are left out by the reader.
///
/// # Errors
/// If the file is missing, damaged, or of no known format.
pub fn open(path: &Path) -> Result<Tensors> {
    if !path.exists() {
        return Err(Error::file(path, "no such file"));
    }
    if path.is_dir() {
        let Some(file) = WEIGHTS.iter().map(|name| path.join(name)).find(|file| file.exists()) else {
            return Err(Error::file(path, format!("the folder holds no weights; it would be one of {WEIGHTS:?}")));
        };
        return open(&file);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => open_shards(path),
        Some("safetensors") => {
            names_once(path)?;
            read(SafetensorsStore::from_file(path).map_indices_contiguous(false), path)
        }
        _ => {
            pickle::check(path).map_err(|what| unreadable(path, &what))?;
            read(PytorchStore::from_file(path).map_indices_contiguous(false), path)
                .or_else(|refused| open_lightning(path).ok_or(refused))
        }
    }
}

/// The weights of a Lightning container, `{"state_dict": .., "callbacks": {CLASS: ..}}`: Burn's reader takes no class as a
/// key. `None` if there are none.
fn open_lightning(path: &Path) -> Option<Tensors> {
    const KEY: &str = "state_dict";
    let mut tensors = Tensors::new();
    for Stored { name, dtype, shape, place } in pickle::tensors(path, KEY).ok()? {
        let (path, declared) = (path.to_path_buf(), shape.clone());
        let data = move || {
            let bytes = pickle::read(&path, place).map_err(burn_pack::Error::IoError)?;
            Ok(TensorData::from_bytes_vec(bytes, declared.clone(), dtype))
        };
        let name = format!("{KEY}.{name}");
        tensors.insert(name.clone(), bridge::deferred(name, dtype, shape.into(), None, data));
    }
    (!tensors.is_empty()).then_some(tensors)
}

/// Refuses a safetensors file whose header names a tensor twice: readers would each take another.
fn names_once(path: &Path) -> Result<()> {
    struct Once;
    impl<'de> Deserialize<'de> for Once {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
            deserializer.deserialize_map(Self)
        }
    }
    impl<'de> Visitor<'de> for Once {
        type Value = Self;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("tensors by name")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self, A::Error> {
            let mut names = BTreeSet::new();
            while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                if let Some(twice) = names.replace(name) {
                    return Err(A::Error::custom(format!("it names `{twice}` twice")));
                }
            }
            Ok(self)
        }
    }
    let header = checkpoint::header_bytes(path)?;
    serde_json::from_slice(&header).map(|Once| ()).map_err(|e| unreadable(path, &format!("its header: {e}")))
}

/// Most bytes of a text file that describes weights: an index, a configuration, a vocabulary.
const LARGEST_TEXT: u64 = 64 << 20;

/// The text of a file that describes weights.
///
/// # Errors
/// If it cannot be read, is no UTF-8, or is larger than any such file is.
pub fn text(path: &Path) -> Result<String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    if file.metadata().map_err(|e| Error::io(path, e))?.len() > LARGEST_TEXT {
        return Err(Error::file(path, format!("has more than the {LARGEST_TEXT} bytes that are read of such a file")));
    }
    let mut text = String::new();
    file.take(LARGEST_TEXT).read_to_string(&mut text).map_err(|e| Error::io(path, e))?;
    Ok(text)
}

/// The names that weights have in a folder, best first.
const WEIGHTS: [&str; 8] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
];

fn read(mut store: impl ModuleStore<Error: fmt::Display>, path: &Path) -> Result<Tensors> {
    store.get_all_tensors().cloned().map_err(|what| unreadable(path, &what.to_string()))
}

fn unreadable(path: &Path, what: &str) -> Error {
    // A reader may quote the file, whatever its length.
    let what: String = what.chars().take(500).collect();
    Error::file(path, format!("cannot be read as a checkpoint (.pt, .pth, .ckpt, .bin, .safetensors): {what}"))
}

/// The tensors that an index names, from the shards beside it.
fn open_shards(index: &Path) -> Result<Tensors> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } = serde_json::from_str(&text(index)?)
        .map_err(|e| Error::file(index, format!("is no index of shards (`weight_map` from tensor to file): {e}")))?;
    let mut tensors = Tensors::new();
    for shard in weight_map.values().collect::<BTreeSet<_>>() {
        // A shard lies beside its index and nowhere else.
        if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
            return Err(Error::file(index, format!("names the shard `{shard}`, which is no plain file name")));
        }
        let path = index.with_file_name(shard);
        if path.extension().is_some_and(|extension| extension == "json") {
            return Err(Error::file(index, format!("names the shard `{shard}`, which is no file of tensors")));
        }
        tensors.extend(open(&path)?);
    }
    match weight_map.keys().find(|name| !tensors.contains_key(*name)) {
        Some(name) => Err(Error::file(index, format!("names `{name}`, which its shard does not hold"))),
        None => Ok(tensors),
    }
}

/// Where the weights of `folder` lie in `path`: in that folder of a whole pipeline, or right there.
fn within(path: &Path, folder: &str) -> PathBuf {
    let inner = path.join(folder);
    if !folder.is_empty() && inner.is_dir() { inner } else { path.to_path_buf() }
}

/// What became of every tensor of a foreign file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The format that was recognised.
    pub format: String,
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
        let nesting = match (&self.format[..], &self.nesting[..]) {
            ("" | OFFICIAL, "") => String::new(),
            ("" | OFFICIAL, nesting) => format!(" (under `{nesting}`)"),
            (format, "") => format!(" (format {format})"),
            (format, nesting) => format!(" (format {format}, under `{nesting}`)"),
        };
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

/// What a container of latent diffusion holds beside any one of its networks.
pub const BESIDE_LATENT_DIFFUSION: &[(&str, &str)] = &[
    ("model.diffusion_model.", "the backbone"),
    ("state_dict.model.diffusion_model.", "the backbone"),
    ("first_stage_model.", "the autoencoder"),
    ("state_dict.first_stage_model.", "the autoencoder"),
    ("cond_stage_model.", "the text encoder"),
    ("state_dict.cond_stage_model.", "the text encoder"),
    ("model_ema.", "the average of the weights, under names without dots"),
    ("state_dict.model_ema.", "the average of the weights, under names without dots"),
    ("loss.", "networks of the training loss"),
    ("text_model.embeddings.position_ids", "numbers from 0 on"),
    ("betas", SCHEDULE),
    ("alphas_cumprod", SCHEDULE),
    ("alphas_cumprod_prev", SCHEDULE),
    ("posterior_variance", SCHEDULE),
    ("posterior_log_variance_clipped", SCHEDULE),
    ("posterior_mean_coef1", SCHEDULE),
    ("posterior_mean_coef2", SCHEDULE),
    ("optimizer_states", "optimizer state"),
];
const SCHEDULE: &str = "the noise schedule, which is computed";

/// The name of a network's format where only one was ever published.
pub const OFFICIAL: &str = "official";

/// Puts the weights of an official file into a network that holds none yet, one tensor at a time. What the file may lack,
/// and lacks, is drawn from `init`.
///
/// # Errors
/// If the file has none of the formats, or a weight is missing, unknown, or of another shape: all of them are named.
pub fn load<M: Module>(
    network: M,
    formats: &[ForeignNames],
    source: &Source,
    (random, init): Drawing<'_>,
) -> Result<(M, Report)> {
    let parameters = weights::parameters(&network);
    let (path, file, names, nesting) = recognise(&parameters, formats, source)?;
    let path = &path;
    let mut report =
        Report { format: names.format.to_string(), nesting: nesting.trim_end_matches('.').into(), ..Report::default() };
    let (mut plan, mut considered) = (BTreeMap::new(), BTreeSet::new());
    let (mut problems, mut unknown) = (Vec::new(), Vec::new());
    for (own, shape, _) in &parameters {
        let ForeignName { name, layout } = (names.of)(own);
        let name = format!("{nesting}{name}");
        considered.insert(name.clone());
        let wanted = layout.foreign_shape(shape);
        match (file.get(&name), names.fresh(own)) {
            (Some(tensor), _) if tensor.shape.to_vec() == wanted => {
                plan.insert(own.clone(), (name.clone(), layout));
                report.used.push((name, own.clone()));
            }
            (Some(tensor), _) => {
                problems.push(format!("`{name}` is {:?}; the document asks for {wanted:?}", tensor.shape.to_vec()));
            }
            (None, Some(fresh)) => report.fresh.push((own.clone(), fresh)),
            (None, None) => problems.push(format!("missing `{name}` {wanted:?}")),
        }
    }
    for name in file.keys() {
        if considered.contains(name) {
            continue;
        }
        // Within the nesting, or elsewhere in the container.
        let seen = name.strip_prefix(nesting).unwrap_or(name);
        let named = |part: &str| seen.starts_with(part) || name.ends_with(part);
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
    let network = weights::fill(network, random, init, &mut |own, shape| {
        let Some((name, layout)) = plan.get(own) else { return Ok(names.fresh(own).and_then(|f| f.values(shape))) };
        let wrong = |what: String| Error::file(path, format!("`{name}`: {what}"));
        let data = bridge::to_data(&file[name]).map_err(|e| wrong(e.to_string()))?;
        layout.to_own(data.convert_dtype(DType::F32), shape).map(Some).map_err(wrong)
    })?;
    Ok((network, report))
}

/// The weights of an official file in a network of which no part may be missing.
///
/// # Errors
/// As [`load`].
pub fn load_whole<M: Module>(network: M, formats: &[ForeignNames], path: &Path) -> Result<(M, Report)> {
    load(network, formats, &Source::of(path), (&Random::new(0), &|_, _| Init::Zeros))
}

/// The format of that name, or the first.
///
/// # Errors
/// If there is none: what, and which there are.
pub fn format<'a>(formats: &'a [ForeignNames], name: Option<&str>) -> std::result::Result<&'a ForeignNames, String> {
    let Some(name) = name else { return Ok(&formats[0]) };
    formats.iter().find(|names| names.format == name).ok_or_else(|| {
        let known: Vec<&str> = formats.iter().map(|names| names.format).collect();
        format!("error: these weights have no format `{name}`\n  accepts  {}", known.join(", "))
    })
}

/// The parameters of a network: path, shape, whether it is trained.
type Parameters = [(String, Vec<usize>, bool)];

/// The file, its format, and the prefix under which the network's weights lie in it.
fn recognise<'a>(
    parameters: &Parameters,
    formats: &'a [ForeignNames],
    source: &Source,
) -> Result<(PathBuf, Tensors, &'a ForeignNames, &'static str)> {
    let wanted = |names: &&ForeignNames| source.format.as_ref().is_none_or(|format| format == names.format);
    let candidates: Vec<&ForeignNames> = formats.iter().filter(wanted).collect();
    let Some(folder) = candidates.first().map(|names| names.folder) else {
        let known: Vec<&str> = formats.iter().map(|names| names.format).collect();
        let asked = source.format.as_deref().unwrap_or_default();
        return Err(Error::file(&source.checkpoint, format!("no format `{asked}`; this network has {known:?}")));
    };
    let path = within(&source.checkpoint, folder);
    let file = open(&path)?;
    // Under the prefix, and in the format, in which most parameters are found; of equals, the first.
    let mut best: Option<(usize, &ForeignNames, &'static str)> = None;
    for names in &candidates {
        let theirs: Vec<String> = parameters.iter().map(|(own, ..)| (names.of)(own).name).collect();
        for prefix in names.nesting.iter().copied().chain([""]) {
            let found = theirs.iter().filter(|name| file.contains_key(&format!("{prefix}{name}"))).count();
            if found > best.map_or(0, |(most, ..)| most) {
                best = Some((found, *names, prefix));
            }
        }
    }
    if let Some((_, names, prefix)) = best {
        return Ok((path, file, names, prefix));
    }
    let first = |names: &&ForeignNames| format!("`{}`", (names.of)(&parameters[0].0).name);
    let sought: Vec<String> = candidates.iter().map(first).collect();
    let some: Vec<&str> = file.keys().take(3).map(String::as_str).collect();
    let what = format!("holds no {}: it is no checkpoint of this network", sought.join(" and no "));
    Err(Error::file(&path, format!("{what} (its first tensors are {some:?})")))
}

/// Puts the numbers of a native checkpoint into a network that holds none yet, and may have grown new optional parameters
/// since.
///
/// # Errors
/// If a weight is missing, unknown, or of another shape: all of them are named.
pub fn adopt<M: Module>(
    network: M,
    names: &ForeignNames,
    mut from: BTreeMap<String, TensorData>,
    path: &Path,
    (random, init): Drawing<'_>,
) -> Result<(M, Report)> {
    let (mut report, mut problems) = (Report::default(), Vec::new());
    for (own, shape, _) in weights::parameters(&network) {
        match (from.get(&own), names.fresh(&own)) {
            (Some(data), _) if data.shape().to_vec() == shape => report.used.push((own.clone(), own)),
            (Some(data), _) => problems.push(format!("`{own}` is {:?}, not {shape:?}", data.shape().to_vec())),
            (None, Some(fresh)) => report.fresh.push((own, fresh)),
            (None, None) => problems.push(format!("missing `{own}`")),
        }
    }
    let used: BTreeSet<&String> = report.used.iter().map(|(own, _)| own).collect();
    let unknown: Vec<String> =
        from.keys().filter(|name| !used.contains(name)).map(|name| format!("unknown `{name}`")).collect();
    refuse(path, &problems, &unknown)?;
    let network = weights::fill(network, random, init, &mut |own, shape| {
        Ok(from.remove(own).or_else(|| names.fresh(own).and_then(|fresh| fresh.values(shape))))
    })?;
    Ok((network, report))
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
    pub fn fresh(&self, path: &str) -> Option<Fresh> {
        self.optional.iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, fresh)| *fresh)
    }
}

impl Fresh {
    /// The numbers to put in place of those that would be drawn.
    fn values(self, shape: &[usize]) -> Option<TensorData> {
        let zeros = || TensorData::new(vec![0.0_f32; shape.iter().product()], shape.to_vec());
        (self == Self::Zero).then(zeros)
    }
}

/// Reads the weights of a network from the first path and writes them to the second under the names of `format`, or else
/// of the first one.
///
/// # Errors
/// If a file cannot be read or written, does not hold these weights, or the format is unknown.
pub fn convert<M: Module>(
    network: M,
    formats: &[ForeignNames],
    [from, to]: [&Path; 2],
    name: Option<&str>,
) -> Result<Report> {
    let names = format(formats, name).map_err(Error::Run)?;
    let (network, report) = load_whole(network, formats, from)?;
    save(&network, names, to)?;
    Ok(report)
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
    let stored = tensors.iter().map(|(name, data)| {
        let dtype = checkpoint::foreign_dtype(data.dtype());
        (name.clone(), dtype, data.shape().to_vec(), data.as_bytes())
    });
    write_tensors(path, stored.collect(), None)
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
        ForeignNames {
            format: OFFICIAL,
            folder: "",
            of: Arc::new(name),
            nesting: &["model."],
            ignored: &[("count", "a statistic")],
            optional: &[],
        }
    }

    #[test]
    fn parts_of_a_fused_tensor_round_trip() {
        let path = std::env::temp_dir().join(format!("unguided-fused-{}.safetensors", std::process::id()));
        let network = separate(1);
        save(&network, &fused(), &path).unwrap();
        let shapes: Vec<_> =
            open(&path).unwrap().into_iter().map(|(name, tensor)| (name, tensor.shape.to_vec())).collect();
        assert_eq!(shapes, [("qkv.bias".to_string(), vec![9]), ("qkv.weight".to_string(), vec![6, 3])]);
        let (loaded, report) = load_whole(separate(2), &[fused()], &path).unwrap();
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
        let (_, report) = load_whole(separate(0), &[fused()], &path).unwrap();
        assert_eq!(report.ignored, [("model.count".to_string(), "a statistic".to_string())]);
        // What is wanted and what is there, each named once.
        save_tensors(&[tensor("qkv.bias", &[9]), tensor("qkv.weight", &[3, 6]), tensor("other", &[2])], &path).unwrap();
        let refusal = load_whole(separate(0), &[fused()], &path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<&str> = refusal.lines().skip(1).collect();
        assert_eq!(lines, ["  `qkv.weight` is [3, 6]; the document asks for [6, 3]", "  unknown `other` [2]"]);
    }
}

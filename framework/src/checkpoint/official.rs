//! Official checkpoints: loads a network's weights from a published file, and writes them back.

use crate::checkpoint::container::Container;
use crate::checkpoint::names::{Fresh, Layout, OFFICIAL, OfficialName, OfficialNames, format};
use crate::checkpoint::recognise::{Found, Left, left, recognise};
use crate::checkpoint::refit::Refit;
use crate::error::{Error, Result};
use crate::nn::parameters::{self, Init, Initialization};
use crate::random::Random;
use burn::module::Module;
use burn::store::bridge;
use burn::tensor::{DType, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// A checkpoint that supplies the initial weights of a run, or the weights of a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSource {
    /// A run folder, a checkpoint, or the official file or folder of the backbone.
    pub checkpoint: PathBuf,
    /// The published format of the file; null = recognised by its tensor names.
    #[serde(default)]
    pub format: Option<String>,
}

impl CheckpointSource {
    /// Returns the source for a file of any format.
    pub fn of(checkpoint: impl Into<PathBuf>) -> Self {
        Self { checkpoint: checkpoint.into(), format: None }
    }
}

/// The outcome for every tensor of an official file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The recognised format.
    pub format: String,
    /// Container prefix of the weights.
    pub nesting: String,
    /// Tensors that became parameters: official name, our path.
    pub used: Vec<(String, String)>,
    /// The changes to the names of the file.
    pub notes: Vec<String>,
    /// Ignored tensors, and why.
    pub ignored: Vec<(String, String)>,
    /// Parameters that the file lacks, and their initial values.
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
        for note in &self.notes {
            write!(f, "\n  note     {note}")?;
        }
        for (name, why) in &self.ignored {
            write!(f, "\n  ignored  {name}: {why}")?;
        }
        for (path, fresh) in &self.fresh {
            let how = match fresh {
                Fresh::Zero => "starts at zero",
                Fresh::Initialized => "starts from its default initialization",
            };
            write!(f, "\n  new      {path}: {how}")?;
        }
        Ok(())
    }
}

impl Report {
    /// Returns the names of the used tensors. A tensor that holds several parameters counts once.
    fn tensors_used(&self) -> BTreeSet<&str> {
        self.used.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Loads the weights of an official file into an uninitialized network, one tensor at a time. `init`
/// initializes optional parameters that the file lacks.
///
/// # Errors
/// If the file matches none of the formats, or a weight is missing, unknown, or of another shape. The error
/// names all of these weights.
pub fn load<M: Module>(
    network: M,
    formats: &[OfficialNames],
    source: &CheckpointSource,
    initialization: Initialization<'_>,
) -> Result<(M, Report)> {
    load_refitted(network, formats, source, initialization, &|_| None)
}

/// Loads like [`load`], and also takes over tensors of another shape: `refit` returns the method for a parameter's
/// path. The report has a note for each such tensor.
///
/// # Errors
/// Like [`load`].
pub fn load_refitted<M: Module>(
    network: M,
    formats: &[OfficialNames],
    source: &CheckpointSource,
    (random, init): Initialization<'_>,
    refit: &dyn Fn(&str) -> Option<Refit>,
) -> Result<(M, Report)> {
    let parameters = parameters::parameters(&network);
    let own: Vec<&str> = parameters.iter().map(|(own, ..)| own.as_str()).collect();
    let Found { path, tensors: file, names, prefix: nesting, removed } =
        recognise(&own, formats, &source.checkpoint, source.format.as_deref())?;
    let path = &path;
    let mut report =
        Report { format: names.format.to_string(), nesting: nesting.trim_end_matches('.').into(), ..Report::default() };
    if !nesting.is_empty() && !names.nesting.contains(&nesting.as_str()) {
        report.notes.push(format!("the prefix `{nesting}` of a wrapper was stripped from all names"));
    }
    report.notes.extend(removed.iter().map(|part| format!("`{part}.` of a wrapper was stripped from the names")));
    let (mut plan, mut considered) = (BTreeMap::new(), BTreeSet::new());
    let (mut problems, mut unknown) = (Vec::new(), Vec::new());
    for (own, shape, _) in &parameters {
        let OfficialName { name, layout } = (names.of)(own);
        let name = format!("{nesting}{name}");
        considered.insert(name.clone());
        let wanted = layout.foreign_shape(shape);
        match (file.get(&name), names.fresh(own)) {
            (Some(tensor), _) if tensor.shape.to_vec() == wanted => {
                plan.insert(own.clone(), (name.clone(), layout));
                report.used.push((name, own.clone()));
            }
            (Some(tensor), _) => {
                let theirs = tensor.shape.to_vec();
                match refit(own).and_then(|refit| refit.note(&name, &theirs, shape)) {
                    Some(note) => {
                        report.notes.push(note);
                        plan.insert(own.clone(), (name.clone(), layout));
                        report.used.push((name, own.clone()));
                    }
                    None => problems.push(format!("`{name}` is {theirs:?}; the document asks for {wanted:?}")),
                }
            }
            (None, Some(fresh)) => report.fresh.push((own.clone(), fresh)),
            (None, None) => problems.push(format!("missing `{name}` {wanted:?}")),
        }
    }
    let official: Vec<String> = own.iter().map(|own| (names.of)(own).name).collect();
    let parts: BTreeSet<&str> = official.iter().filter_map(|name| name.split('.').next()).collect();
    for name in file.keys().filter(|name| !considered.contains(*name)) {
        match left(name, names, &nesting, &parts) {
            Left::Ignored(why) => report.ignored.push((name.clone(), why)),
            Left::Part => unknown.push(format!("unknown `{name}` {:?}", file[name].shape.to_vec())),
        }
    }
    refuse(path, &problems, &unknown)?;
    let network = parameters::fill(network, random, init, &mut |own, shape| {
        let Some((name, layout)) = plan.get(own) else { return Ok(names.fresh(own).and_then(|f| f.values(shape))) };
        let wrong = |what: String| Error::file(path, format!("`{name}`: {what}"));
        let data = bridge::to_data(&file[name]).map_err(|e| wrong(e.to_string()))?;
        let data = data.convert_dtype(DType::F32);
        if data.shape().to_vec() != layout.foreign_shape(shape)
            && let Some(refit) = refit(own)
        {
            let fresh = init(own, shape).draw(own, shape.iter().product(), random);
            return refit.values(data, shape, fresh).map(Some).map_err(wrong);
        }
        layout.to_own(data, shape).map(Some).map_err(wrong)
    })?;
    Ok((network, report))
}

/// Loads the weights of an official file into a network. The file must contain every parameter.
///
/// # Errors
/// See [`load`].
pub fn load_whole<M: Module>(network: M, formats: &[OfficialNames], path: &Path) -> Result<(M, Report)> {
    load(network, formats, &CheckpointSource::of(path), (&Random::new(0), &|_, _| Init::Zeros))
}

/// Loads the values of a native checkpoint into an uninitialized network. The network may have new optional
/// parameters that the checkpoint lacks, and `refit` says which parameters take over another shape.
///
/// # Errors
/// If a weight is missing, unknown, or of another shape. The error names all of these weights.
pub fn adopt<M: Module>(
    network: M,
    names: &OfficialNames,
    mut from: BTreeMap<String, TensorData>,
    path: &Path,
    (random, init): Initialization<'_>,
    refit: &dyn Fn(&str) -> Option<Refit>,
) -> Result<(M, Report)> {
    let (mut report, mut problems) = (Report::default(), Vec::new());
    for (own, shape, _) in parameters::parameters(&network) {
        match (from.get(&own), names.fresh(&own)) {
            (Some(data), _) if data.shape().to_vec() == shape => report.used.push((own.clone(), own)),
            (Some(data), _) => {
                let theirs = data.shape().to_vec();
                match refit(&own).and_then(|refit| refit.note(&own, &theirs, &shape)) {
                    Some(note) => {
                        report.notes.push(note);
                        report.used.push((own.clone(), own));
                    }
                    None => problems.push(format!("`{own}` is {theirs:?}, not {shape:?}")),
                }
            }
            (None, Some(fresh)) => report.fresh.push((own, fresh)),
            (None, None) => problems.push(format!("missing `{own}`")),
        }
    }
    let used: BTreeSet<&String> = report.used.iter().map(|(own, _)| own).collect();
    let unknown: Vec<String> =
        from.keys().filter(|name| !used.contains(name)).map(|name| format!("unknown `{name}`")).collect();
    refuse(path, &problems, &unknown)?;
    let network = parameters::fill(network, random, init, &mut |own, shape| match (from.remove(own), refit(own)) {
        (Some(data), Some(refit)) if data.shape().to_vec() != shape => {
            let fresh = init(own, shape).draw(own, shape.iter().product(), random);
            let wrong = |what: String| Error::file(path, format!("`{own}`: {what}"));
            refit.values(data.convert_dtype(DType::F32), shape, fresh).map(Some).map_err(wrong)
        }
        (Some(data), _) => Ok(Some(data)),
        (None, _) => Ok(names.fresh(own).and_then(|fresh| fresh.values(shape))),
    })?;
    Ok((network, report))
}

/// Returns the first problems of a file as one error, or `Ok` if there are none. Problems of expected weights
/// precede unknown tensors.
fn refuse(path: &Path, problems: &[String], unknown: &[String]) -> Result<()> {
    // Several parameters may share one tensor. Name it once.
    let mut named = BTreeSet::new();
    let problems: Vec<&String> = problems.iter().filter(|problem| named.insert(*problem)).collect();
    let shown: Vec<&str> = problems.iter().copied().take(8).chain(unknown.iter().take(4)).map(String::as_str).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let more = problems.len() + unknown.len() - shown.len();
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Err(Error::file(path, format!("does not match the network in the document:\n  {}{more}", shown.join("\n  "))))
}

/// Reads the weights of a network from the first path and writes them to the second, under the names of the
/// format `name`, or of the first format.
///
/// # Errors
/// If a file cannot be read or written, does not hold these weights, or the format is unknown.
pub fn convert<M: Module>(
    network: M,
    formats: &[OfficialNames],
    [from, to]: [&Path; 2],
    name: Option<&str>,
) -> Result<Report> {
    let names = format(formats, name)?;
    let (network, report) = load_whole(network, formats, from)?;
    save(&network, names, to)?;
    Ok(report)
}

/// Writes a network under its official names and in its official layouts. The ending of the file name selects the
/// container.
///
/// # Errors
/// If the ending is unknown, or the file cannot be written.
pub fn save<M: Module>(network: &M, names: &OfficialNames, path: &Path) -> Result<()> {
    let container = Container::of(path)?;
    container.save(&named(parameters::export(network), names), path, "")
}

/// Returns parameters under their official names and in their official layouts, sorted by name.
///
/// # Panics
/// If the values are not f32.
pub fn named(values: BTreeMap<String, TensorData>, names: &OfficialNames) -> Vec<(String, TensorData)> {
    let mut tensors: BTreeMap<String, BTreeMap<usize, TensorData>> = BTreeMap::new();
    for (own, data) in values {
        let OfficialName { name, layout } = (names.of)(&own);
        let index = if let Layout::Part { index, .. } = layout { index } else { 0 };
        tensors.entry(name).or_default().insert(index, layout.to_foreign(data));
    }
    tensors.into_iter().map(|(name, parts)| (name, concatenate(parts.into_values().collect()))).collect()
}

/// Concatenates tensors along their first dimension.
fn concatenate(mut parts: Vec<TensorData>) -> TensorData {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut shape = parts[0].shape().to_vec();
    shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
    let values = parts.into_iter().flat_map(|part| part.try_into_vec::<f32>().expect("weights are f32")).collect();
    TensorData::new::<f32, _>(values, shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::open::open;
    use crate::checkpoint::tensor_file::save_tensors;
    use crate::nn::Linear;
    use crate::nn::parameters::{Init, export, initialize};
    use crate::random::Random;
    use burn::tensor::Device;
    use std::sync::Arc;

    /// A network whose queries, keys and values are fused in the file.
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

    fn fused() -> OfficialNames {
        let name = |path: &str| {
            let (part, rest) = path.split_once('.').expect("a layer and its parameter");
            let index = ["q", "k", "v"].iter().position(|name| *name == part).expect("one of the three");
            OfficialName { name: format!("qkv.{rest}"), layout: Layout::Part { index, of: 3 } }
        };
        OfficialNames {
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
        // The refusal names each expected and each unknown tensor once.
        save_tensors(&[tensor("qkv.bias", &[9]), tensor("qkv.weight", &[3, 6]), tensor("qkv.other", &[2])], &path)
            .unwrap();
        let refusal = load_whole(separate(0), &[fused()], &path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<&str> = refusal.lines().skip(1).collect();
        assert_eq!(lines, ["  `qkv.weight` is [3, 6]; the document asks for [6, 3]", "  unknown `qkv.other` [2]"]);
    }
}

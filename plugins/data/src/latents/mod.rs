//! Encoded latents, stored in safetensors files. `unguided encode` writes such files. The layout of a file is read
//! in `shard` alone.
//!
//!   x       float [N, C, H, W]   the latents; tokens: int32 [N, 1, H, W], or [N, 1, 1, L] for a pyramid
//!   x_flip  float [N, C, H, W]   optional: latents of the mirrored images, used with probability 1/2
//!   y       int64 [N]            optional: the classes
//!   captions, caption_ends       optional: the captions, in the layout of `framework::data::latent_file`
//!
//! Each item is `scaling_factor * x` as `[position, channel]`, with positions in raster order.
//! Files are memory-mapped, so a dataset may be larger than memory.

mod shard;

use crate::classes::ClassTable;
use crate::left_out::{ending, hidden, unreadable};
use crate::missing::cannot_open;
use crate::regular;
use crate::skipped::Skipped;
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::{Error, Problems, Result};
use framework::prelude::*;
use framework::random::Random;
use shard::Shard;
use std::fs;
use std::path::{Path as FilePath, PathBuf};

/// Encoded latents, as `unguided encode` writes them. The files hold the tensor `x` float `[N, C, H, W]` and,
/// optionally, the classes `y` int64 `[N]`, the latents `x_flip` of the mirrored images, and the captions.
/// `x_flip` has the shape of `x`; each epoch uses it with probability 1/2, chosen again for each item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path"]))]
pub struct Latents {
    /// A safetensors file, or a folder of such files, which are read in order of name. A relative path starts at
    /// the working directory.
    pub path: PathBuf,
    /// Factor that multiplies every latent, above 0, unitless. Use 1 if the files hold scaled latents.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub scaling_factor: f64,
    /// Whether a class below the largest may have no latents. If false, classes in `y` that start at 1 or skip one are
    /// an error.
    pub allow_empty_classes: bool,
    /// Number of classes, at least 0; 0 = latents without `y`. Every class in `y` must be below it. Omitted = the
    /// largest class plus 1.
    #[schemars(range(min = 0))]
    pub num_classes: Option<usize>,
    /// Whether the condition is the caption that `unguided encode` stored. If true, `y` is not read.
    pub captions: bool,
    /// Height and width of the latents, at least 1 position. Must agree with the files. Omitted = read from the
    /// files. A document can be checked without the files if it states `input_size`, `channels`, and either
    /// `num_classes` or `captions`.
    #[schemars(range(min = 1))]
    pub input_size: Option<usize>,
    /// Channels of the latents, at least 1. Must agree with the files. Omitted = read from the files.
    #[schemars(range(min = 1))]
    pub channels: Option<usize>,
    /// Vocabulary size, if the files hold token ids; each id must be below it. Omitted = continuous latents.
    #[schemars(range(min = 2, max = 10_000_000))]
    pub vocabulary: Option<usize>,
    /// Side lengths of the token maps of a pyramid, coarse to fine. Only with `vocabulary`. Omitted = tokens in raster
    /// order.
    #[schemars(length(min = 1), inner(range(min = 1, max = 1024)))]
    pub levels: Option<Vec<usize>>,
    /// Channels of the features that feed the levels of the pyramid. Only with `levels`.
    #[schemars(range(min = 1))]
    pub level_channels: Option<usize>,
}

impl Default for Latents {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            scaling_factor: 1.0,
            allow_empty_classes: false,
            num_classes: None,
            captions: false,
            input_size: None,
            channels: None,
            vocabulary: None,
            levels: None,
            level_channels: None,
        }
    }
}

framework::register!(data "latents" => Latents);

impl DatasetConfig for Latents {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            let what = format!("`scaling_factor` is {}", self.scaling_factor);
            problems.push(Problem::new("/scaling_factor", what).accepts("a number above 0"));
        }
        for (name, value) in [("input_size", self.input_size), ("channels", self.channels)] {
            if value == Some(0) {
                problems.push(Problem::new(format!("/{name}"), format!("`{name}` is 0")).accepts("1 or more"));
            }
        }
        problems.extend(self.tokens_alone());
        if self.captions && self.num_classes.is_some() {
            let what = "`num_classes` has no effect: latents with captions have no classes";
            problems.push(Problem::new("/num_classes", what).and_at("/captions").fix("omit it"));
        }
        if self.captions && self.allow_empty_classes {
            let what = "`allow_empty_classes` has no effect: latents with captions have no classes";
            problems.push(Problem::new("/allow_empty_classes", what).and_at("/captions").fix("omit it"));
        }
        problems
    }

    fn info(&self) -> Option<DatasetInfo> {
        let num_classes = if self.captions { 0 } else { self.num_classes? };
        let shape = match (self.vocabulary, &self.levels) {
            (None, _) => [self.channels?, self.input_size?, self.input_size?],
            (Some(_), Some(levels)) => [1, 1, levels.iter().map(|side| side * side).sum()],
            (Some(_), None) => [1, self.input_size?, self.input_size?],
        };
        Some(DatasetInfo { items: self.items(shape), ..info(shape, num_classes, self.captions) })
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        let open = |path| Shard::open(path, self.captions, self.vocabulary.is_some());
        let mut skipped = Skipped::default();
        let shards = files(&self.path, &mut skipped)?.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let shape = self.agreed_shape(&shards)?;
        let num_classes = if self.captions { 0 } else { self.agreed_classes(&shards)? };
        let mut len = 0;
        let mut firsts = Vec::new();
        for shard in &shards {
            firsts.push(len);
            len += shard.len;
        }
        Ok(Box::new(OpenLatents {
            shards,
            firsts,
            len,
            shape,
            items: self.items(shape),
            num_classes,
            scaling_factor: self.scaling_factor,
            vocabulary: self.vocabulary,
            skipped,
        }))
    }
}

fn info([channels, height, width]: [usize; 3], num_classes: usize, captions: bool) -> DatasetInfo {
    DatasetInfo {
        items: ItemKind::Latents { grid: [height, width], channels },
        num_classes: (num_classes > 0).then_some(num_classes),
        captions,
    }
}

impl Latents {
    /// Returns the problems of settings that only tokens, or only continuous latents, have.
    fn tokens_alone(&self) -> Problems {
        let mut problems = Problems::new();
        let mut refuse = |name: &str, what: &str, other: &str| {
            let problem = Problem::new(format!("/{name}"), format!("`{name}` has no effect: {what}"));
            problems.push(problem.and_at(other).fix(format!("omit /data/{name}")));
        };
        if self.vocabulary.is_some() {
            for (name, is_set) in
                [("channels", self.channels.is_some()), ("scaling_factor", self.scaling_factor != 1.0)]
            {
                if is_set {
                    refuse(name, "tokens have none", "/vocabulary");
                }
            }
        } else if self.levels.is_some() {
            refuse("levels", "continuous latents have no levels", "/vocabulary");
        }
        if self.level_channels.is_some() != self.levels.is_some() {
            let what = "`levels` and `level_channels` describe the same pyramid; one of them is missing";
            problems.push(Problem::new("/levels", what).and_at("/level_channels").accepts("both, or neither"));
        }
        problems
    }

    /// Returns the kind of items of files with latents of shape C, H, W.
    fn items(&self, [channels, height, width]: [usize; 3]) -> ItemKind {
        match (self.vocabulary, &self.levels) {
            (None, _) => ItemKind::Latents { grid: [height, width], channels },
            (Some(vocabulary), None) => ItemKind::Tokens(LatentShape::tokens([height, width], vocabulary)),
            (Some(vocabulary), Some(levels)) => {
                ItemKind::Tokens(LatentShape::pyramid(levels, vocabulary, self.level_channels.unwrap_or(1)))
            }
        }
    }

    /// Returns the shape `[C, H, W]` of every latent, after checking that files and document agree on it.
    fn agreed_shape(&self, shards: &[Shard]) -> Result<[usize; 3]> {
        let reference = &shards[0];
        for shard in shards {
            if shard.shape != reference.shape {
                let what = format!(
                    "holds latents [C, H, W] = {:?}, but {} holds {:?}; all files must have the same shape",
                    shard.shape,
                    reference.path.display(),
                    reference.shape
                );
                return Err(Error::file(&shard.path, what));
            }
            if shard.x_flip.is_some() != reference.x_flip.is_some() {
                let what = format!(
                    "differs from {} in having a tensor `x_flip`; either every file has one or none does",
                    reference.path.display()
                );
                return Err(Error::file(&shard.path, what));
            }
        }
        let [channels, height, width] = reference.shape;
        let wrong = |name: &str, declared: usize| {
            let what = format!(
                "holds latents [C, H, W] = {:?}, but the document says `{name}` = {declared}; correct it or omit it",
                reference.shape
            );
            Error::file(&reference.path, what)
        };
        if let Some(levels) = &self.levels {
            let positions: usize = levels.iter().map(|side| side * side).sum();
            if reference.shape != [1, 1, positions] {
                let what = format!(
                    "holds tokens of shape {:?}, but the document's `levels` have {positions} positions",
                    reference.shape
                );
                return Err(Error::file(&reference.path, what));
            }
        }
        match (self.input_size, self.channels) {
            (Some(size), _) if [size, size] != [height, width] => Err(wrong("input_size", size)),
            (_, Some(declared)) if declared != channels => Err(wrong("channels", declared)),
            _ => Ok(reference.shape),
        }
    }

    /// Returns the number of classes, after checking that files and document agree on it; 0 = no classes.
    fn agreed_classes(&self, shards: &[Shard]) -> Result<usize> {
        let reference = &shards[0];
        let mut table = ClassTable::default();
        for shard in shards {
            if shard.classes.is_some() != reference.classes.is_some() {
                let what = format!(
                    "differs from {} in having a tensor `y`; either every file has one or none does",
                    reference.path.display()
                );
                return Err(Error::file(&shard.path, what));
            }
            let Some(largest) = shard.classes.iter().flatten().max() else { continue };
            shard.classes.iter().flatten().for_each(|class| table.add(*class));
            if let Some(declared) = self.num_classes
                && *largest >= declared
            {
                let what = format!(
                    "`y` holds class {largest}, but the document says `num_classes` = {declared}; \
                     correct it or omit it"
                );
                return Err(Error::file(&shard.path, what));
            }
        }
        table.check(self.allow_empty_classes)?;
        match self.num_classes {
            Some(declared) if declared > 0 && reference.classes.is_none() => {
                let what = format!(
                    "has no tensor `y`, but the document says `num_classes` = {declared}; write `y` int64 [N], \
                     or set `num_classes` to 0"
                );
                Err(Error::file(&reference.path, what))
            }
            declared => Ok(declared.unwrap_or(table.number())),
        }
    }
}

/// Returns `path` itself if it is a file, or the safetensors files of the folder in order of name. Counts the other
/// entries of the folder.
fn files(path: &FilePath, skipped: &mut Skipped) -> Result<Vec<PathBuf>> {
    let accepts = "a safetensors file, or a folder of such files";
    fs::metadata(path).map_err(|error| cannot_open("/data/path", path, accepts, &error))?;
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let file = entry.map_err(|e| Error::io(path, e))?.path();
        let reason = match (hidden(file.file_name().unwrap_or_default()), fs::metadata(&file)) {
            (Some(reason), _) => reason.to_string(),
            (None, Err(error)) => unreadable(error.kind()),
            (None, Ok(found)) if !found.is_file() => regular::kind(found.file_type()).to_string(),
            (None, Ok(_)) if file.extension().is_none_or(|ending| ending != "safetensors") => ending(&file),
            (None, Ok(_)) => {
                files.push(file);
                continue;
            }
        };
        skipped.because(reason, file.display());
    }
    if files.is_empty() {
        return Err(Error::file(path, format!("the folder holds no .safetensors file{}", skipped.lines())));
    }
    files.sort();
    Ok(files)
}

#[derive(Debug)]
struct OpenLatents {
    shards: Vec<Shard>,
    /// Index of the first item of each shard.
    firsts: Vec<usize>,
    len: usize,
    shape: [usize; 3],
    items: ItemKind,
    num_classes: usize,
    scaling_factor: f64,
    vocabulary: Option<usize>,
    skipped: Skipped,
}

impl OpenLatents {
    /// Returns the shard that holds an item, and the index of the item in that shard.
    fn place(&self, index: usize) -> (&Shard, usize) {
        assert!(index < self.len, "item {index} is out of range: the dataset has {} items", self.len);
        let number = self.firsts.partition_point(|first| *first <= index) - 1;
        (&self.shards[number], index - self.firsts[number])
    }

    fn item(&self, index: usize, mirrored: bool) -> Result<Item> {
        let (shard, i) = self.place(index);
        let (name, floats) = match &shard.x_flip {
            Some(x_flip) if mirrored => ("x_flip", x_flip),
            _ => ("x", &shard.x),
        };
        let x = shard.latent(floats, i);
        if let Some(value) = x.iter().find(|value| !value.is_finite()) {
            return Err(Error::file(&shard.path, format!("`{name}`[{i}] holds {value}; latents must be finite")));
        }
        if let Some(vocabulary) = self.vocabulary {
            if let Some(id) = x.iter().find(|id| **id < 0.0 || **id >= vocabulary as f32) {
                let what = format!("`{name}`[{i}] holds token {id}; the document's vocabulary has {vocabulary} tokens");
                return Err(Error::file(&shard.path, what));
            }
            return Ok(Item { values: x, label: shard.label(i)? });
        }
        let [channels, height, width] = self.shape;
        let positions = height * width;
        let scaled = |value: f32| (f64::from(value) * self.scaling_factor) as f32;
        let values = (0..positions).flat_map(|p| (0..channels).map(move |c| (p, c)));
        let values = values.map(|(p, c)| scaled(x[c * positions + p])).collect();
        Ok(Item { values, label: shard.label(i)? })
    }
}

impl Dataset for OpenLatents {
    fn info(&self) -> DatasetInfo {
        let captions = self.shards[0].captions.is_some();
        DatasetInfo { items: self.items.clone(), ..info(self.shape, self.num_classes, captions) }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item> {
        self.item(index, random.uniform("horizontal_flip", index as u64, epoch, 1)[0] < 0.5)
    }

    fn plain(&self, index: usize) -> Result<Item> {
        self.item(index, false)
    }

    fn label(&self, index: usize) -> Result<Label> {
        let (shard, i) = self.place(index);
        shard.label(i)
    }

    fn warnings(&self) -> Vec<String> {
        self.skipped.warnings()
    }

    fn source(&self, index: usize) -> String {
        let (shard, i) = self.place(index);
        format!("latent {i} of {}", shard.path.display())
    }

    fn describe(&self, index: usize) -> String {
        let (shard, i) = self.place(index);
        format!("{:?} {i} {:?}", shard.path.file_name(), shard.label(i).ok())
    }
}

#[cfg(test)]
mod tests;

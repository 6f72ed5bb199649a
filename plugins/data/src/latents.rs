//! Encoded latents, stored in safetensors files. `unguided encode` writes such files.
//!
//!   x       float [N, C, H, W]   the latents
//!   x_flip  float [N, C, H, W]   optional: latents of the mirrored images, used with probability 1/2
//!   y       int64 [N]            optional: the classes
//!   captions, caption_ends       optional: the captions, in the layout of `framework::data::latent_file`
//!
//! Each item is `scaling_factor * x` as `[position, channel]`, with positions in raster order.
//! Files are memory-mapped, so a dataset may be larger than memory.

use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::data::latent_file::{CAPTION_ENDS, CAPTIONS};
use framework::error::{Error, Problems, Result};
use framework::prelude::*;
use framework::random::Random;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};

/// Encoded latents, as `unguided encode` writes them. The files hold the tensor `x` float `[N, C, H, W]` and,
/// optionally, the classes `y` int64 `[N]`, the latents `x_flip` of the mirrored images, and the captions.
/// `x_flip` has the shape of `x`; each epoch uses it with probability 1/2, chosen anew for each item.
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
    /// Number of classes, at least 0; 0 = latents without `y`. Every class in `y` must be below it. Omitted = the
    /// largest class plus 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub num_classes: Option<usize>,
    /// Whether the condition is the caption that `unguided encode` stored. If true, `y` is not read.
    pub captions: bool,
    /// Height and width of the latents, at least 1 position. Must agree with the files. Omitted = read from the
    /// files. A document can be checked without the files if it states `input_size`, `channels`, and either
    /// `num_classes` or `captions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub input_size: Option<usize>,
    /// Channels of the latents, at least 1. Must agree with the files. Omitted = read from the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub channels: Option<usize>,
}

impl Default for Latents {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            scaling_factor: 1.0,
            num_classes: None,
            captions: false,
            input_size: None,
            channels: None,
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
        if self.captions && self.num_classes.is_some() {
            let what = "`num_classes` has no effect: latents with captions have no classes";
            problems.push(Problem::new("/num_classes", what).and_at("/captions").fix("omit it"));
        }
        problems
    }

    fn info(&self) -> Option<DatasetInfo> {
        let (size, channels) = (self.input_size?, self.channels?);
        let num_classes = if self.captions { 0 } else { self.num_classes? };
        Some(info([channels, size, size], num_classes, self.captions))
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        let open = |path| Shard::open(path, self.captions);
        let shards = files(&self.path)?.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let shape = self.agreed_shape(&shards)?;
        let num_classes = if self.captions { 0 } else { self.agreed_classes(&shards)? };
        let mut len = 0;
        let mut firsts = Vec::new();
        for shard in &shards {
            firsts.push(len);
            len += shard.len;
        }
        Ok(Box::new(OpenLatents { shards, firsts, len, shape, num_classes, scaling_factor: self.scaling_factor }))
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
        match (self.input_size, self.channels) {
            (Some(size), _) if [size, size] != [height, width] => Err(wrong("input_size", size)),
            (_, Some(declared)) if declared != channels => Err(wrong("channels", declared)),
            _ => Ok(reference.shape),
        }
    }

    /// Returns the number of classes, after checking that files and document agree on it; 0 = no classes.
    fn agreed_classes(&self, shards: &[Shard]) -> Result<usize> {
        let reference = &shards[0];
        let mut found = 0;
        for shard in shards {
            if shard.classes.is_some() != reference.classes.is_some() {
                let what = format!(
                    "differs from {} in having a tensor `y`; either every file has one or none does",
                    reference.path.display()
                );
                return Err(Error::file(&shard.path, what));
            }
            let Some(largest) = shard.classes.iter().flatten().max() else { continue };
            found = found.max(largest + 1);
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
        match self.num_classes {
            Some(declared) if declared > 0 && reference.classes.is_none() => {
                let what = format!(
                    "has no tensor `y`, but the document says `num_classes` = {declared}; write `y` int64 [N], \
                     or set `num_classes` to 0"
                );
                Err(Error::file(&reference.path, what))
            }
            declared => Ok(declared.unwrap_or(found)),
        }
    }
}

/// Returns `path` itself if it is a file, or the safetensors files of the folder in order of name.
fn files(path: &FilePath) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let file = entry.map_err(|e| Error::io(path, e))?.path();
        if file.extension().is_some_and(|ending| ending == "safetensors") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Error::file(path, "the folder holds no .safetensors file"));
    }
    files.sort();
    Ok(files)
}

/// The type of a float tensor, and its byte range in the file.
#[derive(Clone, Debug)]
struct Floats {
    dtype: Dtype,
    bytes: Range<usize>,
}

/// One memory-mapped file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    len: usize,
    shape: [usize; 3],
    x: Floats,
    x_flip: Option<Floats>,
    classes: Option<Vec<usize>>,
    captions: Option<Captions>,
}

/// The byte ranges of the two caption tensors in the file.
#[derive(Clone, Debug)]
struct Captions {
    text: Range<usize>,
    ends: Range<usize>,
}

impl Shard {
    fn open(path: PathBuf, captioned: bool) -> Result<Self> {
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        // SAFETY: the map is read as plain bytes, and every byte value is valid. This is sound as long as nobody
        // truncates or rewrites the file while it is mapped; a dataset in use must not change anyway.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(&path, e))?;
        let tensors = SafeTensors::deserialize(&map)
            .map_err(|e| Error::file(&path, format!("is not a complete safetensors file: {e}")))?;

        let has = |name: &str| tensors.names().contains(&name);
        if !has("x") {
            let what = format!("has no tensor `x` (float [N, C, H, W]); it holds {}", tensors.names().join(", "));
            return Err(Error::file(&path, what));
        }
        let (shape, x) = floats(&path, &map, &tensors, "x")?;
        let x_flip = has("x_flip").then(|| floats(&path, &map, &tensors, "x_flip")).transpose()?;
        if let Some((flipped, _)) = &x_flip
            && *flipped != shape
        {
            return Err(Error::file(&path, format!("`x_flip` is {flipped:?}, but `x` is {shape:?}; they must agree")));
        }
        let [len, channels, height, width] = shape;
        let classes = (has("y") && !captioned).then(|| classes(&path, &tensors, len)).transpose()?;
        let captions = captioned.then(|| captions(&path, &map, &tensors, len)).transpose()?;
        let x_flip = x_flip.map(|(_, x)| x);
        Ok(Self { len, shape: [channels, height, width], x, x_flip, classes, captions, path, map })
    }

    /// Returns the condition of latent `i`.
    fn label(&self, i: usize) -> Result<Label> {
        if let Some(Captions { text, ends }) = &self.captions {
            let end = |i: usize| number(&self.map[ends.start + 8 * i..]) as usize;
            let (from, to) = (if i == 0 { 0 } else { end(i - 1) }, end(i));
            // `open` checked that the ends ascend. If the file was overwritten since, the range may be
            // invalid; then use a byte that is not UTF-8, so that the conversion below returns an error.
            let bytes = self.map[text.clone()].get(from..to).unwrap_or(&[0xff]);
            let wrong = |_| Error::file(&self.path, format!("caption {i} is not UTF-8"));
            return Ok(Label::Caption(std::str::from_utf8(bytes).map_err(wrong)?.to_string()));
        }
        Ok(self.classes.as_ref().map_or(Label::None, |classes| Label::Class(classes[i])))
    }

    /// Reads latent `i` of `x` or `x_flip` as `[C, H, W]`.
    fn latent(&self, floats: &Floats, i: usize) -> Vec<f32> {
        let bytes = &self.map[floats.bytes.clone()];
        let stride = bytes.len() / self.len;
        let bytes = &bytes[i * stride..(i + 1) * stride];
        match floats.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => unreachable!("`floats` rejects {other:?} when the file is opened"),
        }
    }
}

/// Returns the shape `[N, C, H, W]`, type and byte range of the float tensor `name`.
fn floats(path: &FilePath, map: &Mmap, tensors: &SafeTensors<'_>, name: &str) -> Result<([usize; 4], Floats)> {
    let view = tensors.tensor(name).expect("the caller checked that the tensor exists");
    let accepted = match view.shape() {
        [n, c, h, w] if n * c * h * w > 0 => Some([*n, *c, *h, *w]),
        _ => None,
    };
    let (Some(shape), Dtype::F32 | Dtype::F16 | Dtype::BF16) = (accepted, view.dtype()) else {
        let what = format!(
            "`{name}` is {:?} {:?}; it must be F32, F16 or BF16 [N, C, H, W], and no dimension may be 0",
            view.dtype(),
            view.shape()
        );
        return Err(Error::file(path, what));
    };
    Ok((shape, Floats { dtype: view.dtype(), bytes: place(map, &view) }))
}

/// Returns the byte range of a tensor in its file.
fn place(map: &Mmap, view: &TensorView<'_>) -> Range<usize> {
    let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
    start..start + view.data().len()
}

/// Reads the first eight bytes as a little-endian integer.
fn number(bytes: &[u8]) -> i64 {
    i64::from_le_bytes(bytes[..8].try_into().expect("the slice has eight bytes"))
}

/// Finds the caption tensors, and checks that the ends ascend and that the last one is the length of the text.
fn captions(path: &FilePath, map: &Mmap, tensors: &SafeTensors<'_>, len: usize) -> Result<Captions> {
    let (Ok(text), Ok(ends)) = (tensors.tensor(CAPTIONS), tensors.tensor(CAPTION_ENDS)) else {
        let what = format!(
            "has no tensors `{CAPTIONS}` and `{CAPTION_ENDS}`, but the document sets `captions`; set it to false, or \
             encode a dataset with captions"
        );
        return Err(Error::file(path, what));
    };
    let rise = |ends: &[u8]| {
        let last = ends.chunks_exact(8).map(number).try_fold(0, |before, end| (before <= end).then_some(end));
        last == i64::try_from(text.data().len()).ok()
    };
    let typed = text.dtype() == Dtype::U8 && ends.dtype() == Dtype::I64 && ends.shape() == [len];
    if !(typed && rise(ends.data())) {
        let what = format!(
            "`{CAPTIONS}` must be U8 [bytes] and `{CAPTION_ENDS}` I64 [{len}], ascending, ending at the text's length"
        );
        return Err(Error::file(path, what));
    }
    Ok(Captions { text: place(map, &text), ends: place(map, &ends) })
}

/// Reads the class of each latent from the tensor `y`.
fn classes(path: &FilePath, tensors: &SafeTensors<'_>, len: usize) -> Result<Vec<usize>> {
    let view = tensors.tensor("y").expect("the caller checked that the tensor exists");
    if view.dtype() != Dtype::I64 || view.shape() != [len] {
        let what = format!("`y` is {:?} {:?}; it must be I64 [{len}], one per latent", view.dtype(), view.shape());
        return Err(Error::file(path, what));
    }
    let class = |(i, bytes): (usize, &[u8])| {
        let class = number(bytes);
        usize::try_from(class).map_err(|_| Error::file(path, format!("`y`[{i}] is {class}; classes start at 0")))
    };
    view.data().chunks_exact(8).enumerate().map(class).collect()
}

#[derive(Debug)]
struct OpenLatents {
    shards: Vec<Shard>,
    /// Index of the first item of each shard.
    firsts: Vec<usize>,
    len: usize,
    shape: [usize; 3],
    num_classes: usize,
    scaling_factor: f64,
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
        info(self.shape, self.num_classes, self.shards[0].captions.is_some())
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::serialize_to_file;
    use tempfile::TempDir;

    type Entry = (&'static str, Dtype, Vec<usize>, Vec<u8>);

    fn f32s(name: &'static str, shape: &[usize], values: &[f32]) -> Entry {
        (name, Dtype::F32, shape.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn i64s(name: &'static str, values: &[i64]) -> Entry {
        (name, Dtype::I64, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn write(path: &FilePath, entries: &[Entry]) {
        let views = entries
            .iter()
            .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        serialize_to_file(views, None, path).unwrap();
    }

    fn latents(path: &FilePath) -> Latents {
        serde_json::from_value(serde_json::json!({ "path": path })).unwrap()
    }

    fn message(config: &Latents) -> String {
        config.open().unwrap_err().to_string()
    }

    #[test]
    fn items_are_position_by_channel_and_scaled() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("a.safetensors");
        // Two latents of two channels on a 1x3 grid.
        let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
        write(&path, &[f32s("x", &[2, 2, 1, 3], &x), i64s("y", &[4, 0])]);
        let data = Latents { scaling_factor: 0.5, ..latents(&path) }.open().unwrap();
        // Latent 1 has the channels 6 7 8 and 9 10 11, so its positions are (6, 9), (7, 10), (8, 11), halved.
        let item = data.plain(1).unwrap();
        assert_eq!(item.values, [3.0, 4.5, 3.5, 5.0, 4.0, 5.5]);
        assert_eq!(item.label, Label::Class(0));
        let expected = ItemKind::Latents { grid: [1, 3], channels: 2 };
        assert_eq!(data.info(), DatasetInfo { items: expected, num_classes: Some(5), captions: false });
    }

    #[test]
    fn half_precision_is_read_exactly() {
        let root = TempDir::new().unwrap();
        let values = [0.5_f32, -3.0, 0.25, 96.0];
        let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        for (dtype, bytes) in [(Dtype::F16, f16s), (Dtype::BF16, bf16s)] {
            let path = root.path().join(format!("{dtype:?}.safetensors"));
            write(&path, &[("x", dtype, vec![1, 1, 2, 2], bytes)]);
            assert_eq!(latents(&path).open().unwrap().plain(0).unwrap().values, values);
        }
    }

    #[test]
    fn shards_follow_in_order_of_name() {
        let root = TempDir::new().unwrap();
        write(&root.path().join("b.safetensors"), &[f32s("x", &[1, 1, 1, 1], &[3.0]), i64s("y", &[2])]);
        write(&root.path().join("a.safetensors"), &[f32s("x", &[2, 1, 1, 1], &[1.0, 2.0]), i64s("y", &[0, 1])]);
        let data = latents(root.path()).open().unwrap();
        let items: Vec<Item> = (0..data.len()).map(|i| data.plain(i).unwrap()).collect();
        assert_eq!(items.iter().map(|item| item.values[0]).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
        assert_eq!(items[2].label, Label::Class(2));
        assert_eq!(data.info().num_classes, Some(3));
    }

    #[test]
    fn mirrored_latents_are_drawn_half_the_time_and_never_when_plain() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("a.safetensors");
        write(&path, &[f32s("x", &[1, 1, 1, 1], &[1.0]), f32s("x_flip", &[1, 1, 1, 1], &[-1.0])]);
        let data = latents(&path).open().unwrap();
        let random = Random::new(2);
        let drawn = |epoch| data.get(0, &random, epoch).unwrap().values[0];
        let mirrored = (0..64).filter(|epoch| drawn(*epoch) == -1.0).count();
        assert!((16..=48).contains(&mirrored), "{mirrored}");
        assert!((0..64).all(|epoch| drawn(epoch) == drawn(epoch)));
        assert_eq!(data.plain(0).unwrap().values, [1.0]);
        assert_eq!(data.plain(0).unwrap().label, Label::None);
    }

    #[test]
    fn captions_are_read_where_the_document_says_so() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("a.safetensors");
        let text = |bytes: &[u8]| (CAPTIONS, Dtype::U8, vec![bytes.len()], bytes.to_vec());
        let ends = |values: &[i64]| i64s(CAPTION_ENDS, values);
        let x = || f32s("x", &[3, 1, 1, 1], &[1.0, 2.0, 3.0]);
        let config = Latents { captions: true, input_size: Some(1), channels: Some(1), ..latents(&path) };
        // The second caption is empty. `y` must be ignored.
        write(&path, &[x(), i64s("y", &[1, 2, 3]), text("a cät".as_bytes()), ends(&[2, 2, 6])]);
        let data = config.open().unwrap();
        assert_eq!(config.info(), Some(data.info()));
        for (i, caption) in ["a ", "", "cät"].iter().enumerate() {
            assert_eq!(data.label(i).unwrap(), Label::Caption((*caption).into()));
            assert_eq!(data.plain(i).unwrap().label, Label::Caption((*caption).into()));
        }
        assert_eq!(latents(&path).open().unwrap().label(0).unwrap(), Label::Class(1));
        // An end that cuts a caption within a character, and invalid tables of ends.
        write(&path, &[x(), text("ä".as_bytes()), ends(&[1, 1, 2])]);
        assert!(config.open().unwrap().label(0).unwrap_err().to_string().contains("caption 0 is not UTF-8"));
        for wrong in [&[0, 3, 2][..], &[0, 1, 1], &[-1, 1, 2], &[0, 1, i64::MAX], &[1, 2]] {
            write(&path, &[x(), text(b"ab"), ends(wrong)]);
            assert!(message(&config).contains("ending at the text's length"), "{wrong:?}: {}", message(&config));
        }
        write(&path, &[x()]);
        assert!(message(&config).contains("has no tensors `captions`"));
        let both = Latents { num_classes: Some(3), ..config };
        assert_eq!(both.check()[0].at, ["/num_classes", "/captions"]);
    }

    #[test]
    fn what_is_declared_must_agree_with_the_file() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("a.safetensors");
        write(&path, &[f32s("x", &[1, 2, 1, 1], &[1.0, 2.0]), i64s("y", &[3])]);
        let right = Latents { num_classes: Some(10), input_size: Some(1), channels: Some(2), ..latents(&path) };
        assert_eq!(right.info(), Some(right.open().unwrap().info()));
        assert_eq!(latents(&path).info(), None);
        for (wrong, expected) in [
            (
                Latents { num_classes: Some(3), ..right.clone() },
                "`y` holds class 3, but the document says `num_classes` = 3",
            ),
            (
                Latents { input_size: Some(4), ..right.clone() },
                "[C, H, W] = [2, 1, 1], but the document says `input_size` = 4",
            ),
            (
                Latents { channels: Some(4), ..right.clone() },
                "[C, H, W] = [2, 1, 1], but the document says `channels` = 4",
            ),
        ] {
            assert!(message(&wrong).contains(expected), "{}", message(&wrong));
        }
        write(&path, &[f32s("x", &[1, 2, 1, 1], &[1.0, 2.0])]);
        assert!(message(&right).contains("has no tensor `y`, but the document says `num_classes` = 10"));
    }

    #[test]
    fn errors_name_the_file_the_tensor_and_what_is_accepted() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("a.safetensors");
        assert!(message(&latents(&path)).contains("a.safetensors: No such file"));
        assert!(message(&latents(root.path())).contains("the folder holds no .safetensors file"));
        std::fs::write(&path, "something else").unwrap();
        assert!(message(&latents(&path)).contains("a.safetensors: is not a complete safetensors file"));

        let x = || f32s("x", &[2, 1, 1, 1], &[1.0, 2.0]);
        for (entries, expected) in [
            (vec![i64s("y", &[1])], "has no tensor `x` (float [N, C, H, W]); it holds y"),
            (vec![i64s("x", &[1])], "`x` is I64 [1]; it must be F32, F16 or BF16 [N, C, H, W]"),
            (vec![f32s("x", &[1, 2], &[1.0, 2.0])], "`x` is F32 [1, 2]; it must be"),
            (vec![x(), i64s("y", &[1])], "`y` is I64 [1]; it must be I64 [2], one per latent"),
            (vec![x(), i64s("y", &[0, -1])], "`y`[1] is -1; classes start at 0"),
            (vec![x(), f32s("x_flip", &[1, 1, 1, 1], &[1.0])], "`x_flip` is [1, 1, 1, 1], but `x` is [2, 1, 1, 1]"),
        ] {
            write(&path, &entries);
            assert!(message(&latents(&path)).contains(expected), "{}", message(&latents(&path)));
        }

        write(&path, &[f32s("x", &[2, 1, 1, 1], &[1.0, f32::NAN])]);
        let error = latents(&path).open().unwrap().plain(1).unwrap_err().to_string();
        assert!(error.contains("`x`[1] holds NaN"), "{error}");

        write(&root.path().join("b.safetensors"), &[x(), i64s("y", &[0, 1])]);
        assert!(message(&latents(root.path())).contains("in having a tensor `y`"));
        write(&root.path().join("b.safetensors"), &[f32s("x", &[1, 2, 1, 1], &[1.0, 2.0])]);
        assert!(message(&latents(root.path())).contains("all files must have the same shape"));
    }

    #[test]
    fn impossible_settings_are_reported_together() {
        let config = Latents { scaling_factor: 0.0, channels: Some(0), ..latents(FilePath::new("x")) };
        let problems = config.check();
        assert_eq!(problems.iter().map(|p| p.at[0].as_str()).collect::<Vec<_>>(), ["/scaling_factor", "/channels"]);
        assert!(latents(FilePath::new("x")).check().is_empty());
    }
}

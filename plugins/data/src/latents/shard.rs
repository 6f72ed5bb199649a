//! One file of encoded latents, mapped into memory.

use crate::regular;
use framework::data::dataset::Label;
use framework::data::latent_file::{CAPTION_ENDS, CAPTIONS};
use framework::error::{Error, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};

/// The type of a float tensor, and its byte range in the file.
#[derive(Clone, Debug)]
pub struct Floats {
    dtype: Dtype,
    bytes: Range<usize>,
}

/// One memory-mapped file.
#[derive(Debug)]
pub struct Shard {
    pub path: PathBuf,
    map: Mmap,
    pub len: usize,
    pub shape: [usize; 3],
    pub x: Floats,
    pub x_flip: Option<Floats>,
    pub classes: Option<Vec<usize>>,
    pub captions: Option<Captions>,
}

/// The byte ranges of the two caption tensors in the file.
#[derive(Clone, Debug)]
pub struct Captions {
    text: Range<usize>,
    ends: Range<usize>,
}

impl Shard {
    /// Opens a file. `tokens` states whether it holds token ids instead of continuous latents.
    pub fn open(path: PathBuf, captioned: bool, tokens: bool) -> Result<Self> {
        let file = regular::open(&path).map_err(|e| Error::io(&path, e))?;
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
        let (shape, x) = floats(&path, &map, &tensors, "x", tokens)?;
        let x_flip = has("x_flip").then(|| floats(&path, &map, &tensors, "x_flip", tokens)).transpose()?;
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
    pub fn label(&self, i: usize) -> Result<Label> {
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
    pub fn latent(&self, floats: &Floats, i: usize) -> Vec<f32> {
        let bytes = &self.map[floats.bytes.clone()];
        let stride = bytes.len() / self.len;
        let bytes = &bytes[i * stride..(i + 1) * stride];
        match floats.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            // Ids are below 2^24, so f32 holds them exactly.
            Dtype::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
            other => unreachable!("`floats` rejects {other:?} when the file is opened"),
        }
    }
}

/// Returns the shape `[N, C, H, W]`, type and byte range of the tensor `name` of latents, or of tokens.
fn floats(
    path: &FilePath,
    map: &Mmap,
    tensors: &SafeTensors<'_>,
    name: &str,
    tokens: bool,
) -> Result<([usize; 4], Floats)> {
    let view = tensors.tensor(name).expect("the caller checked that the tensor exists");
    let accepted = match view.shape() {
        [n, c, h, w] if n * c * h * w > 0 => Some([*n, *c, *h, *w]),
        _ => None,
    };
    let (types, fix) = match tokens {
        true => (&[Dtype::I32][..], "I32 [N, 1, H, W]; without /data/vocabulary, it may hold continuous latents"),
        false => (
            &[Dtype::F32, Dtype::F16, Dtype::BF16][..],
            "F32, F16 or BF16 [N, C, H, W], and no dimension may be 0; tokens need /data/vocabulary",
        ),
    };
    let Some(shape) = accepted.filter(|[_, channels, ..]| types.contains(&view.dtype()) && (!tokens || *channels == 1))
    else {
        let what = format!("`{name}` is {:?} {:?}; it must be {fix}", view.dtype(), view.shape());
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

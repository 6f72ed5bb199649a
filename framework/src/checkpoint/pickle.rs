//! What `torch.save` writes: looked at before a reader trusts it, and the tensors of Lightning containers.
//!
//! A zip holds `NAME/data.pkl`, a pickle that names the tensors, and `NAME/data/KEY`, their numbers; torch compresses
//! nothing. Before 2020 five pickles and the numbers followed one another. Of a pickle only its shape is read: objects are
//! places in a list that grows by at most one an opcode, so nothing nests, nothing is copied, and no code is run.

use burn::tensor::DType;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// Bytes of a pickle that are read at most: a tensor takes some 300.
const LARGEST_PICKLE: u64 = 8 << 20;
/// What a file before 2020 begins with, behind two to ten bytes of its first pickle.
const LEGACY: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Pickles of such a file: magic number, protocol, system, tensors, keys of the storages.
const LEGACY_PICKLES: usize = 5;

type Result<T> = std::result::Result<T, String>;

/// Refuses a file that would cost more than it holds, or that is no container of tensors at all.
///
/// # Errors
/// What is wrong with it.
pub fn check(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(LARGEST_PICKLE).read_to_end(&mut start).map_err(|e| e.to_string())?;
    if start.starts_with(b"PK") {
        return entries(path).map(drop);
    }
    if !start[..start.len().min(64)].windows(LEGACY.len()).any(|bytes| bytes == LEGACY) {
        return Err("it is neither a zip nor a legacy file of torch.save".into());
    }
    let mut rest = &start[..];
    for _ in 0..LEGACY_PICKLES {
        while opcode(&mut rest)?.0 != b'.' {}
    }
    Ok(())
}

/// Where each file of a zip lies: offset and size. None is compressed, and together they are no longer than the zip.
fn entries(path: &Path) -> Result<BTreeMap<String, (u64, u64)>> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| e.to_string())?;
    let (mut entries, mut total) = (BTreeMap::new(), 0_u64);
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| e.to_string())?;
        let name = entry.name().map_err(|e| e.to_string())?.into_owned();
        let size = entry.size();
        if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != size || entry.encrypted() {
            return Err(format!("`{name}` in it is compressed, which torch.save never does; save it anew"));
        }
        if name.ends_with("data.pkl") && size > LARGEST_PICKLE {
            return Err(format!("`{name}` in it has {size} bytes, more than the {LARGEST_PICKLE} that are read"));
        }
        let start = entry.data_start().ok_or_else(|| format!("`{name}` in it begins nowhere"))?;
        total = total.saturating_add(size);
        if start.checked_add(size).is_none_or(|end| end > length) || total > length {
            return Err(format!("`{name}` in it ends behind the end, or overlaps others"));
        }
        if entries.insert(name.clone(), (start, size)).is_some() {
            return Err(format!("`{name}` is in it twice"));
        }
    }
    Ok(entries)
}

/// One tensor and where its numbers lie, contiguous, in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Offset and number of its bytes.
    pub place: (u64, usize),
}

/// The float tensors under `key` of a zip whose other entries need not be readable.
///
/// # Errors
/// What is wrong with the file.
pub fn tensors(path: &Path, key: &str) -> Result<Vec<Stored>> {
    let entries = entries(path)?;
    let pickles = entries.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let name = pickles.min_by_key(|name| name.len()).ok_or("no data.pkl is in it")?;
    let bytes = read(path, entries[name])?;
    let objects = Objects::of(&bytes)?;
    let root = name.strip_suffix("data.pkl").unwrap_or_default();
    let order = entries.get(&format!("{root}byteorder")).filter(|(_, size)| *size < 16);
    if order.map(|place| read(path, *place)).transpose()?.is_some_and(|order| order != b"little") {
        return Err("its numbers are not little-endian".into());
    }
    let storage = |key: &str| entries.get(&format!("{root}data/{key}")).copied();
    let own = objects.entries(objects.root).find(|(name, _)| *name == key);
    let (_, own) = own.ok_or_else(|| format!("it has no `{key}`"))?;
    let tensors = objects.entries(own).filter_map(|(name, object)| objects.tensor(name, object, &storage).transpose());
    tensors.collect()
}

/// Bytes of a file.
///
/// # Errors
/// If they are not there.
pub fn read(path: &Path, (offset, size): (u64, impl TryInto<usize>)) -> Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; size.try_into().map_err(|_| "too long")?];
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The next opcode and its operand. Source: `pickletools.py` of CPython.
fn opcode<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a [u8])> {
    let end = || format!("a pickle in it does not end, or not within {LARGEST_PICKLE} bytes");
    let take = |rest: &mut &'a [u8], n: usize| rest.split_off(..n).ok_or_else(end);
    let sized = |rest: &mut &'a [u8], width: usize| {
        let mut length = [0; 8];
        length[..width].copy_from_slice(take(rest, width)?);
        take(rest, usize::try_from(u64::from_le_bytes(length)).map_err(|_| end())?)
    };
    let lines = |rest: &mut &'a [u8], count: usize| {
        let ends = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(i, _)| i + 1);
        let length = ends.clone().nth(count - 1).ok_or_else(end)?;
        take(rest, length)
    };
    let code = take(rest, 1)?[0];
    let operand = match code {
        0x80 | 0x82 | b'K' | b'q' | b'h' => take(rest, 1)?,
        0x83 | b'M' => take(rest, 2)?,
        0x84 | b'J' | b'j' | b'r' => take(rest, 4)?,
        0x95 | b'G' => take(rest, 8)?,
        0x8a | 0x8c | b'U' | b'C' => sized(rest, 1)?,
        0x8b | b'X' | b'T' | b'B' => sized(rest, 4)?,
        0x8d | 0x8e | 0x96 => sized(rest, 8)?,
        b'F' | b'I' | b'L' | b'S' | b'V' | b'P' | b'g' | b'p' => lines(rest, 1)?,
        b'c' | b'i' => lines(rest, 2)?,
        0x81 | 0x85..=0x89 | 0x8f..=0x94 | 0x97 | 0x98 => &[],
        code if b".(012)NRQabdelotsu}]".contains(&code) => &[],
        code => return Err(format!("a pickle in it has the unknown opcode {code:#04x}")),
    };
    Ok((code, operand))
}

/// What the tensors of a pickle are made of; everything else is `Other`. Parts are places in [`Objects`].
#[derive(Clone, Debug)]
enum Object<'a> {
    Other,
    Number(i64),
    Text(&'a str),
    Class(&'a str, &'a str),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Call(usize, usize),
    Storage(usize),
}

/// All objects of a pickle, and which of them is the whole.
struct Objects<'a> {
    all: Vec<Object<'a>>,
    root: usize,
}

impl<'a> Objects<'a> {
    fn of(pickle: &'a [u8]) -> Result<Self> {
        let mut objects = Self { all: Vec::new(), root: 0 };
        let (mut stack, mut marks, mut memo): (Vec<usize>, Vec<usize>, HashMap<u64, usize>) = Default::default();
        let mut rest = pickle;
        let missing = || "a pickle in it takes what it never gave".to_string();
        loop {
            let (code, operand) = opcode(&mut rest)?;
            let number = || operand.iter().rev().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
            let mut pop = |n: usize| stack.len().checked_sub(n).map(|at| stack.split_off(at)).ok_or_else(missing);
            let new = match code {
                b'.' => {
                    objects.root = pop(1)?[0];
                    return Ok(objects);
                }
                b'(' => {
                    marks.push(stack.len());
                    continue;
                }
                0x80 | 0x95 => continue,
                b'q' | b'r' | 0x94 => {
                    let place = if code == 0x94 { memo.len() as u64 } else { number() };
                    memo.insert(place, *stack.last().ok_or_else(missing)?);
                    continue;
                }
                b'h' | b'j' => {
                    stack.push(*memo.get(&number()).ok_or_else(missing)?);
                    continue;
                }
                b'2' => {
                    stack.push(*stack.last().ok_or_else(missing)?);
                    continue;
                }
                // What is put into a dictionary is kept, what is put into a list or set, or given as a state, is not.
                b's' | b'u' => {
                    let items =
                        if code == b's' { pop(2)? } else { above(&mut stack, &mut marks).ok_or_else(missing)? };
                    if let Object::Dict(entries) = &mut objects.all[*stack.last().ok_or_else(missing)?] {
                        entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                    }
                    continue;
                }
                b'a' | b'b' | b'0' => {
                    pop(1)?;
                    continue;
                }
                b'e' | 0x90 | b'1' => {
                    above(&mut stack, &mut marks).ok_or_else(missing)?;
                    continue;
                }
                b')' => Object::Tuple(Vec::new()),
                0x85..=0x87 => Object::Tuple(pop(usize::from(code) - 0x84)?),
                b't' => Object::Tuple(above(&mut stack, &mut marks).ok_or_else(missing)?),
                b'}' => Object::Dict(Vec::new()),
                b'd' => {
                    let items = above(&mut stack, &mut marks).ok_or_else(missing)?;
                    Object::Dict(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
                }
                b'l' | 0x91 => {
                    above(&mut stack, &mut marks).ok_or_else(missing)?;
                    Object::Other
                }
                b'J' => Object::Number(i64::from(number() as u32 as i32)),
                b'K' | b'M' => Object::Number(number() as i64),
                // Eight bytes of a long number are read; longer ones count nothing here.
                0x8a if operand.len() <= 8 => {
                    let unused = 64 - 8 * operand.len() as u32;
                    Object::Number((number() as i64).checked_shl(unused).map_or(0, |shifted| shifted >> unused))
                }
                b'X' | 0x8c | 0x8d | b'U' | b'T' => std::str::from_utf8(operand).map_or(Object::Other, Object::Text),
                b'c' => {
                    let text = std::str::from_utf8(operand).unwrap_or_default();
                    let (module, name) = text.trim_end().split_once('\n').unwrap_or_default();
                    Object::Class(module.trim_end(), name)
                }
                0x93 => {
                    let names = pop(2)?;
                    match (&objects.all[names[0]], &objects.all[names[1]]) {
                        (Object::Text(module), Object::Text(name)) => Object::Class(module, name),
                        _ => Object::Other,
                    }
                }
                b'R' | 0x81 => {
                    let call = pop(2)?;
                    match objects.all[call[0]] {
                        Object::Class("collections", "OrderedDict") => Object::Dict(Vec::new()),
                        _ => Object::Call(call[0], call[1]),
                    }
                }
                0x92 => {
                    pop(3)?;
                    Object::Other
                }
                b'Q' => Object::Storage(pop(1)?[0]),
                b'N' | 0x88 | 0x89 | b'G' | 0x8a | 0x8b | b'B' | b'C' | 0x8e | 0x96 | b']' | 0x8f => Object::Other,
                code => {
                    return Err(format!("a pickle in it has the opcode {code:#04x}, which torch.save never writes"));
                }
            };
            stack.push(objects.all.len());
            objects.all.push(new);
        }
    }

    /// The entries of a dictionary whose keys are texts.
    fn entries(&self, at: usize) -> impl Iterator<Item = (&'a str, usize)> {
        let entries: &[(usize, usize)] = if let Object::Dict(entries) = &self.all[at] { entries } else { &[] };
        entries.iter().filter_map(|(key, value)| match self.all[*key] {
            Object::Text(name) => Some((name, *value)),
            _ => None,
        })
    }

    /// The parts of a tuple.
    fn parts(&self, at: usize) -> Option<Vec<&Object<'a>>> {
        let Object::Tuple(parts) = &self.all[at] else { return None };
        Some(parts.iter().map(|part| &self.all[*part]).collect())
    }

    /// A tensor; `None` if the object is none, or holds no floats: positions and counts are no weights.
    fn tensor(&self, name: &str, at: usize, storage: &dyn Fn(&str) -> Option<(u64, u64)>) -> Result<Option<Stored>> {
        let Object::Call(class, arguments) = self.all[at] else { return Ok(None) };
        let Object::Class("torch._utils", "_rebuild_tensor_v2") = self.all[class] else { return Ok(None) };
        let wrong = || format!("`{name}` is no tensor that lies within its numbers, one after another");
        let arguments = self.parts(arguments).ok_or_else(wrong)?;
        let [Object::Storage(kept), Object::Number(offset), Object::Tuple(shape), Object::Tuple(strides), ..] =
            arguments[..]
        else {
            return Err(wrong());
        };
        let kept = self.parts(*kept).ok_or_else(wrong)?;
        let [_, Object::Class("torch", class), Object::Text(key), ..] = kept[..] else { return Err(wrong()) };
        let dtype = match *class {
            "DoubleStorage" => DType::F64,
            "FloatStorage" => DType::F32,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            _ => return Ok(None),
        };
        let numbers = |places: &[usize]| {
            let number = |place: &usize| match self.all[*place] {
                Object::Number(number) => usize::try_from(number).ok(),
                _ => None,
            };
            places.iter().map(number).collect::<Option<Vec<usize>>>()
        };
        let (shape, strides) = numbers(shape).zip(numbers(strides)).ok_or_else(wrong)?;
        let (start, size) = storage(key).ok_or_else(|| format!("the numbers of `{name}` are not in it"))?;
        // Row by row: a stride is the count of what lies behind; that of a single row is never used.
        let mut count = 1_usize;
        for (n, stride) in shape.iter().zip(&strides).rev() {
            if *n > 1 && *stride != count {
                return Err(wrong());
            }
            count = count.checked_mul(*n).ok_or_else(wrong)?;
        }
        let bytes = count.checked_mul(dtype.size()).ok_or_else(wrong)?;
        let offset = u64::try_from(*offset).ok().and_then(|offset| offset.checked_mul(dtype.size() as u64));
        match offset {
            Some(offset)
                if strides.len() == shape.len() && offset.checked_add(bytes as u64).is_some_and(|end| end <= size) =>
            {
                Ok(Some(Stored { name: name.into(), dtype, shape, place: (start + offset, bytes) }))
            }
            _ => Err(wrong()),
        }
    }
}

/// What lies above the last mark, which is taken too.
fn above(stack: &mut Vec<usize>, marks: &mut Vec<usize>) -> Option<Vec<usize>> {
    let mark = marks.pop()?;
    (mark <= stack.len()).then(|| stack.split_off(mark))
}

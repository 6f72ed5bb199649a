//! Files written by `torch.save`: checks them before another reader trusts them, and reads the tensors of
//! files that the other reader refuses.
//!
//! A zip holds `NAME/data.pkl`, a pickle that names the tensors, and `NAME/data/KEY`, their values. torch
//! compresses nothing. Files from before 2020 are five pickles followed by the values.
//!
//! Only the structure of a pickle is read. Its objects are entries of one list, which grows by at most one
//! entry per opcode. Nothing nests, nothing is copied, and no code is run.

use crate::checkpoint::element::{self, Element};
use burn::tensor::DType;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// Largest size in bytes of a pickle that is read. A tensor takes about 300 bytes.
const LARGEST_PICKLE: u64 = 8 << 20;
/// Magic number of files from before 2020. It follows the first two to ten bytes of the first pickle.
const LEGACY: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Number of pickles in such a file: magic number, protocol, system, tensors, keys of the storages.
const LEGACY_PICKLES: usize = 5;

type Result<T> = std::result::Result<T, String>;

/// Refuses a file that would expand beyond its own size, or that is not a container of tensors.
///
/// # Errors
/// If the file is refused. The text says why.
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

/// Returns the offset and size of each file in a zip. It refuses compressed files, and files that together
/// exceed the zip.
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
            return Err(format!("its entry `{name}` is compressed, which torch.save never does; save it again"));
        }
        if name.ends_with("/constants.pkl") {
            return Err("it is a TorchScript archive; save the `state_dict` of its module instead".into());
        }
        if name.ends_with("data.pkl") && size > LARGEST_PICKLE {
            return Err(format!("its entry `{name}` has {size} bytes; the limit is {LARGEST_PICKLE}"));
        }
        let start = entry.data_start().ok_or_else(|| format!("its entry `{name}` has no data"))?;
        total = total.saturating_add(size);
        if start.checked_add(size).is_none_or(|end| end > length) || total > length {
            return Err(format!("its entry `{name}` exceeds the file or overlaps another entry"));
        }
        if entries.insert(name.clone(), (start, size)).is_some() {
            return Err(format!("its entry `{name}` appears twice"));
        }
    }
    Ok(entries)
}

/// One tensor, and the position of its contiguous values in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Name of the tensor.
    pub name: String,
    /// Element type.
    pub element: Element,
    /// Shape.
    pub shape: Vec<usize>,
    /// Offset and size of its values in bytes.
    pub place: (u64, usize),
}

/// Greatest depth of nested dictionaries. A container has two or three levels.
const DEEPEST: usize = 6;
/// Largest number of dictionary entries that are visited.
const MOST_ENTRIES: usize = 1 << 20;

/// Returns the float tensors of a zip. The names of nested dictionaries are joined by dots. Other entries of the zip
/// need not be readable.
///
/// # Errors
/// If the file is invalid. The text says why.
pub fn tensors(path: &Path) -> Result<Vec<Stored>> {
    let entries = entries(path)?;
    let pickles = entries.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let name = pickles.min_by_key(|name| name.len()).ok_or("it has no data.pkl")?;
    let bytes = read(path, entries[name])?;
    let objects = Objects::of(&bytes)?;
    let root = name.strip_suffix("data.pkl").unwrap_or_default();
    let order = entries.get(&format!("{root}byteorder")).filter(|(_, size)| *size < 16);
    if order.map(|place| read(path, *place)).transpose()?.is_some_and(|order| order != b"little") {
        return Err("its values are not little-endian".into());
    }
    let storage = |key: &str| entries.get(&format!("{root}data/{key}")).copied();
    let (mut found, mut refused, mut visited) = (Vec::new(), None, 0);
    let mut open = vec![(String::new(), objects.root, 0)];
    while let Some((prefix, at, depth)) = open.pop() {
        for (key, object) in objects.entries(at) {
            visited += 1;
            if visited > MOST_ENTRIES {
                return Err("it has too many entries".into());
            }
            let name = format!("{prefix}{key}");
            match (&objects.all[object], depth < DEEPEST) {
                (Object::Dict(_), true) => open.push((format!("{name}."), object, depth + 1)),
                _ => match objects.tensor(&name, object, &storage) {
                    Ok(tensor) => found.extend(tensor),
                    Err(what) => refused = Some(what),
                },
            }
        }
    }
    // A refused tensor need not be a weight. If it is a weight, the caller reports it as missing.
    match refused {
        Some(what) if found.is_empty() => Err(what),
        _ => Ok(found),
    }
}

fn read(path: &Path, (offset, size): (u64, u64)) -> Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(|_| "too long")?;
    element::read(path, (offset, size)).map_err(|e| e.to_string())
}

/// Splits off the next opcode and its operand. Source: `pickletools.py` of CPython.
fn opcode<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a [u8])> {
    let end = || format!("one of its pickles does not end within {LARGEST_PICKLE} bytes");
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
        code => return Err(format!("one of its pickles has the unknown opcode {code:#04x}")),
    };
    Ok((code, operand))
}

/// The objects that tensors are built from; every other object is `Other`. Components are indices into
/// [`Objects`].
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

/// All objects of a pickle, and the index of its root.
struct Objects<'a> {
    all: Vec<Object<'a>>,
    root: usize,
}

impl<'a> Objects<'a> {
    fn of(pickle: &'a [u8]) -> Result<Self> {
        let mut objects = Self { all: Vec::new(), root: 0 };
        let (mut stack, mut marks, mut memo): (Vec<usize>, Vec<usize>, HashMap<u64, usize>) = Default::default();
        let mut rest = pickle;
        let missing = || "one of its pickles uses an object that it never created".to_string();
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
                // Items added to a dictionary are kept. Items added to a list or set, and object states, are
                // discarded.
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
                // Long integers of up to eight bytes are decoded. Longer ones become `Other`.
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
                    return Err(format!("one of its pickles has the opcode {code:#04x}, which torch.save never uses"));
                }
            };
            stack.push(objects.all.len());
            objects.all.push(new);
        }
    }

    /// Returns the entries of a dictionary whose keys are text.
    fn entries(&self, at: usize) -> impl Iterator<Item = (&'a str, usize)> {
        let entries: &[(usize, usize)] = if let Object::Dict(entries) = &self.all[at] { entries } else { &[] };
        entries.iter().filter_map(|(key, value)| match self.all[*key] {
            Object::Text(name) => Some((name, *value)),
            _ => None,
        })
    }

    /// Returns the components of a tuple.
    fn parts(&self, at: usize) -> Option<Vec<&Object<'a>>> {
        let Object::Tuple(parts) = &self.all[at] else { return None };
        Some(parts.iter().map(|part| &self.all[*part]).collect())
    }

    /// Returns the function of torch and the arguments of a call.
    fn call(&self, at: usize) -> Option<(&'a str, usize)> {
        let Object::Call(class, arguments) = self.all[at] else { return None };
        let Object::Class("torch._utils", function) = self.all[class] else { return None };
        Some((function, arguments))
    }

    /// Returns a float tensor; `None` if the object is not a tensor or holds integers, because positions and
    /// counts are not weights.
    fn tensor(&self, name: &str, at: usize, storage: &dyn Fn(&str) -> Option<(u64, u64)>) -> Result<Option<Stored>> {
        let wrong = || format!("`{name}` is not a contiguous tensor within its storage");
        let Some((mut function, mut arguments)) = self.call(at) else { return Ok(None) };
        if function == "_rebuild_parameter" {
            // A parameter contains a tensor as its first argument.
            let Object::Tuple(parts) = &self.all[arguments] else { return Err(wrong()) };
            (function, arguments) = parts.first().and_then(|part| self.call(*part)).ok_or_else(wrong)?;
        }
        if !["_rebuild_tensor_v2", "_rebuild_tensor_v3"].contains(&function) {
            return Ok(None);
        }
        let arguments = self.parts(arguments).ok_or_else(wrong)?;
        let [Object::Storage(kept), Object::Number(offset), Object::Tuple(shape), Object::Tuple(strides), ..] =
            arguments[..]
        else {
            return Err(wrong());
        };
        let kept = self.parts(*kept).ok_or_else(wrong)?;
        let [_, Object::Class(_, storage_class), Object::Text(key), ..] = kept[..] else { return Err(wrong()) };
        // The third version has an untyped storage, and the element type as its seventh argument.
        let class = match (function, arguments.get(6)) {
            ("_rebuild_tensor_v3", Some(Object::Class("torch", class))) => class,
            _ => storage_class,
        };
        let element = match *class {
            "DoubleStorage" => Element::Plain(DType::F64),
            "FloatStorage" => Element::Plain(DType::F32),
            "HalfStorage" => Element::Plain(DType::F16),
            "BFloat16Storage" => Element::Plain(DType::BF16),
            "float8_e4m3fn" => Element::E4m3,
            "float8_e5m2" => Element::E5m2,
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
        let (start, size) = storage(key).ok_or_else(|| format!("the storage of `{name}` is missing"))?;
        // In a row-major tensor, each stride is the product of the later dimensions. The stride of a
        // dimension of length 1 is never used.
        let mut count = 1_usize;
        for (n, stride) in shape.iter().zip(&strides).rev() {
            if *n > 1 && *stride != count {
                return Err(wrong());
            }
            count = count.checked_mul(*n).ok_or_else(wrong)?;
        }
        let bytes = count.checked_mul(element.size()).ok_or_else(wrong)?;
        let offset = u64::try_from(*offset).ok().and_then(|offset| offset.checked_mul(element.size() as u64));
        match offset {
            Some(offset)
                if strides.len() == shape.len() && offset.checked_add(bytes as u64).is_some_and(|end| end <= size) =>
            {
                Ok(Some(Stored { name: name.into(), element, shape, place: (start + offset, bytes) }))
            }
            _ => Err(wrong()),
        }
    }
}

/// Pops the objects above the last mark, and the mark.
fn above(stack: &mut Vec<usize>, marks: &mut Vec<usize>) -> Option<Vec<usize>> {
    let mark = marks.pop()?;
    (mark <= stack.len()).then(|| stack.split_off(mark))
}

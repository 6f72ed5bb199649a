//! The samples of tar files: which files belong together, and where they are stored.

use crate::classes::ClassTable;
use crate::decode::{ENDINGS, Framing, LARGEST_FILE, View};
use crate::missing::cannot_open;
use crate::regular;
use crate::skipped::{Changed, Skipped};
use crate::text::{LONGEST_CAPTION, caption, decoded};
use framework::data::dataset::{Dataset, DatasetInfo, Item, Label};
use framework::error::{Error, Result};
use framework::prelude::*;
use framework::random::Random;
use framework::serde_json;
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path as FilePath, PathBuf};
use std::rc::Rc;
use tar::{Archive, EntryType};

/// Largest header of a file in a shard, with its long name and other extensions, in bytes.
const LARGEST_HEADER: u64 = 1 << 20;
/// Largest JSON file that is read, in bytes.
const LARGEST_JSON: u64 = 1 << 20;
/// Largest class file that is read, in bytes.
const LARGEST_CLASS: u64 = 64;

/// Samples whose class is out of range are skipped if at most one in this many samples has such a class. More are an
/// error.
const MOST_OUTSIDE: usize = 100;

/// The condition that is read with each image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Beside {
    /// The caption.
    #[default]
    Caption,
    /// The class.
    Class,
    /// No condition.
    None,
}

/// The byte range of a file in a shard.
#[derive(Clone, Copy, Debug)]
struct Member {
    offset: u64,
    size: u64,
}

/// The kinds of file that a sample may consist of.
#[derive(Clone, Copy, Debug)]
enum Part {
    Image,
    Text,
    Json,
    Class,
}

impl Part {
    /// Returns the kind and the largest size in bytes of a file with this ending; `None` if such files are not
    /// read.
    fn of(ending: &str, condition: Beside) -> Option<(Self, u64)> {
        match (ending, condition) {
            (image, _) if ENDINGS.contains(&image) => Some((Self::Image, LARGEST_FILE)),
            ("txt", Beside::Caption) => Some((Self::Text, LONGEST_CAPTION)),
            ("json", Beside::Caption) => Some((Self::Json, LARGEST_JSON)),
            ("cls", Beside::Class) => Some((Self::Class, LARGEST_CLASS)),
            _ => None,
        }
    }
}

/// The files of one sample, by [`Part`].
type Files = [Option<Member>; 4];

/// One complete sample: the shard that holds it, its name, its image and its condition.
#[derive(Clone, Debug)]
struct Sample {
    shard: usize,
    name: String,
    image: Member,
    condition: Source,
}

/// The file that holds the condition of a sample.
#[derive(Clone, Copy, Debug)]
enum Source {
    Nowhere,
    Text(Member),
    Json(Member),
    Class(usize),
}

/// The samples of all shards.
#[derive(Debug)]
pub struct OpenShards {
    info: DatasetInfo,
    condition: Beside,
    allow_empty_classes: bool,
    framing: Framing,
    shards: Vec<PathBuf>,
    samples: Vec<Sample>,
    classes: ClassTable,
    skipped: Skipped,
    changed: Changed,
}

impl OpenShards {
    /// Creates the dataset without samples.
    pub fn new(info: DatasetInfo, condition: Beside, framing: Framing, allow_empty_classes: bool) -> Self {
        Self {
            info,
            condition,
            allow_empty_classes,
            framing,
            shards: Vec::new(),
            samples: Vec::new(),
            classes: ClassTable::default(),
            skipped: Skipped::default(),
            changed: Changed::default(),
        }
    }

    /// Returns the dataset after all shards were added.
    ///
    /// # Errors
    /// If there is no sample, or the class numbers do not agree with the document.
    pub fn complete(mut self) -> Result<Box<dyn Dataset>> {
        if let Some(number) = self.info.num_classes {
            self.check_classes(number)?;
        }
        if self.samples.is_empty() {
            let (count, skipped) = (self.shards.len(), self.skipped.lines());
            return Err(Error::Run(format!("the {count} shard(s) hold no complete sample{skipped}")));
        }
        Ok(Box::new(self))
    }

    /// Checks the classes of all samples. Skips single samples whose class is not below `number`.
    fn check_classes(&mut self, number: usize) -> Result<()> {
        self.classes.check(self.allow_empty_classes)?;
        let (all, outside) = self.classes.outside(number);
        if outside * MOST_OUTSIDE > all {
            let what = format!("{outside} of {all} samples have a class that is not below `num_classes` = {number}");
            return Err(self.classes.refused(what, &format!("set `num_classes` to {}", self.classes.number())));
        }
        for sample in self.samples.extract_if(.., |sample| sample.condition.class().is_some_and(|c| c >= number)) {
            let what = format!("{} in {}", sample.name, self.shards[sample.shard].display());
            self.skipped.because(format!("a class that is not below `num_classes` = {number}"), what);
        }
        Ok(())
    }

    /// Adds the samples of a shard, in the order of their first files.
    pub fn index(&mut self, path: PathBuf) -> Result<()> {
        let (shard, condition) = (self.shards.len(), self.condition);
        let file = regular::open(&path).map_err(|error| cannot_open("/data/shards", &path, "tar files", &error))?;
        let mut start = [0; 4];
        let read = file.read_at(&mut start, 0).map_err(|e| Error::io(&path, e))?;
        if let Some(reason) = packed(&start[..read]) {
            self.skipped.because(reason, path.display());
            self.shards.push(path);
            return Ok(());
        }
        let length = file.metadata().map_err(|e| Error::io(&path, e))?.len();
        let left = Rc::new(Cell::new(LARGEST_HEADER));
        let mut archive = Archive::new(Headers { file, left: left.clone() });
        let mut names: Vec<(String, Files)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for entry in archive.entries_with_seek().map_err(|e| Error::io(&path, e))? {
            left.set(LARGEST_HEADER);
            let entry = match entry {
                Ok(entry) => entry,
                Err(_) => {
                    let reason = "the rest of a shard cannot be read: it is damaged, or is not a tar file";
                    self.skipped.because(reason, path.display());
                    break;
                }
            };
            let kind = entry.header().entry_type();
            let inside = entry.path().ok().as_deref().map(FilePath::to_path_buf).unwrap_or_default();
            let shown = format!("{} in {}", inside.display(), path.display());
            if kind == EntryType::Directory || kind == EntryType::XGlobalHeader {
                continue;
            }
            if kind != EntryType::Regular && kind != EntryType::Continuous {
                self.skipped.because("a link or another entry that is not a regular file", shown);
                continue;
            }
            let Some((name, ending)) = sample_name(&inside) else {
                self.skipped.because("a path that is absolute, leads out of the shard or is not UTF-8", shown);
                continue;
            };
            let member = Member { offset: entry.raw_file_position(), size: entry.size() };
            if member.offset.checked_add(member.size).is_none_or(|end| end > length) {
                self.skipped.because("a file that extends past the end of its shard", shown);
                continue;
            }
            if name.rsplit('/').next().is_some_and(str::is_empty) {
                self.skipped.because("a hidden file (its name starts with a dot)", shown);
                continue;
            }
            let Some((part, most)) = Part::of(&ending, condition) else {
                let reason = match ending.as_str() {
                    "" => "a name without an ending".into(),
                    ending => format!("an ending that is not read: .{ending} (an ending starts at the first dot)"),
                };
                self.skipped.because(reason, shown);
                continue;
            };
            let at = *places.entry(name.clone()).or_insert_with(|| {
                names.push((name, Files::default()));
                names.len() - 1
            });
            let place = &mut names[at].1[part as usize];
            if member.size > most {
                self.skipped.because(format!("a file of more than {most} bytes"), shown);
            } else if place.is_some() {
                self.skipped.because("a second file of the same kind for one sample", shown);
            } else {
                *place = Some(member);
            }
        }
        self.shards.push(path);
        for (name, [image, text, json, class]) in names {
            let shown = format!("{name} in {}", self.shards[shard].display());
            let condition = match condition {
                Beside::None => Ok(Source::Nowhere),
                Beside::Caption => {
                    text.map(Source::Text).or(json.map(Source::Json)).ok_or("a sample without a caption")
                }
                Beside::Class => class.ok_or("a sample without a class").and_then(|member| self.class(shard, member)),
            };
            match (image, condition) {
                (Some(image), Ok(condition)) => {
                    condition.class().into_iter().for_each(|class| self.classes.add(class));
                    self.samples.push(Sample { shard, name, image, condition });
                }
                (None, _) => self.skipped.because("a sample without an image", shown),
                (_, Err(reason)) => self.skipped.because(reason, shown),
            }
        }
        Ok(())
    }

    /// Reads the class of a sample.
    fn class(&self, shard: usize, member: Member) -> Result<Source, &'static str> {
        let bytes = self.bytes(shard, member).map_err(|_| "a class file that cannot be read")?;
        let class = decoded(&bytes).and_then(|text| text.trim().parse().ok());
        class.map(Source::Class).ok_or("a class file that is not a number from 0 on")
    }

    /// Reads the bytes of a member.
    fn bytes(&self, shard: usize, member: Member) -> Result<Vec<u8>> {
        let path = &self.shards[shard];
        let file = regular::open(path).map_err(|e| Error::io(path, e))?;
        let mut bytes = vec![0; member.size as usize];
        match file.read_exact_at(&mut bytes, member.offset) {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                Err(Error::file(path, "has become shorter since it was opened"))
            }
            Err(e) => Err(Error::io(path, e)),
        }
    }

    fn wrong(&self, sample: &Sample, what: &str) -> Error {
        Error::file(&self.shards[sample.shard], format!("sample `{}`: {what}", sample.name))
    }

    fn item(&self, index: usize, view: View) -> Result<Item> {
        let sample = &self.samples[index];
        let label = self.label(index)?;
        let image = self.bytes(sample.shard, sample.image)?;
        let decoded = self.framing.decode(&image, view).map_err(|what| self.wrong(sample, &what))?;
        if decoded.transparent {
            self.changed.because(&self.framing.composited(), index, self.source(index));
        }
        Ok(Item { values: decoded.values, label })
    }
}

impl Source {
    /// Returns the class, if the condition is one.
    fn class(self) -> Option<usize> {
        match self {
            Self::Class(class) => Some(class),
            _ => None,
        }
    }
}

/// Reads the headers of a shard. `tar` seeks over the contents of files, but holds long names in memory whole, so the
/// bytes that it reads for one entry are limited.
struct Headers {
    file: File,
    left: Rc<Cell<u64>>,
}

impl Read for Headers {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let most = into.len().min(self.left.get() as usize);
        if most == 0 && !into.is_empty() {
            return Err(ErrorKind::FileTooLarge.into());
        }
        let read = self.file.read(&mut into[..most])?;
        self.left.set(self.left.get() - read as u64);
        Ok(read)
    }
}

impl Seek for Headers {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

/// Returns why a file that starts with these bytes cannot be read at random positions.
fn packed(start: &[u8]) -> Option<&'static str> {
    match start {
        [0x1f, 0x8b, ..] => Some("a shard that is compressed with gzip; unpack it with gunzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("a shard that is compressed with zstd; unpack it with unzstd"),
        [b'B', b'Z', b'h', _] => Some("a shard that is compressed with bzip2; unpack it with bunzip2"),
        [0xfd, b'7', b'z', b'X'] => Some("a shard that is compressed with xz; unpack it with unxz"),
        [b'P', b'K', 3, 4] => Some("a shard that is a zip file; pack its files as tar"),
        [] => Some("an empty shard"),
        _ => None,
    }
}

/// Returns the name of the sample that a file belongs to, and the ending of the file in lower case.
fn sample_name(path: &FilePath) -> Option<(String, String)> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    let file = parts.pop()?;
    let (name, ending) = file.split_once('.').unwrap_or((file, ""));
    parts.push(name);
    Some((parts.join("/"), ending.to_ascii_lowercase()))
}

impl Dataset for OpenShards {
    fn info(&self) -> DatasetInfo {
        self.info.clone()
    }

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item> {
        self.item(index, self.framing.view(index, random, epoch))
    }

    fn plain(&self, index: usize) -> Result<Item> {
        self.item(index, View::default())
    }

    fn label(&self, index: usize) -> Result<Label> {
        let sample = &self.samples[index];
        let text = |bytes: &[u8]| caption(bytes).map(Label::Caption).map_err(|what| self.wrong(sample, &what));
        match sample.condition {
            Source::Nowhere => Ok(Label::None),
            Source::Text(member) => text(&self.bytes(sample.shard, member)?),
            Source::Json(member) => {
                let bytes = self.bytes(sample.shard, member)?;
                let json = decoded(&bytes).ok_or_else(|| self.wrong(sample, "the JSON file is not UTF-8"))?;
                let json: serde_json::Value = serde_json::from_str(&json)
                    .map_err(|e| self.wrong(sample, &format!("the JSON file cannot be parsed: {e}")))?;
                let found =
                    json["caption"].as_str().ok_or_else(|| self.wrong(sample, "the JSON has no \"caption\""))?;
                text(found.as_bytes())
            }
            Source::Class(class) => Ok(Label::Class(class)),
        }
    }

    fn mirrors(&self) -> bool {
        self.framing.horizontal_flip
    }

    fn warnings(&self) -> Vec<String> {
        self.skipped.warnings()
    }

    fn notes(&self) -> Vec<String> {
        self.changed.notes()
    }

    fn describe(&self, index: usize) -> String {
        let Sample { shard, name, image, condition } = &self.samples[index];
        format!("{shard} {name} {image:?} {condition:?}")
    }

    fn source(&self, index: usize) -> String {
        let sample = &self.samples[index];
        format!("sample `{}` in {}", sample.name, self.shards[sample.shard].display())
    }
}

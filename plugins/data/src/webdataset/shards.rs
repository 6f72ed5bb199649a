//! The samples of tar files: which files belong together, and where they are stored.

use crate::decode::{LONGEST_CAPTION, caption, decode};
use crate::skipped::Skipped;
use framework::data::dataset::{Dataset, DatasetInfo, Item, ItemKind, Label};
use framework::error::{Error, Result};
use framework::prelude::*;
use framework::random::Random;
use framework::serde_json;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Component, Path as FilePath, PathBuf};
use tar::{Archive, EntryType};

/// Largest image file that is read, in bytes.
const LARGEST_IMAGE: u64 = 256 << 20;
/// Largest JSON file that is read, in bytes.
const LARGEST_JSON: u64 = 1 << 20;
/// Largest class file that is read, in bytes.
const LARGEST_CLASS: u64 = 64;

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
            ("jpg" | "jpeg" | "png" | "webp", _) => Some((Self::Image, LARGEST_IMAGE)),
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
    Class(Member),
}

/// The samples of all shards.
#[derive(Debug)]
pub struct OpenShards {
    info: DatasetInfo,
    condition: Beside,
    horizontal_flip: bool,
    shards: Vec<PathBuf>,
    samples: Vec<Sample>,
    skipped: Skipped,
}

impl OpenShards {
    /// Creates the dataset without samples.
    pub fn new(info: DatasetInfo, condition: Beside, horizontal_flip: bool) -> Self {
        Self { info, condition, horizontal_flip, shards: Vec::new(), samples: Vec::new(), skipped: Skipped::default() }
    }

    /// Returns the dataset once every shard was added.
    ///
    /// # Errors
    /// If there is no sample.
    pub fn complete(self) -> Result<Box<dyn Dataset>> {
        if self.samples.is_empty() {
            let skipped: String = self.skipped.warnings().iter().map(|warning| format!("\n  {warning}")).collect();
            let count = self.shards.len();
            return Err(Error::Run(format!("the {count} shard(s) hold no complete sample{skipped}")));
        }
        Ok(Box::new(self))
    }

    /// Adds the samples of a shard, in the order of their first files.
    pub fn index(&mut self, path: PathBuf) -> Result<()> {
        let (shard, condition) = (self.shards.len(), self.condition);
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let length = file.metadata().map_err(|e| Error::io(&path, e))?.len();
        let mut archive = Archive::new(file);
        let mut names: Vec<(String, Files)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for entry in archive.entries_with_seek().map_err(|e| Error::io(&path, e))? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.skipped.because("the rest of a shard cannot be read", format!("{}: {error}", path.display()));
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
            let Some((part, most)) = Part::of(&ending, condition) else { continue };
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
        for (name, [image, text, json, class]) in names {
            let source = match condition {
                Beside::None => Some(Source::Nowhere),
                Beside::Caption => text.map(Source::Text).or(json.map(Source::Json)),
                Beside::Class => class.map(Source::Class),
            };
            match (image, source) {
                (Some(image), Some(condition)) => self.samples.push(Sample { shard, name, image, condition }),
                (None, _) => self.skipped.because("a sample without an image", format!("{name} in {}", path.display())),
                (_, None) => {
                    let missing = if condition == Beside::Class { "class" } else { "caption" };
                    let reason = format!("a sample without a {missing}");
                    self.skipped.because(reason, format!("{name} in {}", path.display()));
                }
            }
        }
        self.shards.push(path);
        Ok(())
    }

    /// Reads the bytes of a member.
    fn bytes(&self, shard: usize, member: Member) -> Result<Vec<u8>> {
        let path = &self.shards[shard];
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        file.seek(SeekFrom::Start(member.offset)).map_err(|e| Error::io(path, e))?;
        let mut bytes = Vec::new();
        file.take(member.size).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        if bytes.len() as u64 != member.size {
            return Err(Error::file(path, "has become shorter since it was opened"));
        }
        Ok(bytes)
    }

    fn wrong(&self, sample: &Sample, what: &str) -> Error {
        Error::file(&self.shards[sample.shard], format!("sample `{}`: {what}", sample.name))
    }

    fn item(&self, index: usize, mirrored: bool) -> Result<Item> {
        let sample = &self.samples[index];
        let label = self.label(index)?;
        let ItemKind::Images([channels, size, _]) = self.info.items else { unreachable!("shards hold images") };
        let image = Cursor::new(self.bytes(sample.shard, sample.image)?);
        let values = decode(image, channels, size, mirrored);
        Ok(Item { values: values.map_err(|what| self.wrong(sample, &what))?, label })
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
        let mirrored = self.horizontal_flip && random.uniform("horizontal_flip", index as u64, epoch, 1)[0] < 0.5;
        self.item(index, mirrored)
    }

    fn plain(&self, index: usize) -> Result<Item> {
        self.item(index, false)
    }

    fn label(&self, index: usize) -> Result<Label> {
        let sample = &self.samples[index];
        let text = |bytes: &[u8]| caption(bytes).map(Label::Caption).map_err(|what| self.wrong(sample, &what));
        match sample.condition {
            Source::Nowhere => Ok(Label::None),
            Source::Text(member) => text(&self.bytes(sample.shard, member)?),
            Source::Json(member) => {
                let json: serde_json::Value = serde_json::from_slice(&self.bytes(sample.shard, member)?)
                    .map_err(|e| self.wrong(sample, &format!("the JSON file cannot be parsed: {e}")))?;
                let found =
                    json["caption"].as_str().ok_or_else(|| self.wrong(sample, "the JSON has no \"caption\""))?;
                text(found.as_bytes())
            }
            Source::Class(member) => {
                let bytes = self.bytes(sample.shard, member)?;
                let class = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<usize>().ok());
                let most = self.info.num_classes.unwrap_or_default();
                match class {
                    Some(class) if class < most => Ok(Label::Class(class)),
                    _ => Err(self.wrong(sample, &format!("the class is not a number below {most}"))),
                }
            }
        }
    }

    fn mirrors(&self) -> bool {
        self.horizontal_flip
    }

    fn warnings(&self) -> Vec<String> {
        self.skipped.warnings()
    }
}

//! Samples in tar files, in the layout of WebDataset. Files whose paths agree up to the first dot of the file
//! name form one sample.
//!
//!   a/0001.jpg   the image (jpg, jpeg, png, webp)
//!   a/0001.txt   its caption; if absent, the value "caption" of a/0001.json
//!   a/0001.cls   its class, an integer
//!
//! Opening a shard reads only its headers; reading an item seeks to the offset in its header. Entries that are
//! not regular files with a relative path are skipped and counted.
//!
//! Source: <https://github.com/webdataset/webdataset> for the layout.

use crate::decode::{LONGEST_CAPTION, caption, decode};
use crate::skipped::Skipped;
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::{Error, Problems, Result};
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
/// Most shards that one pattern may expand to.
const MOST_SHARDS: usize = 100_000;

/// Images with captions or classes from tar files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["shards", "image_size"]))]
pub struct WebDataset {
    /// Tar files, or patterns such as "train-{000..012}.tar". A relative path starts at the working directory.
    pub shards: Vec<String>,
    /// Height and width of the items, at least 1 pixel. The shorter side of an image is resized to this value;
    /// the longer side is cropped.
    #[schemars(range(min = 1, max = 16_384))]
    pub image_size: usize,
    /// Channels: 3 = red, green, blue; 1 = grey (Rec. 709 luma).
    #[schemars(extend("enum" = [1, 3]))]
    pub channels: usize,
    /// Condition that is read with each image. A sample without it is skipped.
    pub condition: Beside,
    /// Number of classes, at least 1. Only with the condition "class". A sample whose class is not below it
    /// counts as unreadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub num_classes: Option<usize>,
    /// Whether images are mirrored left to right with probability 1/2, chosen anew in each epoch.
    pub horizontal_flip: bool,
}

impl Default for WebDataset {
    fn default() -> Self {
        Self {
            shards: Vec::new(),
            image_size: 0,
            channels: 3,
            condition: Beside::default(),
            num_classes: None,
            horizontal_flip: false,
        }
    }
}

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

framework::register!(data "webdataset" => WebDataset);

impl DatasetConfig for WebDataset {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        if self.shards.is_empty() {
            problems.push(Problem::new("/shards", "`shards` is empty").accepts("one tar file or more"));
        }
        for (i, pattern) in self.shards.iter().enumerate() {
            if let Err(what) = expand(pattern) {
                let what = format!("`{pattern}`: {what}");
                problems
                    .push(Problem::new(format!("/shards/{i}"), what).accepts("a path, or a pattern with {000..012}"));
            }
        }
        if self.image_size == 0 {
            problems.push(Problem::new("/image_size", "`image_size` is 0").accepts("1 or more pixels"));
        }
        if ![1, 3].contains(&self.channels) {
            let what = format!("`channels` is {}", self.channels);
            problems.push(Problem::new("/channels", what).accepts("1 (grey) or 3 (red, green, blue)"));
        }
        match (self.condition, self.num_classes) {
            (Beside::Class, None | Some(0)) => {
                let what = "`condition` is \"class\", but `num_classes` is not set";
                problems.push(Problem::new("/num_classes", what).and_at("/condition").accepts("1 or more"));
            }
            (Beside::Caption | Beside::None, Some(_)) => {
                let what = "`num_classes` has no effect unless `condition` is \"class\"";
                problems.push(Problem::new("/num_classes", what).and_at("/condition").fix("omit it"));
            }
            _ => {}
        }
        problems
    }

    fn info(&self) -> Option<DatasetInfo> {
        Some(self.known())
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        let mut open =
            OpenShards { config: self.clone(), shards: Vec::new(), samples: Vec::new(), skipped: Skipped::default() };
        for pattern in &self.shards {
            let paths = expand(pattern).map_err(|what| Error::Run(format!("`shards`: `{pattern}`: {what}")))?;
            for path in paths {
                open.index(path)?;
            }
        }
        if open.samples.is_empty() {
            let skipped: String = open.skipped.warnings().iter().map(|warning| format!("\n  {warning}")).collect();
            let count = open.shards.len();
            return Err(Error::Run(format!("the {count} shard(s) hold no complete sample{skipped}")));
        }
        Ok(Box::new(open))
    }
}

impl WebDataset {
    fn known(&self) -> DatasetInfo {
        DatasetInfo {
            items: ItemKind::Images([self.channels, self.image_size, self.image_size]),
            num_classes: self.num_classes,
            captions: self.condition == Beside::Caption,
        }
    }
}

/// Expands the ranges `{000..012}` of a pattern. Numbers are padded with zeros to the width of the first one.
fn expand(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, behind)) = rest.split_once('{') {
        let (range, after) = behind.split_once('}').ok_or("a `{` is not closed")?;
        let (first, last) = range.split_once("..").ok_or(format!("{{{range}}} is not a range of numbers"))?;
        let number = |text: &str| text.parse::<usize>().map_err(|_| format!("{{{range}}} is not a range of numbers"));
        let (from, to, width) = (number(first)?, number(last)?, first.len());
        if from > to {
            return Err(format!("{{{range}}} counts down"));
        }
        if to - from >= MOST_SHARDS / paths.len() {
            return Err(format!("it names more than {MOST_SHARDS} shards"));
        }
        let longer = |path: &String| (from..=to).map(move |i| format!("{path}{before}{i:0width$}")).collect::<Vec<_>>();
        paths = paths.iter().flat_map(longer).collect();
        rest = after;
    }
    Ok(paths.into_iter().map(|path| PathBuf::from(path + rest)).collect())
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

#[derive(Debug)]
struct OpenShards {
    config: WebDataset,
    shards: Vec<PathBuf>,
    samples: Vec<Sample>,
    skipped: Skipped,
}

impl OpenShards {
    /// Adds the samples of a shard, in the order of their first files.
    fn index(&mut self, path: PathBuf) -> Result<()> {
        let (shard, condition) = (self.shards.len(), self.config.condition);
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
        let image = Cursor::new(self.bytes(sample.shard, sample.image)?);
        let values = decode(image, self.config.channels, self.config.image_size, mirrored);
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
        self.config.known()
    }

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item> {
        let mirrored =
            self.config.horizontal_flip && random.uniform("horizontal_flip", index as u64, epoch, 1)[0] < 0.5;
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
                let most = self.config.num_classes.unwrap_or_default();
                match class {
                    Some(class) if class < most => Ok(Label::Class(class)),
                    _ => Err(self.wrong(sample, &format!("the class is not a number below {most}"))),
                }
            }
        }
    }

    fn mirrors(&self) -> bool {
        self.config.horizontal_flip
    }

    fn warnings(&self) -> Vec<String> {
        self.skipped.warnings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageFormat, Luma};
    use proptest::prelude::*;
    use tar::{Builder, Header};
    use tempfile::TempDir;

    fn png(grey: u8) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        GrayImage::from_pixel(3, 2, Luma([grey])).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    /// Builds a header directly, because the `tar` crate refuses to write hostile names.
    fn header(name: &str, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, bytes) in files {
            if name.len() > 100 {
                let mut header = Header::new_gnu();
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, name, *bytes).unwrap();
            } else {
                builder.append(&header(name, bytes.len() as u64), *bytes).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn config(root: &TempDir, condition: Beside) -> WebDataset {
        WebDataset {
            shards: vec![root.path().join("{0..0}.tar").display().to_string()],
            image_size: 2,
            channels: 1,
            condition,
            num_classes: (condition == Beside::Class).then_some(10),
            horizontal_flip: false,
        }
    }

    fn write(root: &TempDir, name: &str, bytes: &[u8]) {
        std::fs::write(root.path().join(name), bytes).unwrap();
    }

    fn labels(data: &dyn Dataset) -> Vec<Label> {
        (0..data.len()).map(|i| data.plain(i).unwrap().label).collect()
    }

    fn captions(all: &[&str]) -> Vec<Label> {
        all.iter().map(|caption| Label::Caption((*caption).into())).collect()
    }

    #[test]
    fn patterns_count_with_leading_zeros() {
        let names = |pattern: &str| -> Result<Vec<String>, String> {
            Ok(expand(pattern)?.into_iter().map(|path| path.display().to_string()).collect())
        };
        assert_eq!(names("a.tar").unwrap(), ["a.tar"]);
        assert_eq!(names("a-{008..010}.tar").unwrap(), ["a-008.tar", "a-009.tar", "a-010.tar"]);
        assert_eq!(names("{0..1}-{3..4}").unwrap(), ["0-3", "0-4", "1-3", "1-4"]);
        for (pattern, says) in [
            ("a{0..1", "not closed"),
            ("{a..b}", "not a range"),
            ("{1}", "not a range"),
            ("{2..1}", "counts down"),
            ("{0..999999999}", "more than 100000"),
            ("{0..999}{0..999}", "more than 100000"),
            ("{0..18446744073709551615}", "more than 100000"),
        ] {
            assert!(names(pattern).unwrap_err().contains(says), "{pattern}");
        }
    }

    #[test]
    fn files_of_one_name_are_one_sample_in_order_of_the_shards() {
        let root = TempDir::new().unwrap();
        let long = format!("{}/one.png", "deep".repeat(40));
        let of_long = format!("{}/one.txt", "deep".repeat(40));
        write(
            &root,
            "0.tar",
            &tar(&[
                ("./b/2.PNG", &png(0)),
                ("./b/2.txt", b"first\n"),
                ("b/2.extra.bin", b"?"),
                ("b/1.json", br#"{"caption": "second", "url": "?"}"#),
                ("b/1.jpg", &png(255)),
                (&long, &png(51)),
                (&of_long, "third é".as_bytes()),
            ]),
        );
        write(&root, "1.tar", &tar(&[("b/1.jpg", &png(7)), ("b/1.txt", b"fourth"), ("b/1.json", b"not read")]));
        let pattern = root.path().join("{0..1}.tar").display().to_string();
        let config = WebDataset { shards: vec![pattern], ..config(&root, Beside::Caption) };
        let data = config.open().unwrap();
        assert_eq!(labels(&*data), captions(&["first", "second", "third é", "fourth"]));
        assert_eq!(data.label(2).unwrap(), Label::Caption("third é".into()));
        assert_eq!(data.warnings(), Vec::<String>::new());
        assert_eq!(Some(data.info()), config.info());
        let greys: Vec<f32> = (0..3).map(|i| data.plain(i).unwrap().values[0]).collect();
        for (grey, expected) in greys.iter().zip([-1.0, 1.0, -0.6]) {
            assert!((grey - expected).abs() < 1e-6, "{greys:?}");
        }
    }

    #[test]
    fn classes_are_read_and_others_refused() {
        let root = TempDir::new().unwrap();
        let image = png(9);
        write(
            &root,
            "0.tar",
            &tar(&[
                ("0.png", &image),
                ("0.cls", b" 7\n"),
                ("1.png", &image),
                ("1.cls", b"10"),
                ("2.png", &image),
                ("2.cls", b"-1"),
                ("3.png", &image),
                ("3.txt", b"no class"),
            ]),
        );
        let data = config(&root, Beside::Class).open().unwrap();
        assert_eq!(data.len(), 3);
        assert_eq!(data.plain(0).unwrap().label, Label::Class(7));
        assert!(data.plain(1).unwrap_err().to_string().contains("sample `1`: the class is not a number below 10"));
        assert!(data.label(2).is_err());
        assert_eq!(data.warnings().len(), 1);
        assert!(data.warnings()[0].starts_with("1 skipped: a sample without a class; the first is 3 in"));
        assert_eq!(config(&root, Beside::None).open().unwrap().plain(3).unwrap().label, Label::None);
    }

    #[test]
    fn what_is_hostile_is_left_out_and_counted() {
        let root = TempDir::new().unwrap();
        let (image, long) = (png(9), vec![b'a'; LONGEST_CAPTION as usize + 1]);
        let mut bytes = tar(&[
            ("../up.png", &image),
            ("/root.png", &image),
            ("good.png", &image),
            ("good.txt", b"good"),
            ("good.jpg", &image),
            ("mute.png", &image),
            ("blind.txt", b"blind"),
            ("long.png", &image),
            ("long.txt", &long),
            ("latin.png", &image),
            ("latin.txt", b"caf\xe9"),
            ("broken.png", b"no image"),
            ("broken.txt", b"broken"),
        ]);
        // Replace the two zero blocks that end the archive by a link and by a file longer than the shard.
        bytes.truncate(bytes.len() - 1024);
        let mut link = header("link.png", 0);
        link.set_entry_type(EntryType::Symlink);
        link.set_link_name("/etc/passwd").unwrap();
        link.set_cksum();
        bytes.extend(link.as_bytes());
        bytes.extend(header("endless.png", 1 << 40).as_bytes());
        write(&root, "0.tar", &bytes);
        let data = config(&root, Beside::Caption).open().unwrap();
        assert_eq!(data.len(), 3);
        assert_eq!(data.plain(0).unwrap().label, Label::Caption("good".into()));
        assert!(data.plain(1).unwrap_err().to_string().contains("sample `latin`: the caption is not UTF-8"));
        assert!(data.plain(2).unwrap_err().to_string().contains("sample `broken`: cannot be decoded"));
        let warnings = data.warnings().join("\n");
        for says in [
            "2 skipped: a path that is absolute, leads out",
            "1 skipped: a second file of the same kind",
            "1 skipped: a file of more than 8192 bytes",
            "1 skipped: a link",
            "1 skipped: a file that extends past the end",
            "2 skipped: a sample without a caption",
            "1 skipped: a sample without an image",
        ] {
            assert!(warnings.contains(says), "{says} is missing in\n{warnings}");
        }
    }

    #[test]
    fn shards_without_a_sample_are_an_error_that_says_why() {
        let root = TempDir::new().unwrap();
        let error = |root: &TempDir| config(root, Beside::Caption).open().unwrap_err().to_string();
        assert!(error(&root).contains("0.tar"));
        write(&root, "0.tar", &tar(&[("a.png", &png(1))]));
        assert!(error(&root).contains("hold no complete sample\n  1 skipped: a sample without a caption"));
        write(&root, "0.tar", b"something else that is no tar file at all");
        assert!(error(&root).contains("hold no complete sample"), "{}", error(&root));
    }

    #[test]
    fn impossible_settings_are_reported_together() {
        let wrong: WebDataset = serde_json::from_value(serde_json::json!({
            "shards": ["a{", "b"], "image_size": 0, "channels": 2, "num_classes": 3
        }))
        .unwrap();
        let at: Vec<String> = wrong.check().into_iter().map(|problem| problem.at[0].clone()).collect();
        assert_eq!(at, ["/shards/0", "/image_size", "/channels", "/num_classes"]);
        let classes = WebDataset {
            shards: Vec::new(),
            condition: Beside::Class,
            num_classes: None,
            image_size: 1,
            channels: 3,
            ..wrong
        };
        assert_eq!(classes.check().len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_shards_are_opened_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let root = TempDir::new().unwrap();
            let mut bytes = tar(&[("a.png", &png(1)), ("a.txt", b"one"), ("b.png", &png(2)), ("b.txt", b"two")]);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            write(&root, "0.tar", &bytes);
            if let Ok(data) = config(&root, Beside::Caption).open() {
                for index in 0..data.len() {
                    if let Ok(item) = data.plain(index) {
                        prop_assert_eq!(item.values.len(), 4);
                    }
                }
            }
        }
    }
}

//! Images in a folder. Either the sub-folders, sorted by name, are the classes, or every image has a caption.
//!
//! The module `decode` converts an image to values. Source: arXiv:2105.05233; `metadata.jsonl` has the layout
//! of Hugging Face's ImageFolder.

use crate::decode::{LONGEST_CAPTION, caption, decode};
use crate::skipped::Skipped;
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::{Error, Problems, Result};
use framework::prelude::*;
use framework::random::Random;
use framework::serde_json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path as FilePath, PathBuf};
use walkdir::WalkDir;

/// Endings of the files that are read, in upper or lower case.
const ENDINGS: [&str; 5] = ["bmp", "jpeg", "jpg", "png", "webp"];
/// Longest line of `metadata.jsonl` that is read, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Images in a folder. Each sub-folder is a class, in order of name. If there are no sub-folders, images have
/// no class. With captions, sub-folders are not classes, and images without a caption are skipped.
///
/// The dataset reads files that end in bmp, jpeg, jpg, png or webp, at any depth below a class folder. It
/// ignores other files, and names that start with a dot. It drops alpha channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["path", "image_size"]))]
pub struct ImageFolder {
    /// The folder. A relative path starts at the working directory.
    pub path: PathBuf,
    /// Height and width of the items, at least 1 pixel. The shorter side of an image is resized to this value;
    /// the longer side is cropped.
    #[schemars(range(min = 1))]
    pub image_size: usize,
    /// Channels: 3 = red, green, blue; 1 = grey (Rec. 709 luma).
    #[schemars(extend("enum" = [1, 3]))]
    pub channels: usize,
    /// Number of class folders, at least 0; 0 = images without classes. Must agree with the folder. Omitted =
    /// counted when the folder is opened; a document that states it can be checked without the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub num_classes: Option<usize>,
    /// Where the captions are stored.
    pub captions: Captions,
    /// Whether images are mirrored left to right with probability 1/2, chosen anew in each epoch.
    pub horizontal_flip: bool,
}

impl Default for ImageFolder {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            image_size: 0,
            channels: 3,
            num_classes: None,
            captions: Captions::default(),
            horizontal_flip: false,
        }
    }
}

/// Where the captions of the images are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Captions {
    /// Images have no captions.
    #[default]
    None,
    /// In the file `NAME.txt` next to `NAME.png`.
    Files,
    /// In the file `metadata.jsonl` in the folder. Each line is `{"file_name": "a/NAME.png", "text": "..."}`.
    Metadata,
}

framework::register!(data "image_folder" => ImageFolder, "arXiv:2105.05233");

impl DatasetConfig for ImageFolder {
    fn check(&self) -> Problems {
        let mut problems = Problems::new();
        if self.image_size == 0 {
            problems.push(Problem::new("/image_size", "`image_size` is 0").accepts("1 or more pixels"));
        }
        if ![1, 3].contains(&self.channels) {
            let what = format!("`channels` is {}", self.channels);
            problems.push(Problem::new("/channels", what).accepts("1 (grey) or 3 (red, green, blue)"));
        }
        if self.captions != Captions::None && self.num_classes.is_some() {
            let what = "`num_classes` has no effect: images with captions have no classes";
            problems.push(Problem::new("/num_classes", what).and_at("/captions").fix("omit it"));
        }
        problems
    }

    fn info(&self) -> Option<DatasetInfo> {
        if self.captions != Captions::None {
            return Some(self.info_with(0));
        }
        self.num_classes.map(|count| self.info_with(count))
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        if self.captions != Captions::None {
            let (files, skipped) = captioned(&self.path, self.captions)?;
            return Ok(Box::new(OpenFolder { config: self.clone(), class_names: Vec::new(), files, skipped }));
        }
        let (class_names, files) = list(&self.path)?;
        if let Some(declared) = self.num_classes
            && declared != class_names.len()
        {
            let what = format!(
                "holds {} class folder(s), but the document says `num_classes` = {declared}; \
                 correct it or omit it",
                class_names.len()
            );
            return Err(Error::file(&self.path, what));
        }
        Ok(Box::new(OpenFolder { config: self.clone(), class_names, files, skipped: Skipped::default() }))
    }
}

impl ImageFolder {
    fn info_with(&self, num_classes: usize) -> DatasetInfo {
        DatasetInfo {
            items: ItemKind::Images([self.channels, self.image_size, self.image_size]),
            num_classes: (num_classes > 0).then_some(num_classes),
            captions: self.captions != Captions::None,
        }
    }
}

/// The names of the classes, and every image with its label.
type Listing = (Vec<String>, Vec<(PathBuf, Label)>);

/// Lists the class names, and every image with its class, both in order of name.
fn list(root: &FilePath) -> Result<Listing> {
    let mut folders = Vec::new();
    let mut files = Vec::new();
    for entry in fs::read_dir(root).map_err(|e| Error::io(root, e))? {
        let path = entry.map_err(|e| Error::io(root, e))?.path();
        if is_hidden(&path) {
            continue;
        }
        if path.is_dir() {
            folders.push(path);
        } else if is_image(&path) {
            files.push(path);
        }
    }
    folders.sort();
    files.sort();

    if folders.is_empty() {
        if files.is_empty() {
            let what = format!("holds no image; supported endings are {}", ENDINGS.join(", "));
            return Err(Error::file(root, what));
        }
        return Ok((Vec::new(), files.into_iter().map(|file| (file, Label::None)).collect()));
    }
    if let Some(file) = files.first() {
        let what = format!(
            "is next to class folders such as {}; put every image into a class folder, or none",
            folders[0].display()
        );
        return Err(Error::file(file, what));
    }

    let mut names = Vec::new();
    let mut labelled = Vec::new();
    for (class, folder) in folders.iter().enumerate() {
        let before = labelled.len();
        for entry in WalkDir::new(folder).follow_links(true).sort_by_file_name() {
            let entry = entry.map_err(|e| Error::file(folder, e.to_string()))?;
            if entry.file_type().is_file() && !is_hidden(entry.path()) && is_image(entry.path()) {
                labelled.push((entry.into_path(), Label::Class(class)));
            }
        }
        if labelled.len() == before {
            let what = format!("is a class folder without images; supported endings are {}", ENDINGS.join(", "));
            return Err(Error::file(folder, what));
        }
        names.push(folder.file_name().expect("a directory entry has a name").to_string_lossy().into_owned());
    }
    Ok((names, labelled))
}

/// Lists every image that has a caption, at any depth and in order of path, and counts what is skipped.
fn captioned(root: &FilePath, captions: Captions) -> Result<(Vec<(PathBuf, Label)>, Skipped)> {
    let mut skipped = Skipped::default();
    let mut told = match captions {
        Captions::Metadata => metadata(&root.join("metadata.jsonl"), &mut skipped)?,
        _ => BTreeMap::new(),
    };
    let mut files = Vec::new();
    let visible = |entry: &walkdir::DirEntry| entry.depth() == 0 || !is_hidden(entry.path());
    for entry in WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter().filter_entry(visible) {
        let path = entry.map_err(|e| Error::file(root, e.to_string()))?.into_path();
        if !is_image(&path) || !path.is_file() {
            continue;
        }
        let found = match captions {
            Captions::Metadata => {
                let name = path.strip_prefix(root).unwrap_or(&path);
                told.remove(name).ok_or_else(|| "an image without a line in metadata.jsonl".to_string())
            }
            _ => beside(&path),
        };
        match found {
            Ok(caption) => files.push((path, Label::Caption(caption))),
            Err(reason) => skipped.because(reason, path.display()),
        }
    }
    for name in told.keys() {
        skipped.because("a line of metadata.jsonl that names no image in the folder", name.display());
    }
    if files.is_empty() {
        let why: String = skipped.warnings().iter().map(|warning| format!("\n  {warning}")).collect();
        return Err(Error::file(root, format!("holds no image with a caption{why}")));
    }
    Ok((files, skipped))
}

/// Reads the caption from the text file next to an image.
fn beside(image: &FilePath) -> Result<String, String> {
    let file = File::open(image.with_extension("txt")).map_err(|_| "an image without a caption file".to_string())?;
    let mut bytes = Vec::new();
    // Read one byte more than the limit, so that `caption` can detect longer files.
    file.take(LONGEST_CAPTION + 1).read_to_end(&mut bytes).map_err(|e| format!("an unreadable caption file: {e}"))?;
    caption(&bytes)
}

/// One line of `metadata.jsonl`; other keys are ignored.
#[derive(Deserialize)]
struct Line {
    file_name: String,
    text: String,
}

/// Reads the captions in `metadata.jsonl`, keyed by file name relative to the folder.
fn metadata(path: &FilePath, skipped: &mut Skipped) -> Result<BTreeMap<PathBuf, String>> {
    let mut reader = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
    let mut told = BTreeMap::new();
    for number in 1.. {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes);
        if read.map_err(|e| Error::io(path, e))? == 0 {
            break;
        }
        let at = format!("line {number} of {}", path.display());
        if bytes.len() as u64 == LONGEST_LINE && bytes.last() != Some(&b'\n') {
            reader.skip_until(b'\n').map_err(|e| Error::io(path, e))?;
            skipped.because(format!("a line longer than {LONGEST_LINE} bytes"), at);
            continue;
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let Ok(Line { file_name, text }) = serde_json::from_slice(&bytes) else {
            skipped.because("a line that is not a JSON object with \"file_name\" and \"text\"", at);
            continue;
        };
        let parts: Vec<Component<'_>> =
            FilePath::new(&file_name).components().filter(|part| *part != Component::CurDir).collect();
        if !parts.iter().all(|part| matches!(part, Component::Normal(_))) {
            skipped.because("a file name that is absolute or leads out of the folder", at);
            continue;
        }
        match caption(text.as_bytes()) {
            Err(reason) => skipped.because(reason, at),
            Ok(_) if told.contains_key(&parts.iter().collect::<PathBuf>()) => {
                skipped.because("a second line for the same file", at);
            }
            Ok(caption) => drop(told.insert(parts.iter().collect(), caption)),
        }
    }
    Ok(told)
}

fn is_hidden(path: &FilePath) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_image(path: &FilePath) -> bool {
    path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

#[derive(Debug)]
struct OpenFolder {
    config: ImageFolder,
    class_names: Vec<String>,
    files: Vec<(PathBuf, Label)>,
    skipped: Skipped,
}

impl OpenFolder {
    fn item(&self, index: usize, mirrored: bool) -> Result<Item> {
        let (path, label) = &self.files[index];
        let file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        let values = decode(file, self.config.channels, self.config.image_size, mirrored);
        Ok(Item { values: values.map_err(|what| Error::file(path, what))?, label: label.clone() })
    }
}

impl Dataset for OpenFolder {
    fn info(&self) -> DatasetInfo {
        self.config.info_with(self.class_names.len())
    }

    fn len(&self) -> usize {
        self.files.len()
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
        Ok(self.files[index].1.clone())
    }

    fn mirrors(&self) -> bool {
        self.config.horizontal_flip
    }

    fn warnings(&self) -> Vec<String> {
        self.skipped.warnings()
    }

    fn class_names(&self) -> Option<Vec<String>> {
        (!self.class_names.is_empty()).then(|| self.class_names.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};
    use tempfile::TempDir;

    fn folder(path: &FilePath, image_size: usize) -> ImageFolder {
        let (channels, captions) = (3, Captions::None);
        ImageFolder { path: path.into(), image_size, channels, num_classes: None, captions, horizontal_flip: false }
    }

    fn save(root: &TempDir, name: &str, image: &RgbImage) {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(path).unwrap();
    }

    /// Returns a 2x2 image whose red channel is 0 51 / 102 255; green is 0 and blue is 255.
    fn small() -> RgbImage {
        let red = [[0, 51], [102, 255]];
        RgbImage::from_fn(2, 2, |x, y| Rgb([red[y as usize][x as usize], 0, 255]))
    }

    #[test]
    fn sub_folders_are_classes_in_order_of_name() {
        let root = TempDir::new().unwrap();
        save(&root, "zebra/1.png", &small());
        save(&root, "ant/b/2.png", &small());
        save(&root, "ant/1.PNG", &small());
        save(&root, ".cache/1.png", &small());
        fs::write(root.path().join("ant/readme.txt"), "not an image").unwrap();

        let data = folder(root.path(), 2).open().unwrap();
        let labels: Vec<Label> = (0..data.len()).map(|i| data.plain(i).unwrap().label).collect();
        assert_eq!(labels, [Label::Class(0), Label::Class(0), Label::Class(1)]);
        assert_eq!(data.class_names().unwrap(), ["ant", "zebra"]);
        assert_eq!(data.info().num_classes, Some(2));
    }

    #[test]
    fn numbers_are_channel_rows_in_minus_one_to_one() {
        let root = TempDir::new().unwrap();
        save(&root, "1.png", &small());
        let data = folder(root.path(), 2).open().unwrap();
        let item = data.plain(0).unwrap();
        let expected = [-1.0, -0.6, -0.2, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0];
        for (got, expected) in item.values.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
        assert_eq!(item.label, Label::None);
        assert_eq!(data.info(), DatasetInfo { items: ItemKind::Images([3, 2, 2]), num_classes: None, captions: false });
        assert_eq!(data.class_names(), None);
    }

    #[test]
    fn flips_are_a_function_of_index_and_epoch() {
        let root = TempDir::new().unwrap();
        save(&root, "1.png", &small());
        let config = ImageFolder { horizontal_flip: true, channels: 1, ..folder(root.path(), 2) };
        let data = config.open().unwrap();
        let plain = data.plain(0).unwrap().values;
        let mirrored = vec![plain[1], plain[0], plain[3], plain[2]];
        let random = Random::new(4);
        let mut flips = 0;
        for epoch in 0..64 {
            let values = data.get(0, &random, epoch).unwrap().values;
            assert_eq!(values, data.get(0, &random, epoch).unwrap().values);
            assert!(values == plain || values == mirrored);
            flips += usize::from(values == mirrored);
        }
        assert!((16..=48).contains(&flips), "{flips}");
        let still = ImageFolder { horizontal_flip: false, ..config }.open().unwrap();
        assert!((0..64).all(|epoch| still.get(0, &random, epoch).unwrap().values == plain));
    }

    #[test]
    fn info_is_known_beforehand_where_classes_are_declared() {
        let omitted = folder(FilePath::new("nowhere"), 4);
        assert_eq!(omitted.info(), None);
        let of = |count| ImageFolder { num_classes: Some(count), ..omitted.clone() }.info().unwrap().num_classes;
        assert_eq!((of(0), of(7)), (None, Some(7)));
    }

    #[test]
    fn errors_name_the_file_and_what_helps() {
        let root = TempDir::new().unwrap();
        let message = |config: &ImageFolder| config.open().unwrap_err().to_string();
        let missing = root.path().join("missing");
        assert!(message(&folder(&missing, 2)).contains("missing"));
        assert!(message(&folder(root.path(), 2)).contains("holds no image; supported endings are bmp"));

        save(&root, "a/1.png", &small());
        let declared = ImageFolder { num_classes: Some(3), ..folder(root.path(), 2) };
        assert!(message(&declared).contains("holds 1 class folder(s), but the document says `num_classes` = 3"));

        fs::write(root.path().join("a/2.png"), "not a png").unwrap();
        let error = folder(root.path(), 2).open().unwrap().plain(1).unwrap_err().to_string();
        assert!(error.contains("2.png: cannot be decoded as an image"), "{error}");

        fs::create_dir(root.path().join("b")).unwrap();
        assert!(message(&folder(root.path(), 2)).contains("b: is a class folder without images"));
        save(&root, "1.png", &small());
        assert!(message(&folder(root.path(), 2)).contains("1.png: is next to class folders"));
    }

    fn captions_of(data: &dyn Dataset) -> Vec<String> {
        let caption = |i: usize| match data.plain(i).unwrap().label {
            Label::Caption(caption) if data.label(i).unwrap() == Label::Caption(caption.clone()) => caption,
            other => panic!("{other:?}"),
        };
        (0..data.len()).map(caption).collect()
    }

    #[track_caller]
    fn warned(data: &dyn Dataset, expected: &[&str]) {
        let warnings = data.warnings().join("\n");
        assert_eq!(data.warnings().len(), expected.len(), "{warnings}");
        expected.iter().for_each(|says| assert!(warnings.contains(says), "{says} is missing in\n{warnings}"));
    }

    #[test]
    fn captions_stand_in_text_files_beside_the_images() {
        let root = TempDir::new().unwrap();
        for name in ["a.png", "b/c.png", "mute.png", "empty.png", "latin.png", "long.png", ".hidden/d.png"] {
            save(&root, name, &small());
        }
        let text = |name: &str, bytes: &[u8]| fs::write(root.path().join(name), bytes).unwrap();
        text("a.txt", b" a small\npicture \n");
        text("b/c.txt", "caf\u{e9}".as_bytes());
        text("empty.txt", b"\n");
        text("latin.txt", b"caf\xe9");
        text("long.txt", &vec![b'a'; LONGEST_CAPTION as usize + 1]);
        let config = ImageFolder { captions: Captions::Files, ..folder(root.path(), 2) };
        let data = config.open().unwrap();
        assert_eq!(captions_of(&*data), ["a small\npicture", "caf\u{e9}"]);
        assert_eq!(Some(data.info()), config.info());
        assert!(data.info().captions && data.info().num_classes.is_none());
        warned(
            &*data,
            &[
                "1 skipped: an image without a caption file; the first is",
                "the caption is empty",
                "the caption is not UTF-8",
                "the caption is longer than",
            ],
        );
        let mute = TempDir::new().unwrap();
        save(&mute, "1.png", &small());
        let error = ImageFolder { captions: Captions::Files, ..folder(mute.path(), 2) }.open().unwrap_err().to_string();
        assert!(
            error.contains("holds no image with a caption\n  1 skipped: an image without a caption file"),
            "{error}"
        );
    }

    #[test]
    fn captions_stand_in_metadata_and_hostile_lines_are_left_out() {
        let root = TempDir::new().unwrap();
        for name in ["a.png", "b/c.png", "mute.png"] {
            save(&root, name, &small());
        }
        let outside = root.path().join("a.png").display().to_string();
        let lines = [
            r#"{"file_name": "./b/c.png", "text": "second", "url": [1]}"#.to_string(),
            r#"{"file_name": "a.png", "text": "first"}"#.into(),
            String::new(),
            r#"{"file_name": "a.png", "text": "again"}"#.into(),
            r#"{"file_name": "../a.png", "text": "out"}"#.into(),
            r#"{"file_name": "b/../a.png", "text": "out"}"#.into(),
            format!(r#"{{"file_name": "{outside}", "text": "out"}}"#),
            r#"{"file_name": "gone.png", "text": "gone"}"#.into(),
            r#"{"file_name": "mute.png", "text": " "}"#.into(),
            r#"{"file_name": "a.png""#.into(),
            r#"["a.png"]"#.into(),
            "x".repeat(LONGEST_LINE as usize + 7),
        ];
        fs::write(root.path().join("metadata.jsonl"), lines.join("\n")).unwrap();
        let config = ImageFolder { captions: Captions::Metadata, ..folder(root.path(), 2) };
        let data = config.open().unwrap();
        assert_eq!(captions_of(&*data), ["first", "second"]);
        warned(
            &*data,
            &[
                "1 skipped: a second line for the same file; the first is line 4",
                "3 skipped: a file name that is absolute or leads out of the folder; the first is line 5",
                "1 skipped: a line of metadata.jsonl that names no image in the folder; the first is gone.png",
                "1 skipped: the caption is empty",
                "2 skipped: a line that is not a JSON object",
                "1 skipped: a line longer than",
                "1 skipped: an image without a line in metadata.jsonl",
            ],
        );
        let missing = ImageFolder { captions: Captions::Metadata, ..folder(TempDir::new().unwrap().path(), 2) };
        assert!(missing.open().unwrap_err().to_string().contains("metadata.jsonl: "));
        let classes = ImageFolder { num_classes: Some(2), ..config };
        assert_eq!(classes.check()[0].at, ["/num_classes", "/captions"]);
    }

    #[test]
    fn impossible_settings_are_reported_together() {
        let problems = ImageFolder { channels: 4, ..folder(FilePath::new("x"), 0) }.check();
        assert_eq!(problems.iter().map(|p| p.at[0].as_str()).collect::<Vec<_>>(), ["/image_size", "/channels"]);
        assert!(folder(FilePath::new("x"), 2).check().is_empty());
    }
}

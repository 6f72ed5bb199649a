//! Looks at a folder of images: sizes, colours, class folders, captions and broken files.

use framework::error::{Error, Problem, Result};
use image::{ImageFormat, ImageReader};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// Images whose size is read, evenly spread.
const SIZES: usize = 2000;
/// Images that are decoded to see whether they are grey, evenly spread.
const DECODED: usize = 32;
/// Characters of captions whose words are collected.
const MOST_TEXT: u64 = 64 << 20;

/// Where captions were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Captions {
    /// In a text file next to each image.
    Files,
    /// In `metadata.jsonl`.
    Metadata,
}

/// What a folder contains.
#[derive(Debug)]
pub struct Survey {
    /// The folder.
    pub folder: PathBuf,
    /// Class folders with their number of images.
    pub classes: Vec<(String, usize)>,
    /// Images.
    pub images: usize,
    /// Where the captions are, if there are any.
    pub captions: Option<Captions>,
    /// Smallest, median and largest shorter side, in pixels.
    pub sides: [u32; 3],
    /// Whether all decoded images are grey.
    pub is_grey: bool,
    /// Files that end like an image and are not one, with the reason.
    pub broken: Vec<(PathBuf, String)>,
    /// Words of the captions, in lower case and in order, and the length of the longest caption, in words.
    pub words: (Vec<String>, usize),
}

/// Looks at a folder of images.
///
/// # Errors
/// If the folder cannot be read, has no images, or has images without classes and captions.
pub fn survey(folder: &Path) -> Result<Survey> {
    let refuse = |what: String| Problem::new(folder.display().to_string(), what);
    if !folder.is_dir() {
        let near = run_folder::nearest_file::nearest_file(folder);
        return Err(refuse("the folder does not exist".into()).nearest(near).accepts("a folder of images").into());
    }
    let (mut files, mut all) = (Vec::new(), BTreeSet::new());
    let is_visible = |name: &std::ffi::OsStr| !name.to_string_lossy().starts_with('.');
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || is_visible(entry.file_name())).flatten() {
        if entry.file_type().is_file() {
            let path = entry.into_path();
            if ImageFormat::from_path(&path).is_ok() || path.extension().is_some_and(|ending| ending == "jpe") {
                files.push(path.clone());
            }
            all.insert(path);
        }
    }
    if files.is_empty() {
        return Err(refuse("the folder holds no images".into()).accepts("png, jpeg, webp, bmp, gif or tiff").into());
    }
    let mut survey = sizes(folder, &files)?;
    let mut texts = Vec::new();
    let metadata = folder.join("metadata.jsonl");
    let with_text = files.iter().filter(|path| all.contains(&path.with_extension("txt"))).count();
    if metadata.is_file() {
        survey.captions = Some(Captions::Metadata);
        let lines = text(&metadata)?;
        let caption = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line.get("text")?.as_str()?.to_string())
        };
        texts.extend(lines.lines().filter_map(caption));
    } else if with_text * 2 > files.len() {
        survey.captions = Some(Captions::Files);
        texts.extend(files.iter().filter_map(|path| text(&path.with_extension("txt")).ok()));
    }
    if survey.captions.is_some() {
        survey.words = words(&texts);
        return Ok(survey);
    }
    let mut classes: BTreeMap<String, usize> = BTreeMap::new();
    let mut loose = Vec::new();
    for path in &files {
        match path.strip_prefix(folder).ok().and_then(|rest| Some((rest.parent()?, rest.components().next()?))) {
            Some((parent, first)) if !parent.as_os_str().is_empty() => {
                *classes.entry(first.as_os_str().to_string_lossy().into_owned()).or_default() += 1;
            }
            _ => loose.push(path),
        }
    }
    if let Some(first) = loose.first() {
        let what = match classes.is_empty() {
            true => "the images have neither class folders nor captions".to_string(),
            false => format!("{} images are next to the class folders; the first is {}", loose.len(), first.display()),
        };
        return Err(refuse(what)
            .accepts("a sub-folder of images per class, NAME.txt next to each image, or metadata.jsonl")
            .fix("put the images of each class into a sub-folder of its own; one sub-folder is enough")
            .into());
    }
    survey.classes = classes.into_iter().collect();
    Ok(survey)
}

fn text(path: &Path) -> Result<String> {
    let size = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > MOST_TEXT {
        return Err(Error::file(path, format!("has more than {MOST_TEXT} bytes")));
    }
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    Ok(String::from_utf8_lossy(&bytes).trim_start_matches('\u{feff}').to_string())
}

/// Returns the distinct words of captions, and the length of the longest caption in words.
fn words(captions: &[String]) -> (Vec<String>, usize) {
    let mut found = BTreeSet::new();
    let mut longest = 0;
    for caption in captions {
        let words: Vec<String> = caption.split_whitespace().map(str::to_lowercase).collect();
        longest = longest.max(words.len());
        found.extend(words);
    }
    (found.into_iter().collect(), longest)
}

/// Reads the sizes and colours of some images.
fn sizes(folder: &Path, files: &[PathBuf]) -> Result<Survey> {
    let spread = |most: usize| framework::data::loader::spread(files.len(), most).into_iter().map(move |i| &files[i]);
    let (mut sides, mut broken, mut is_grey) = (Vec::new(), Vec::new(), true);
    for path in spread(SIZES) {
        match open(path).and_then(ImageReader::into_dimensions) {
            Ok((width, height)) => sides.push(width.min(height)),
            Err(error) => broken.push((path.clone(), error.to_string())),
        }
    }
    for path in spread(DECODED) {
        if let Ok(picture) = open(path).and_then(ImageReader::decode) {
            is_grey &= picture.to_rgb8().pixels().all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]);
        }
    }
    sides.sort_unstable();
    let Some(smallest) = sides.first() else {
        let what = format!("no image can be read; the first error is about {}: {}", broken[0].0.display(), broken[0].1);
        return Err(Problem::new(folder.display().to_string(), what).into());
    };
    Ok(Survey {
        folder: folder.to_path_buf(),
        classes: Vec::new(),
        images: files.len(),
        captions: None,
        sides: [*smallest, sides[sides.len() / 2], sides[sides.len() - 1]],
        is_grey,
        broken,
        words: (Vec::new(), 0),
    })
}

fn open(path: &Path) -> Result<ImageReader<std::io::BufReader<fs::File>>, image::ImageError> {
    // The content decides the format, as in the dataset.
    Ok(ImageReader::open(path)?.with_guessed_format()?)
}

impl Survey {
    /// Returns the findings as lines for the terminal.
    pub fn lines(&self) -> Vec<String> {
        let [least, median, most] = self.sides;
        let sizes = if least == most { format!("{least} pixels") } else { format!("{least} to {most} pixels") };
        let colour = if self.is_grey { "grey" } else { "colour" };
        let folder = self.folder.display();
        let mut lines =
            vec![format!("images       {} in {folder}, {colour}, shorter side {sizes} (median {median})", self.images)];
        if let Some(captions) = self.captions {
            let place = if captions == Captions::Files { "text files" } else { "metadata.jsonl" };
            let (words, longest) = &self.words;
            lines.push(format!("             captions in {place}: {} words, at most {longest} each", words.len()));
        } else {
            let named = self.classes.iter().take(8).map(|(name, count)| format!("{name} {count}"));
            let more = if self.classes.len() > 8 { ", .." } else { "" };
            let named = named.collect::<Vec<_>>().join(", ");
            lines.push(format!("             {} classes: {named}{more}", self.classes.len()));
        }
        if let Some((path, why)) = self.broken.first() {
            let count = self.broken.len();
            lines.push(format!("             {count} cannot be read; the first is {}: {why}", path.display()));
        }
        lines
    }
}

//! Finds the images of a folder, and the class or caption of each one. Counts every entry that it skips.

use super::metadata::{self, metadata};
use super::spelling::decomposed;
use crate::decode::ENDINGS;
use crate::left_out::{ending, hidden, unreadable};
use crate::missing::cannot_open;
use crate::regular;
use crate::skipped::Skipped;
use crate::text::{LONGEST_CAPTION, caption};
use framework::data::dataset::Label;
use framework::error::{Error, Result};
use framework::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path as FilePath, PathBuf};
use walkdir::WalkDir;

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

/// The images of a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Names of the classes, in order; empty if there are no classes.
    pub class_names: Vec<String>,
    /// Every image with its label, in order.
    pub files: Vec<(PathBuf, Label)>,
    /// The skipped entries.
    pub skipped: Skipped,
}

/// Lists the class names, and every image with its class, both in order of name.
///
/// # Errors
/// If the folder cannot be read, holds no image, holds images next to class folders, or holds a class folder without
/// images, unless `allow_empty` is set.
pub fn classes(root: &FilePath, allow_empty: bool) -> Result<Listing> {
    let mut listing = Listing::default();
    let skipped = &mut listing.skipped;
    let mut folders = Vec::new();
    let mut files = Vec::new();
    for entry in read(root)? {
        let path = entry.map_err(|e| Error::io(root, e))?.path();
        if let Some(reason) = hidden(path.file_name().unwrap_or_default()) {
            skipped.because(reason, path.display());
            continue;
        }
        match fs::metadata(&path) {
            Err(error) => skipped.because(unreadable(error.kind()), path.display()),
            Ok(found) if found.is_dir() => folders.push(path),
            Ok(found) if !found.is_file() => skipped.because(regular::kind(found.file_type()), path.display()),
            Ok(_) if is_image(&path) => files.push(path),
            Ok(_) => skipped.because(ending(&path), path.display()),
        }
    }
    folders.sort();
    files.sort();

    if folders.is_empty() {
        if files.is_empty() {
            let what = format!("holds no image; supported endings are {}{}", ENDINGS.join(", "), skipped.lines());
            return Err(Error::file(root, what));
        }
        listing.files = files.into_iter().map(|file| (file, Label::None)).collect();
        return Ok(listing);
    }
    if let Some(file) = files.first() {
        let what = format!(
            "is next to class folders such as {}; put every image into a class folder, or none",
            folders[0].display()
        );
        return Err(Error::file(file, what));
    }

    for (class, folder) in folders.iter().enumerate() {
        let (images, others) = images(folder, skipped);
        others.iter().for_each(|path| skipped.because(ending(path), path.display()));
        if images.is_empty() && !allow_empty {
            let what = format!(
                "is a class folder without images; supported endings are {}. Remove it, or set `allow_empty_classes`{}",
                ENDINGS.join(", "),
                skipped.lines()
            );
            return Err(Error::file(folder, what));
        }
        listing.files.extend(images.into_iter().map(|path| (path, Label::Class(class))));
        let name = folder.file_name().expect("a directory entry has a name");
        listing.class_names.push(name.to_string_lossy().into_owned());
    }
    if listing.files.is_empty() {
        return Err(Error::file(root, format!("holds class folders, but no image{}", listing.skipped.lines())));
    }
    Ok(listing)
}

/// Lists every image that has a caption, at any depth and in order of path.
///
/// # Errors
/// If the folder or `metadata.jsonl` cannot be read, or no image has a caption.
pub fn captioned(root: &FilePath, captions: Captions) -> Result<Listing> {
    let mut listing = Listing::default();
    let skipped = &mut listing.skipped;
    read(root)?;
    let lines = root.join(metadata::NAME);
    let mut told = match captions {
        Captions::Metadata => metadata(&lines, skipped)?,
        _ => BTreeMap::new(),
    };
    let spelled = |name: &FilePath| name.to_str().map(decomposed);
    let other_spelling: BTreeMap<String, PathBuf> =
        told.keys().filter_map(|name| Some((spelled(name)?, name.clone()))).collect();
    let (images, others) = images(root, skipped);
    let mut read = BTreeSet::new();
    if captions == Captions::Metadata {
        read.insert(lines);
    }
    for path in images {
        let found = match captions {
            Captions::Metadata => {
                let name = path.strip_prefix(root).unwrap_or(&path);
                let other = || other_spelling.get(&spelled(name)?);
                let found = told.remove(name).or_else(|| told.remove(other()?));
                found.ok_or_else(|| "an image without a line in metadata.jsonl".to_string())
            }
            _ => {
                read.insert(path.with_extension("txt"));
                beside(&path)
            }
        };
        match found {
            Ok(caption) => listing.files.push((path, Label::Caption(caption))),
            Err(reason) => skipped.because(reason, path.display()),
        }
    }
    for path in others.iter().filter(|path| !read.contains(*path)) {
        skipped.because(ending(path), path.display());
    }
    for name in told.keys() {
        skipped.because("a line of metadata.jsonl that names no image in the folder", name.display());
    }
    if listing.files.is_empty() {
        return Err(Error::file(root, format!("holds no image with a caption{}", skipped.lines())));
    }
    Ok(listing)
}

/// Opens the folder that the document names.
fn read(root: &FilePath) -> Result<fs::ReadDir> {
    fs::read_dir(root).map_err(|error| cannot_open("/data/path", root, "a folder of images", &error))
}

/// Returns the images and the other regular files at any depth below `folder`, each in order of path. Counts entries
/// that are hidden, cannot be read, or are not regular files.
fn images(folder: &FilePath, skipped: &mut Skipped) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut images, mut others) = (Vec::new(), Vec::new());
    let mut walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let reason = match error.loop_ancestor() {
                    Some(_) => "a link to a folder that contains it".to_string(),
                    None => unreadable(error.io_error().map_or(ErrorKind::Other, std::io::Error::kind)),
                };
                skipped.because(reason, error.path().unwrap_or(folder).display());
                continue;
            }
        };
        let kind = entry.file_type();
        if entry.depth() == 0 {
            continue;
        }
        if let Some(reason) = hidden(entry.file_name()) {
            skipped.because(reason, entry.path().display());
            if kind.is_dir() {
                walk.skip_current_dir();
            }
        } else if kind.is_file() {
            let into = if is_image(entry.path()) { &mut images } else { &mut others };
            into.push(entry.into_path());
        } else if !kind.is_dir() {
            skipped.because(regular::kind(kind), entry.path().display());
        }
    }
    (images, others)
}

/// Reads the caption from the text file next to an image.
fn beside(image: &FilePath) -> Result<String, String> {
    // Read one byte more than the limit, so that `caption` can detect longer files.
    match regular::read(&image.with_extension("txt"), LONGEST_CAPTION) {
        Ok(bytes) => caption(&bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => Err("an image without a caption file".into()),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => {
            Err(format!("the caption is longer than {LONGEST_CAPTION} bytes"))
        }
        Err(error) => Err(format!("an unreadable caption file: {error}")),
    }
}

fn is_image(path: &FilePath) -> bool {
    path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

//! Finds the images of a folder, and the class or caption of each one.

use super::metadata::metadata;
use crate::decode::{LONGEST_CAPTION, caption};
use crate::skipped::Skipped;
use framework::data::dataset::Label;
use framework::error::{Error, Result};
use framework::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path as FilePath, PathBuf};
use walkdir::WalkDir;

/// Endings of the files that are read, in upper or lower case.
const ENDINGS: [&str; 5] = ["bmp", "jpeg", "jpg", "png", "webp"];

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

/// The names of the classes, and every image with its label.
type Listing = (Vec<String>, Vec<(PathBuf, Label)>);

/// Lists the class names, and every image with its class, both in order of name.
pub fn list(root: &FilePath) -> Result<Listing> {
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
pub fn captioned(root: &FilePath, captions: Captions) -> Result<(Vec<(PathBuf, Label)>, Skipped)> {
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

fn is_hidden(path: &FilePath) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_image(path: &FilePath) -> bool {
    path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

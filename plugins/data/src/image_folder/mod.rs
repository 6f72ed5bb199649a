//! Images in a folder. Either the sub-folders, sorted by name, are the classes, or every image has a caption.
//! `listing` finds the images, `metadata` reads `metadata.jsonl`; each can be changed alone.
//!
//! The module `decode` converts an image to values. Source: arXiv:2105.05233; `metadata.jsonl` has the layout
//! of Hugging Face's ImageFolder.

mod listing;
mod metadata;

pub use listing::Captions;

use crate::decode::decode;
use crate::skipped::Skipped;
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::{Error, Problems, Result};
use framework::prelude::*;
use framework::random::Random;
use listing::{captioned, list};
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

/// Images in a folder. Each sub-folder is a class, in order of name. If there are no sub-folders, images have
/// no class. With captions, sub-folders are not classes, and images without a caption are skipped.
///
/// The dataset reads files that end in bmp, jpeg, jpg, png or webp, at any depth below a class folder. It
/// ignores other files, and names that start with a dot. It drops alpha channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    /// The folder. A relative path starts at the working directory.
    pub path: PathBuf,
    /// Height and width of the items, at least 1 pixel. The shorter side of an image is resized to this value;
    /// the longer side is cropped.
    #[schemars(range(min = 1))]
    pub image_size: usize,
    /// Channels: 3 = red, green, blue; 1 = grey (Rec. 709 luma).
    #[serde(default = "three")]
    #[schemars(extend("enum" = [1, 3]))]
    pub channels: usize,
    /// Number of class folders, at least 0; 0 = images without classes. Must agree with the folder. Omitted =
    /// counted when the folder is opened; a document that states it can be checked without the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub num_classes: Option<usize>,
    /// Where the captions are stored.
    #[serde(default)]
    pub captions: Captions,
    /// Whether images are mirrored left to right with probability 1/2, chosen anew in each epoch.
    #[serde(default)]
    pub horizontal_flip: bool,
}

fn three() -> usize {
    3
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
mod tests;

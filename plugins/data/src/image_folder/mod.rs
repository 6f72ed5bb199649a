//! Images in a folder. Either the sub-folders, sorted by name, are the classes, or every image has a caption.
//! `listing` finds the images, `metadata` reads `metadata.jsonl`; each can be changed independently.
//!
//! The module `decode` converts an image to values. Source: arXiv:2105.05233; `metadata.jsonl` has the layout
//! of Hugging Face's ImageFolder.

mod listing;
mod metadata;
mod spelling;

pub use listing::Captions;

use crate::decode::{Crop, Framing, LARGEST_FILE, Resize, View};
use crate::regular;
use crate::skipped::Changed;
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::{Error, Problems, Result};
use framework::prelude::*;
use framework::random::Random;
use listing::{Listing, captioned, classes};
use std::path::PathBuf;

/// Images in a folder. Each sub-folder is a class, in order of name. If there are no sub-folders, images have
/// no class. With captions, sub-folders are not classes, and images without a caption are skipped.
///
/// The dataset reads files that end in bmp, gif, jfif, jpe, jpeg, jpg, png, tif, tiff or webp, at any depth below a
/// class folder. It reads the first frame of an animation, and turns images upright (EXIF). It skips and counts other
/// files, names that start with a dot, broken links, and anything that cannot be read.
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
    #[schemars(range(min = 0))]
    pub num_classes: Option<usize>,
    /// Whether class folders without images are classes. If false, such a folder is an error.
    pub allow_empty_classes: bool,
    /// Where the captions are stored.
    pub captions: Captions,
    /// Whether images are mirrored left to right with probability 1/2, chosen again in each epoch.
    pub horizontal_flip: bool,
    /// How the shorter side of an image is resized to `image_size`.
    pub resize: Resize,
    /// Which square of the resized image is an item.
    pub crop: Crop,
    /// Colour under transparent pixels: red, green and blue, each from 0 to 255. Default: white.
    pub background: [u8; 3],
}

impl Default for ImageFolder {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            image_size: 0,
            channels: 3,
            num_classes: None,
            allow_empty_classes: false,
            captions: Captions::default(),
            horizontal_flip: false,
            resize: Resize::default(),
            crop: Crop::default(),
            background: [255; 3],
        }
    }
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
        if self.captions != Captions::None && self.allow_empty_classes {
            let what = "`allow_empty_classes` has no effect: images with captions have no classes";
            problems.push(Problem::new("/allow_empty_classes", what).and_at("/captions").fix("omit it"));
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
            return Ok(Box::new(self.opened(captioned(&self.path, self.captions)?)));
        }
        let listing = classes(&self.path, self.allow_empty_classes)?;
        let found = listing.class_names.len();
        if let Some(declared) = self.num_classes
            && declared != found
        {
            let what = format!(
                "holds {found} class folder(s), but the document says `num_classes` = {declared}; \
                 correct it or omit it"
            );
            return Err(Error::file(&self.path, what));
        }
        Ok(Box::new(self.opened(listing)))
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

    fn opened(&self, listing: Listing) -> OpenFolder {
        let framing = Framing {
            channels: self.channels,
            size: self.image_size,
            background: self.background,
            resize: self.resize,
            crop: self.crop,
            horizontal_flip: self.horizontal_flip,
        };
        OpenFolder {
            root: self.path.clone(),
            info: self.info_with(listing.class_names.len()),
            framing,
            listing,
            changed: Changed::default(),
        }
    }
}

#[derive(Debug)]
struct OpenFolder {
    root: PathBuf,
    info: DatasetInfo,
    framing: Framing,
    listing: Listing,
    changed: Changed,
}

impl OpenFolder {
    fn item(&self, index: usize, view: View) -> Result<Item> {
        let (path, label) = &self.listing.files[index];
        let bytes = regular::read(path, LARGEST_FILE).map_err(|e| Error::io(path, e))?;
        let decoded = self.framing.decode(&bytes, view).map_err(|what| Error::file(path, what))?;
        if decoded.transparent {
            self.changed.because(&self.framing.composited(), index, path.display());
        }
        Ok(Item { values: decoded.values, label: label.clone() })
    }
}

impl Dataset for OpenFolder {
    fn info(&self) -> DatasetInfo {
        self.info.clone()
    }

    fn len(&self) -> usize {
        self.listing.files.len()
    }

    fn get(&self, index: usize, random: &Random, epoch: u64) -> Result<Item> {
        self.item(index, self.framing.view(index, random, epoch))
    }

    fn plain(&self, index: usize) -> Result<Item> {
        self.item(index, View::default())
    }

    fn label(&self, index: usize) -> Result<Label> {
        Ok(self.listing.files[index].1.clone())
    }

    fn mirrors(&self) -> bool {
        self.framing.horizontal_flip
    }

    fn warnings(&self) -> Vec<String> {
        self.listing.skipped.warnings()
    }

    fn notes(&self) -> Vec<String> {
        self.changed.notes()
    }

    fn source(&self, index: usize) -> String {
        self.listing.files[index].0.display().to_string()
    }

    fn describe(&self, index: usize) -> String {
        let (path, label) = &self.listing.files[index];
        let size = std::fs::metadata(path).map(|file| file.len()).unwrap_or_default();
        format!("{} {size} {label:?}", path.strip_prefix(&self.root).unwrap_or(path).display())
    }

    fn how_to_add_classes(&self) -> Option<String> {
        let flat = self.listing.class_names.is_empty() && !self.info.captions;
        flat.then(|| "put the images of each class into a sub-folder of its own".to_string())
    }

    fn class_names(&self) -> Option<Vec<String>> {
        let names = &self.listing.class_names;
        (!names.is_empty()).then(|| names.clone())
    }
}

#[cfg(test)]
mod tests;

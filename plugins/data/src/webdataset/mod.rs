//! Samples in tar files, in the layout of WebDataset. `pattern` expands names of shards, `shards` reads them; each can
//! be changed independently. Files whose paths agree up to the first dot of the file name form one sample.
//!
//!   a/0001.jpg   the image (bmp, gif, jfif, jpe, jpeg, jpg, png, tif, tiff, webp)
//!   a/0001.txt   its caption; if absent, the value "caption" of a/0001.json
//!   a/0001.cls   its class, an integer
//!
//! Opening a shard reads its headers and class files; reading an item seeks to the offset in its header. Entries that
//! are not regular files with a relative path, and endings that are not read, are skipped and counted.
//!
//! Source: <https://github.com/webdataset/webdataset> for the layout.

mod pattern;
mod shards;

pub use shards::Beside;

use crate::decode::{Crop, Framing, Resize};
use framework::data::dataset::{Dataset, DatasetConfig, DatasetInfo, ItemKind};
use framework::error::{Error, Problems, Result};
use framework::prelude::*;
use pattern::expand;
use shards::OpenShards;

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
    /// Number of classes, at least 1. Only with the condition "class". Class numbers count from 0. A sample whose class
    /// is not below it is skipped. If more than one in 100 samples have such a class, it is an error.
    #[schemars(range(min = 1))]
    pub num_classes: Option<usize>,
    /// Whether a class below the largest may have no samples. If false, class numbers that start at 1 or skip one are
    /// an error. Only with the condition "class".
    pub allow_empty_classes: bool,
    /// Whether images are mirrored left to right with probability 1/2, chosen again in each epoch.
    pub horizontal_flip: bool,
    /// How the shorter side of an image is resized to `image_size`.
    pub resize: Resize,
    /// Which square of the resized image is an item.
    pub crop: Crop,
    /// Colour under transparent pixels: red, green and blue, each from 0 to 255. Default: white.
    pub background: [u8; 3],
}

impl Default for WebDataset {
    fn default() -> Self {
        Self {
            shards: Vec::new(),
            image_size: 0,
            channels: 3,
            condition: Beside::default(),
            num_classes: None,
            allow_empty_classes: false,
            horizontal_flip: false,
            resize: Resize::default(),
            crop: Crop::default(),
            background: [255; 3],
        }
    }
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
        if self.condition != Beside::Class && self.allow_empty_classes {
            let what = "`allow_empty_classes` has no effect unless `condition` is \"class\"";
            problems.push(Problem::new("/allow_empty_classes", what).and_at("/condition").fix("omit it"));
        }
        problems
    }

    fn info(&self) -> Option<DatasetInfo> {
        Some(self.known())
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        let framing = Framing {
            channels: self.channels,
            size: self.image_size,
            background: self.background,
            resize: self.resize,
            crop: self.crop,
            horizontal_flip: self.horizontal_flip,
        };
        let mut open = OpenShards::new(self.known(), self.condition, framing, self.allow_empty_classes);
        for pattern in &self.shards {
            let paths = expand(pattern).map_err(|what| Error::Run(format!("`shards`: `{pattern}`: {what}")))?;
            for path in paths {
                open.index(path)?;
            }
        }
        open.complete()
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

#[cfg(test)]
mod tests;

//! Images of a folder; sub-folders, sorted by name, are the classes.
//!
//!   halve while shorter side >= 2 image_size   (mean of 2x2 blocks)
//!   resize so that shorter side = image_size   (bicubic, widened when it shrinks)
//!   centre crop, value = byte / 127.5 - 1
//!
//! Source: the order of steps is that of ADM, arXiv:2105.05233, and so of DiT and SiT.

use framework::dataset::{Dataset, DatasetConfig, DatasetInfo, Item, ItemKind, Label};
use framework::error::{Error, Problems, Result};
use framework::prelude::*;
use framework::random::Random;
use image::DynamicImage;
use image::imageops::FilterType;
use std::fs;
use std::path::{Path as FilePath, PathBuf};
use walkdir::WalkDir;

/// File name endings that are read, in any case.
const ENDINGS: [&str; 5] = ["bmp", "jpeg", "jpg", "png", "webp"];

/// Images of a folder. Each sub-folder is a class, in order of name; images directly in the folder have no class.
///
/// Files ending in bmp, jpeg, jpg, png or webp are read, at any depth below a class folder; other files and
/// names that begin with a dot are not. An alpha channel is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    /// The folder; a relative path begins at the working directory.
    pub path: PathBuf,
    /// Height and width of the items, at least 1 pixel. The shorter side is resized to it, the longer one cropped.
    #[schemars(range(min = 1))]
    pub image_size: usize,
    /// Channels: 3 = red, green, blue; 1 = grey (Rec. 709 luma).
    #[serde(default = "three")]
    #[schemars(extend("enum" = [1, 3]))]
    pub channels: usize,
    /// Number of class folders, at least 0; 0 = images without classes. Must agree with the folder. Omitted =
    /// counted when the folder is opened, so that a document is checked without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub num_classes: Option<usize>,
    /// Whether an image is mirrored left to right with probability 1/2, anew in each epoch.
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
        problems
    }

    fn info(&self) -> Option<DatasetInfo> {
        self.num_classes.map(|count| self.info_with(count))
    }

    fn open(&self) -> Result<Box<dyn Dataset>> {
        let (class_names, files) = list(&self.path)?;
        if let Some(declared) = self.num_classes
            && declared != class_names.len()
        {
            let what = format!(
                "holds {} class folder(s) and the document says `num_classes` = {declared}; \
                 correct the number or omit it",
                class_names.len()
            );
            return Err(Error::file(&self.path, what));
        }
        Ok(Box::new(OpenFolder { config: self.clone(), class_names, files }))
    }
}

impl ImageFolder {
    fn info_with(&self, num_classes: usize) -> DatasetInfo {
        DatasetInfo {
            items: ItemKind::Images([self.channels, self.image_size, self.image_size]),
            num_classes: (num_classes > 0).then_some(num_classes),
            captions: false,
        }
    }
}

/// Names of the classes, and every image with its label.
type Listing = (Vec<String>, Vec<(PathBuf, Label)>);

/// The class names in order, and every image with its class, in order.
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
            let what = format!("holds no image; files ending in {} are read", ENDINGS.join(", "));
            return Err(Error::file(root, what));
        }
        return Ok((Vec::new(), files.into_iter().map(|file| (file, Label::None)).collect()));
    }
    if let Some(file) = files.first() {
        let what = format!(
            "lies beside class folders such as {}; put every image in a class folder, or none",
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
            let what = format!("is a class folder without images; files ending in {} are read", ENDINGS.join(", "));
            return Err(Error::file(folder, what));
        }
        names.push(folder.file_name().expect("an entry of a folder has a name").to_string_lossy().into_owned());
    }
    Ok((names, labelled))
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
}

impl OpenFolder {
    fn item(&self, index: usize, mirrored: bool) -> Result<Item> {
        let (path, label) = &self.files[index];
        let image = image::ImageReader::open(path)
            .and_then(image::ImageReader::with_guessed_format)
            .map_err(|e| Error::io(path, e))?
            .decode()
            .map_err(|e| Error::file(path, format!("cannot be decoded as an image: {e}")))?;
        let image = match self.config.channels {
            1 => DynamicImage::ImageLuma8(image.into_luma8()),
            _ => DynamicImage::ImageRgb8(image.into_rgb8()),
        };
        let mut image = centre_square(image, self.config.image_size as u32);
        if mirrored {
            image = image.fliph();
        }
        Ok(Item { values: planes(image.as_bytes(), self.config.channels), label: label.clone() })
    }
}

/// The centre square of side `size`, after resizing the shorter side to `size`.
fn centre_square(mut image: DynamicImage, size: u32) -> DynamicImage {
    let shorter = |image: &DynamicImage| image.width().min(image.height());
    while shorter(&image) >= 2 * size {
        image = image.thumbnail_exact(image.width() / 2, image.height() / 2);
    }
    if shorter(&image) != size {
        let scale = f64::from(size) / f64::from(shorter(&image));
        let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(size);
        image = image.resize_exact(scaled(image.width()), scaled(image.height()), FilterType::CatmullRom);
    }
    let (left, top) = ((image.width() - size) / 2, (image.height() - size) / 2);
    image.crop_imm(left, top, size, size)
}

/// Interleaved bytes `[H, W, C]` to numbers `[C, H, W]` in [-1, 1].
fn planes(bytes: &[u8], channels: usize) -> Vec<f32> {
    (0..channels)
        .flat_map(|channel| bytes.iter().skip(channel).step_by(channels))
        .map(|byte| f32::from(*byte) / 127.5 - 1.0)
        .collect()
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

    fn class_names(&self) -> Option<Vec<String>> {
        (!self.class_names.is_empty()).then(|| self.class_names.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use tempfile::TempDir;

    fn folder(path: &FilePath, image_size: usize) -> ImageFolder {
        ImageFolder { path: path.into(), image_size, channels: 3, num_classes: None, horizontal_flip: false }
    }

    fn save(root: &TempDir, name: &str, image: &RgbImage) {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(path).unwrap();
    }

    /// A 2x2 image whose red channel is 0 51 / 102 255, green 0, blue 255.
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
    fn halving_is_the_mean_and_the_crop_is_the_centre() {
        // 8x4 of columns 0 0 10 20 30 40 0 0; halved: 0 15 35 0; the centre square keeps 15 35.
        let columns = [0, 0, 10, 20, 30, 40, 0, 0];
        let image = GrayImage::from_fn(8, 4, |x, _| Luma([columns[x as usize]]));
        let square = centre_square(DynamicImage::ImageLuma8(image), 2);
        assert_eq!(square.as_bytes(), [15, 35, 15, 35]);
    }

    #[test]
    fn any_size_of_image_gives_the_size_asked_for() {
        for (width, height) in [(1, 1), (3, 7), (16, 5), (33, 9), (5, 1000)] {
            let image = GrayImage::from_pixel(width, height, Luma([77]));
            let square = centre_square(DynamicImage::ImageLuma8(image), 5);
            assert_eq!((square.width(), square.height()), (5, 5));
            assert!(square.as_bytes().iter().all(|byte| *byte == 77), "{width}x{height} {:?}", square.as_bytes());
        }
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
        assert!(message(&folder(root.path(), 2)).contains("holds no image; files ending in bmp"));

        save(&root, "a/1.png", &small());
        let declared = ImageFolder { num_classes: Some(3), ..folder(root.path(), 2) };
        assert!(message(&declared).contains("holds 1 class folder(s) and the document says `num_classes` = 3"));

        fs::write(root.path().join("a/2.png"), "not a png").unwrap();
        let error = folder(root.path(), 2).open().unwrap().plain(1).unwrap_err().to_string();
        assert!(error.contains("2.png: cannot be decoded as an image"), "{error}");

        fs::create_dir(root.path().join("b")).unwrap();
        assert!(message(&folder(root.path(), 2)).contains("b: is a class folder without images"));
        save(&root, "1.png", &small());
        assert!(message(&folder(root.path(), 2)).contains("1.png: lies beside class folders"));
    }

    #[test]
    fn impossible_settings_are_reported_together() {
        let problems = ImageFolder { channels: 4, ..folder(FilePath::new("x"), 0) }.check();
        assert_eq!(problems.iter().map(|p| p.at[0].as_str()).collect::<Vec<_>>(), ["/image_size", "/channels"]);
        assert!(folder(FilePath::new("x"), 2).check().is_empty());
    }
}

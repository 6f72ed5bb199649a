//! Sample grids as PNG files.

use crate::lettering::{self, LINE};
use framework::checkpoint::tensor_file::write_atomically;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Result};
use framework::evaluation::images::Images;
use image::{ImageBuffer, Rgb, RgbImage, imageops};
use png::{BitDepth, ColorType, Decoder, Encoder};
use std::io::Cursor;
use std::path::Path;

/// Least side, in pixels, that small images are enlarged towards to be visible.
const VISIBLE: u32 = 56;
/// Pixels between images.
const GAP: u32 = 4;
const BACKGROUND: Rgb<u8> = Rgb([40, 44, 52]);
const LETTERS: Rgb<u8> = Rgb([235, 235, 235]);

/// Converts the values of one image, `[C, H, W]` in [-1, 1], to a picture. 3 channels are red, green and blue. With any
/// other number of channels, the first one is shown in grey.
pub fn image(values: &[f32], [channels, height, width]: ImageShape) -> RgbImage {
    let byte = |v: f32| ((v.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
    ImageBuffer::from_fn(width as u32, height as u32, |x, y| {
        let at = |channel: usize| byte(values[(channel * height + y as usize) * width + x as usize]);
        if channels == 3 { Rgb([at(0), at(1), at(2)]) } else { Rgb([at(0); 3]) }
    })
}

/// Largest number of pixels of a grid.
const MOST_PIXELS: usize = 100_000_000;

/// Returns the largest number of images of a grid with `columns` images per row: whole rows, at least one.
pub fn most_shown([_, height, width]: ImageShape, columns: usize) -> usize {
    let gap = GAP as usize;
    let factor = (VISIBLE as usize / height.max(width)).max(1);
    let row = columns * (height * factor + LINE as usize + gap) * (width * factor + gap);
    (MOST_PIXELS / row).max(1) * columns
}

/// Returns the name of image `i` for its reader: its class, by name if the classes have names, or its caption.
pub fn label(images: &Images, i: usize, class_names: Option<&[String]>) -> Option<String> {
    let class = |class: &usize| match class_names.and_then(|names| names.get(*class)) {
        Some(name) => name.clone(),
        None => format!("class {class}"),
    };
    images.classes.get(i).map(class).or_else(|| images.captions.get(i).cloned())
}

/// Arranges images in a grid with `columns` images per row. Small images are enlarged by an integer factor. A row whose
/// images have the same class or caption has it as its heading; otherwise it is written below each image.
pub fn grid(images: &Images, columns: usize, class_names: Option<&[String]>) -> RgbImage {
    let labels: Vec<Option<String>> = (0..images.len()).map(|i| label(images, i, class_names)).collect();
    let is_heading = labels.chunks(columns).all(|row| row.iter().all(|label| *label == row[0]));
    if is_heading { arrange(images, columns, &labels, VISIBLE, true) } else { sheet(images, columns, &labels) }
}

/// Arranges images in a grid with a label below each image. They are at least as large as their labels need.
pub fn sheet(images: &Images, columns: usize, labels: &[Option<String>]) -> RgbImage {
    arrange(images, columns, labels, 2 * VISIBLE, false)
}

fn arrange(images: &Images, columns: usize, labels: &[Option<String>], visible: u32, heading: bool) -> RgbImage {
    let shape = images.shape;
    let factor = (visible / shape[1].max(shape[2]) as u32).max(1);
    let (w, h) = (shape[2] as u32 * factor, shape[1] as u32 * factor);
    let rows = images.len().div_ceil(columns) as u32;
    let line = if labels.iter().any(Option::is_some) { LINE } else { 0 };
    let (cell, row_height) = (w + GAP, h + line + GAP);
    // A heading needs room also above a single narrow image.
    let width = (columns as u32 * cell + GAP).max(if heading && line > 0 { 3 * VISIBLE } else { 0 });
    let mut canvas = RgbImage::from_pixel(width, rows * row_height + GAP, BACKGROUND);
    for (i, label) in labels.iter().enumerate() {
        let small = image(images.row(i), shape);
        let large = imageops::resize(&small, w, h, imageops::FilterType::Nearest);
        let (column, row) = ((i % columns) as u32, (i / columns) as u32);
        let [x, y] = [GAP + column * cell, GAP + row * row_height];
        let below = if heading { line } else { 0 };
        imageops::replace(&mut canvas, &large, i64::from(x), i64::from(y + below));
        let Some(text) = label else { continue };
        if heading && column == 0 {
            lettering::write(&mut canvas, [x, y], &lettering::shortened(text, width - 2 * GAP), LETTERS);
        } else if !heading {
            lettering::write(&mut canvas, [x, y + h], &lettering::shortened(text, w), LETTERS);
        }
    }
    canvas
}

/// Encodes a picture as PNG.
///
/// # Errors
/// If the encoder fails.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    encoded(picture, &[]).map_err(|e| Error::Run(format!("a picture cannot be encoded as PNG: {e}")))
}

/// Writes a picture as PNG. The file is either complete or absent.
///
/// # Errors
/// If the file cannot be written.
pub fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    save_with(picture, path, &[])
}

/// Writes a picture as PNG with texts (iTXt chunks): pairs of a keyword and a text.
///
/// # Errors
/// If the file cannot be written.
pub fn save_with(picture: &RgbImage, path: &Path, texts: &[(&str, String)]) -> Result<()> {
    // Encode in memory first: an encoder that writes to a file ignores errors of its last bytes.
    write_atomically(path, [encoded(picture, texts).map_err(|e| Error::file(path, e.to_string()))?.as_slice()])
}

/// Returns the bytes of a PNG file with texts.
fn encoded(picture: &RgbImage, texts: &[(&str, String)]) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut encoded = Vec::new();
    let mut encoder = Encoder::new(&mut encoded, picture.width(), picture.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    for (keyword, text) in texts {
        encoder.add_itxt_chunk((*keyword).to_string(), text.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(encoded)
}

/// Largest PNG file that is read, in bytes.
const LARGEST: u64 = 1 << 30;

/// Reads a picture that [`save_with`] wrote, and its texts.
///
/// # Errors
/// If the file cannot be read, or is not a PNG of this kind.
pub fn read_with(path: &Path) -> Result<(RgbImage, Vec<(String, String)>)> {
    let wrong = |what: String| Error::file(path, format!("cannot be read as a picture of `sample`: {what}"));
    let is_file = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !is_file.is_file() || is_file.len() > LARGEST {
        return Err(wrong(format!("it is not a file of at most {LARGEST} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let mut decoder = Decoder::new(Cursor::new(bytes));
    decoder.set_limits(png::Limits { bytes: LARGEST as usize });
    let mut reader = decoder.read_info().map_err(|e| wrong(e.to_string()))?;
    let info = reader.info();
    let (width, height) = (info.width, info.height);
    let texts = info.utf8_text.iter().filter_map(|chunk| Some((chunk.keyword.clone(), chunk.get_text().ok()?)));
    let texts = texts.collect();
    if (info.color_type, info.bit_depth) != (ColorType::Rgb, BitDepth::Eight) {
        return Err(wrong("its pixels are not red, green and blue bytes".to_string()));
    }
    let size = reader.output_buffer_size().filter(|size| *size as u64 <= LARGEST);
    let mut pixels = vec![0; size.ok_or_else(|| wrong("it has too many pixels".to_string()))?];
    reader.next_frame(&mut pixels).map_err(|e| wrong(e.to_string()))?;
    let picture = RgbImage::from_raw(width, height, pixels).ok_or_else(|| wrong("it is cut off".to_string()))?;
    Ok((picture, texts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::data::dataset::Label;
    use image::ImageFormat;

    #[test]
    fn a_picture_is_a_png_whatever_its_name_says() {
        let folder = tempfile::tempdir().unwrap();
        let picture = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8, y as u8, 7]));
        let path = folder.path().join("picture.gif");
        save(&picture, &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(image::guess_format(&bytes).unwrap(), ImageFormat::Png);
        assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8(), picture);
        assert!(save(&picture, &folder.path().join("absent/picture.png")).is_err());
    }

    #[test]
    fn texts_of_a_picture_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let picture = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8, y as u8, 7]));
        let texts = [("seed", "3".to_string()), ("document", "{\n \"about\": \"é 名前\"}".to_string())];
        save_with(&picture, &path, &texts).unwrap();
        let (read, found) = read_with(&path).unwrap();
        assert_eq!(read, picture);
        assert_eq!(found, texts.map(|(keyword, text)| (keyword.to_string(), text)));
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..60]).unwrap();
        assert!(read_with(&path).unwrap_err().to_string().contains("cannot be read as a picture"));
    }

    #[test]
    fn rows_have_headings_and_mixed_rows_have_labels_below() {
        let mut images = Images::none([1, 8, 8]);
        let labels = [0, 0, 1, 1].map(Label::Class);
        images.extend(vec![0.0; 4 * 64], &labels);
        let names = ["cat".to_string()];
        assert_eq!(label(&images, 0, Some(&names)).as_deref(), Some("cat"));
        assert_eq!(label(&images, 2, Some(&names)).as_deref(), Some("class 1"));
        // Two images of 56 pixels are narrower than the room for a heading.
        assert_eq!(grid(&images, 2, Some(&names)).dimensions(), (168, 4 + 2 * (56 + 22 + 4)));
        // One row with both classes: labels below images of 112 pixels.
        let mixed = grid(&images, 4, Some(&names));
        assert_eq!(mixed.dimensions(), (4 + 4 * 116, 4 + 112 + 22 + 4));
        let letters = |x: u32| (x..x + 112).any(|x| (116..138).any(|y| mixed.get_pixel(x, y)[0] > 180));
        assert!(letters(4) && letters(120), "no letters below an image");
        let mut plain = Images::none([1, 8, 8]);
        plain.extend(vec![0.0; 2 * 64], &[Label::None, Label::None]);
        assert_eq!(grid(&plain, 2, None).dimensions(), (124, 64));
    }
}

//! Sample grids as PNG files.

use framework::checkpoint::tensor_file::write_atomically;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Result};
use framework::evaluation::images::Images;
use image::{ImageBuffer, ImageFormat, Rgb, RgbImage, imageops};
use std::io::Cursor;
use std::path::Path;

/// Least side, in pixels, that small images are enlarged towards to be visible.
const VISIBLE: u32 = 56;
/// Pixels between images.
const GAP: u32 = 4;

/// Converts the values of one image, `[C, H, W]` in [-1, 1], to a picture. 3 channels are red, green and blue. With any
/// other number of channels, the first one is shown in grey.
pub fn image(values: &[f32], [channels, height, width]: ImageShape) -> RgbImage {
    let byte = |v: f32| ((v.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
    ImageBuffer::from_fn(width as u32, height as u32, |x, y| {
        let at = |channel: usize| byte(values[(channel * height + y as usize) * width + x as usize]);
        if channels == 3 { Rgb([at(0), at(1), at(2)]) } else { Rgb([at(0); 3]) }
    })
}

/// Arranges images in a grid with `columns` images per row. Small images are enlarged by an integer factor.
pub fn grid(images: &Images, columns: usize) -> RgbImage {
    let shape = images.shape;
    let factor = (VISIBLE / shape[1].max(shape[2]) as u32).max(1);
    let (w, h) = (shape[2] as u32 * factor, shape[1] as u32 * factor);
    let rows = images.len().div_ceil(columns) as u32;
    let mut canvas = RgbImage::from_pixel(columns as u32 * (w + GAP) + GAP, rows * (h + GAP) + GAP, Rgb([40, 44, 52]));
    for i in 0..images.len() {
        let small = image(images.row(i), shape);
        let large = imageops::resize(&small, w, h, imageops::FilterType::Nearest);
        let (column, row) = ((i % columns) as u32, (i / columns) as u32);
        imageops::replace(&mut canvas, &large, i64::from(GAP + column * (w + GAP)), i64::from(GAP + row * (h + GAP)));
    }
    canvas
}

/// Writes a picture as PNG. The file is either complete or absent.
///
/// # Errors
/// If the file cannot be written.
pub fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    // Encode in memory first: an encoder that writes to a file ignores errors of its last bytes.
    let encoded = png(picture).map_err(|e| Error::file(path, e.to_string()))?;
    write_atomically(path, [encoded.as_slice()])
}

/// Returns a picture as the bytes of a PNG file: what [`save`] writes.
///
/// # Errors
/// If the encoder fails.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut encoded = Cursor::new(Vec::new());
    picture.write_to(&mut encoded, ImageFormat::Png).map_err(|e| Error::Run(e.to_string()))?;
    Ok(encoded.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

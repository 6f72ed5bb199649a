//! Decodes image files and captions for every dataset that reads image files.
//!
//!   halve while shorter side >= 2 size   (mean of 2x2 blocks)
//!   resize so that shorter side = size   (bicubic; the kernel widens when the image shrinks)
//!   centre crop, value = byte / 127.5 - 1
//!
//! Source: ADM, arXiv:2105.05233. DiT and SiT use the same steps in the same order.

use image::imageops::FilterType;
use image::{DynamicImage, ImageReader, Limits};
use std::io::{BufRead, Seek};

/// Longest side that is decoded, in pixels. A small file may claim to be a huge image.
const LARGEST_SIDE: u32 = 32_768;
/// Most memory that decoding one image may allocate, in bytes.
const LARGEST: u64 = 256 << 20;
/// Longest caption that is accepted, in bytes.
pub const LONGEST_CAPTION: u64 = 8192;

/// Decodes the centre square of an image file to values `[C, size, size]` in [-1, 1], mirrored left to right if
/// `mirrored`.
///
/// # Errors
/// The reason why the file cannot be decoded.
pub fn decode(file: impl BufRead + Seek, channels: usize, size: usize, mirrored: bool) -> Result<Vec<f32>, String> {
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(LARGEST_SIDE), Some(LARGEST_SIDE));
    limits.max_alloc = Some(LARGEST);
    reader.limits(limits);
    let image = reader.decode().map_err(|e| format!("cannot be decoded as an image: {e}"))?;
    let image = match channels {
        1 => DynamicImage::ImageLuma8(image.into_luma8()),
        _ => DynamicImage::ImageRgb8(image.into_rgb8()),
    };
    // Enlarging the shorter side enlarges the longer one by the same factor, so an extreme aspect ratio would
    // exhaust memory.
    let (shorter, longer) = (image.width().min(image.height()), image.width().max(image.height()));
    if u64::from(longer) * size as u64 > u64::from(shorter) * u64::from(LARGEST_SIDE) {
        return Err(format!("is too narrow: {}x{} pixels", image.width(), image.height()));
    }
    let mut image = centre_square(image, size as u32);
    if mirrored {
        image = image.fliph();
    }
    Ok(planes(image.as_bytes(), channels))
}

/// Decodes a caption and trims the white space around it.
///
/// # Errors
/// If the caption is empty, too long or not UTF-8.
pub fn caption(bytes: &[u8]) -> Result<String, String> {
    if bytes.len() as u64 > LONGEST_CAPTION {
        return Err(format!("the caption is longer than {LONGEST_CAPTION} bytes"));
    }
    match std::str::from_utf8(bytes).map(str::trim) {
        Err(_) => Err("the caption is not UTF-8".into()),
        Ok("") => Err("the caption is empty".into()),
        Ok(text) => Ok(text.into()),
    }
}

/// Resizes the shorter side to `size`, and crops the centre square.
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

/// Converts interleaved bytes `[H, W, C]` to values `[C, H, W]` in [-1, 1].
fn planes(bytes: &[u8], channels: usize) -> Vec<f32> {
    (0..channels)
        .flat_map(|channel| bytes.iter().skip(channel).step_by(channels))
        .map(|byte| f32::from(*byte) / 127.5 - 1.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageFormat, Luma};
    use proptest::prelude::*;
    use std::io::Cursor;

    fn png(image: &GrayImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn halving_is_the_mean_and_the_crop_is_the_centre() {
        // The 8x4 image has the columns 0 0 10 20 30 40 0 0. Halved, they are 0 15 35 0; the centre square
        // keeps 15 35.
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
    fn images_that_would_fill_the_memory_are_refused() {
        // A small, complete file whose header claims 60,000 x 60,000 pixels. The sizes follow the name of the
        // IHDR chunk.
        let mut bomb = png(&GrayImage::from_pixel(4, 4, Luma([7])));
        bomb[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
        assert!(decode(Cursor::new(bomb), 3, 4, false).unwrap_err().contains("cannot be decoded"));
        let narrow = png(&GrayImage::from_pixel(30_000, 1, Luma([7])));
        let error = decode(Cursor::new(narrow), 3, 64, false).unwrap_err();
        assert_eq!(error, "is too narrow: 30000x1 pixels");
    }

    #[test]
    fn captions_are_trimmed_and_what_is_none_is_said() {
        assert_eq!(caption(b" two cats\n"), Ok("two cats".into()));
        assert_eq!(caption(b" \n"), Err("the caption is empty".into()));
        assert_eq!(caption(&[b'a', 0xff]), Err("the caption is not UTF-8".into()));
        assert!(caption(&[b'a'; LONGEST_CAPTION as usize + 1]).unwrap_err().contains("longer than 8192 bytes"));
    }

    proptest! {
        #[test]
        fn damaged_files_are_decoded_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = png(&GrayImage::from_fn(9, 7, |x, y| Luma([(x * y) as u8])));
            let place = at.index(bytes.len());
            bytes[place] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            if let Ok(values) = decode(Cursor::new(bytes), 3, 8, true) {
                prop_assert_eq!(values.len(), 3 * 64);
            }
        }
    }
}

//! Decodes image files for every dataset that reads image files.
//!
//!   turn upright (EXIF orientation), composite transparent pixels on the background
//!   halve while shorter side >= 2 size   (mean of 2x2 blocks; only with the resizing `adm`)
//!   resize so that shorter side = size   (bicubic by default; the kernel widens when the image shrinks)
//!   crop the centre or a random square, value = byte / 127.5 - 1
//!
//! Source: ADM, arXiv:2105.05233. DiT and SiT use the same steps in the same order.

use crate::skipped::printable;
use crate::whole;
use framework::blame;
use framework::prelude::*;
use framework::random::Random;
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage, Rgba};
use std::io::Cursor;

/// Endings of the files that are read, in lower case.
pub const ENDINGS: [&str; 10] = ["bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"];
/// Largest image file that is read, in bytes.
pub const LARGEST_FILE: u64 = 256 << 20;
/// Longest side that is decoded, in pixels. A small file may claim to be a huge image.
const LARGEST_SIDE: u32 = 32_768;
/// Maximum number of pixels in an image. As RGB bytes, they fill `LARGEST`.
const MOST_PIXELS: u64 = LARGEST / 3;
/// Maximum memory that decoding one image may allocate, in bytes.
const LARGEST: u64 = 256 << 20;

/// How an image is resized before it is cropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Halve while the shorter side is at least twice the target, then bicubic, as ADM, DiT and SiT do.
    #[default]
    Adm,
    /// Bicubic (Catmull-Rom) in one step.
    Bicubic,
    /// Lanczos with three lobes, in one step.
    Lanczos,
    /// Bilinear in one step.
    Bilinear,
    /// Nearest pixel, for pixel art.
    Nearest,
}

/// Which square of the resized image is an item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Crop {
    /// The centre.
    #[default]
    Center,
    /// A random position along the longer side, chosen again in each epoch. Metrics and `unguided encode` read the
    /// centre.
    Random,
}

/// How an image file becomes an item.
#[derive(Clone, Copy, Debug)]
pub struct Framing {
    /// 3 = red, green, blue; 1 = grey.
    pub channels: usize,
    /// Height and width of the item, in pixels.
    pub size: usize,
    /// Colour under transparent pixels.
    pub background: [u8; 3],
    /// How the image is resized.
    pub resize: Resize,
    /// Which square is taken.
    pub crop: Crop,
    /// Whether items are mirrored left to right with probability 1/2.
    pub horizontal_flip: bool,
}

/// The random choices for one read of an item.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    /// Whether the item is mirrored left to right.
    pub mirrored: bool,
    /// Position of the square along the longer side, in [0, 1); `None` = the centre.
    pub place: Option<f64>,
}

/// A decoded item.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Values `[C, size, size]` in [-1, 1].
    pub values: Vec<f32>,
    /// Whether the image has a pixel that is not opaque.
    pub transparent: bool,
}

impl Framing {
    /// Returns the choices for item `index` in an epoch.
    pub fn view(&self, index: usize, random: &Random, epoch: u64) -> View {
        let uniform = |purpose| random.uniform(purpose, index as u64, epoch, 1)[0];
        View {
            mirrored: self.horizontal_flip && uniform("horizontal_flip") < 0.5,
            place: (self.crop == Crop::Random).then(|| uniform("random_crop")),
        }
    }

    /// Describes images whose transparent pixels were composited.
    pub fn composited(&self) -> String {
        format!("image(s) have transparent pixels, which show the background {:?}", self.background)
    }

    /// Decodes one square of an image file.
    ///
    /// # Errors
    /// The reason why the file cannot be decoded.
    pub fn decode(&self, bytes: &[u8], view: View) -> Result<Decoded, String> {
        // A panic in a decoder makes only this file unreadable. The message names the file.
        let image = blame::caught("the image decoder", || upright(bytes)).map_err(|error| error.to_string())??;
        let (image, transparent) = opaque(image, self.background);
        let image = match self.channels {
            1 => DynamicImage::ImageLuma8(image.into_luma8()),
            _ => DynamicImage::ImageRgb8(image.into_rgb8()),
        };
        // Enlarging the shorter side enlarges the longer one by the same factor, so an extreme aspect ratio would
        // exhaust memory.
        let (shorter, longer) = (image.width().min(image.height()), image.width().max(image.height()));
        if u64::from(longer) * self.size as u64 > u64::from(shorter) * u64::from(LARGEST_SIDE) {
            return Err(format!("is too narrow: {}x{} pixels", image.width(), image.height()));
        }
        let mut image = square(image, self.size as u32, self.resize, view.place);
        if view.mirrored {
            image = image.fliph();
        }
        Ok(Decoded { values: planes(image.as_bytes(), self.channels), transparent })
    }
}

/// Decodes the first frame of an image file, turned upright.
fn upright(bytes: &[u8]) -> Result<DynamicImage, String> {
    let wrong =
        |error: image::ImageError| format!("cannot be decoded as an image: {}", printable(error.to_string().trim()));
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let Some(format) = reader.format() else {
        return Err(format!("cannot be decoded as an image: {}", unknown(bytes)));
    };
    whole::check(bytes, format)?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(LARGEST_SIDE), Some(LARGEST_SIDE));
    limits.max_alloc = Some(LARGEST);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    if decoder.total_bytes() > LARGEST {
        return Err(format!("cannot be decoded as an image: it needs more than {} MiB of memory", LARGEST >> 20));
    }
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(format!("has {width}x{height} pixels; at most {MOST_PIXELS} pixels are read"));
    }
    let orientation = orientation(&mut decoder, bytes, format);
    let mut image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Returns how a decoded image must be turned. Damaged EXIF data are ignored.
fn orientation(decoder: &mut impl ImageDecoder, bytes: &[u8], format: ImageFormat) -> Orientation {
    let found = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    if found != Orientation::NoTransforms {
        return found;
    }
    let exif = decoder.exif_metadata().ok().flatten();
    let exif = exif.as_deref().or_else(|| whole::png_exif(bytes).filter(|_| format == ImageFormat::Png));
    // Some writers keep the prefix that EXIF data have in JPEG files.
    let exif = exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
    exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

/// Describes a file that no decoder recognises.
fn unknown(bytes: &[u8]) -> &'static str {
    if bytes.is_empty() {
        "the file is empty"
    } else if bytes.iter().all(|byte| *byte == 0) {
        "the file holds zeros only"
    } else {
        "its content is not bmp, gif, jpeg, png, tiff or webp"
    }
}

/// Composites an image on a background. Returns an image without alpha channel, and whether a pixel was not opaque.
fn opaque(image: DynamicImage, background: [u8; 3]) -> (DynamicImage, bool) {
    if !image.color().has_alpha() {
        return (image, false);
    }
    let image = image.into_rgba8();
    let transparent = image.pixels().any(|Rgba([.., alpha])| *alpha < 255);
    let mixed = |colour: u8, behind: u8, alpha: u8| {
        let (colour, behind, alpha) = (u32::from(colour), u32::from(behind), u32::from(alpha));
        ((colour * alpha + behind * (255 - alpha) + 127) / 255) as u8
    };
    let opaque = RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let Rgba([red, green, blue, alpha]) = *image.get_pixel(x, y);
        let [r, g, b] = background;
        Rgb([mixed(red, r, alpha), mixed(green, g, alpha), mixed(blue, b, alpha)])
    });
    (DynamicImage::ImageRgb8(opaque), transparent)
}

/// Resizes the shorter side to `size`, and crops the square at `place` along the longer side.
fn square(mut image: DynamicImage, size: u32, resize: Resize, place: Option<f64>) -> DynamicImage {
    let shorter = |image: &DynamicImage| image.width().min(image.height());
    while resize == Resize::Adm && shorter(&image) >= 2 * size {
        image = image.thumbnail_exact(image.width() / 2, image.height() / 2);
    }
    if shorter(&image) != size {
        let scale = f64::from(size) / f64::from(shorter(&image));
        let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(size);
        let filter = match resize {
            Resize::Adm | Resize::Bicubic => FilterType::CatmullRom,
            Resize::Lanczos => FilterType::Lanczos3,
            Resize::Bilinear => FilterType::Triangle,
            Resize::Nearest => FilterType::Nearest,
        };
        image = image.resize_exact(scaled(image.width()), scaled(image.height()), filter);
    }
    let offset = |side: u32| match place {
        None => (side - size) / 2,
        Some(place) => ((f64::from(side - size + 1) * place) as u32).min(side - size),
    };
    image.crop_imm(offset(image.width()), offset(image.height()), size, size)
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
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::codecs::webp::WebPEncoder;
    use image::{ExtendedColorType, GrayImage, ImageEncoder, Luma, RgbaImage};
    use proptest::prelude::*;

    fn framing(channels: usize, size: usize) -> Framing {
        let (resize, crop, background) = (Resize::Adm, Crop::Center, [255; 3]);
        Framing { channels, size, background, resize, crop, horizontal_flip: false }
    }

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn png(image: &GrayImage) -> Vec<u8> {
        encoded(image.clone(), ImageFormat::Png)
    }

    /// Returns the decoded bytes of a file, `[C, size, size]`.
    fn bytes_of(framing: Framing, file: &[u8]) -> Vec<u8> {
        let values = framing.decode(file, View::default()).unwrap().values;
        values.iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect()
    }

    #[test]
    fn halving_is_the_mean_and_the_crop_is_the_centre() {
        // The 8x4 image has the columns 0 0 10 20 30 40 0 0. Halved, they are 0 15 35 0; the centre square
        // keeps 15 35.
        let columns = [0, 0, 10, 20, 30, 40, 0, 0];
        let image = GrayImage::from_fn(8, 4, |x, _| Luma([columns[x as usize]]));
        let cropped = square(DynamicImage::ImageLuma8(image), 2, Resize::Adm, None);
        assert_eq!(cropped.as_bytes(), [15, 35, 15, 35]);
    }

    #[test]
    fn a_random_crop_moves_along_the_longer_side() {
        let image = DynamicImage::ImageLuma8(GrayImage::from_fn(5, 1, |x, _| Luma([x as u8])));
        let at = |place| square(image.clone(), 1, Resize::Adm, place).as_bytes()[0];
        assert_eq!([at(None), at(Some(0.0)), at(Some(0.39)), at(Some(0.41)), at(Some(0.999))], [2, 0, 1, 2, 4]);
        let random = Framing { crop: Crop::Random, ..framing(1, 1) };
        let places: Vec<u8> = (0..64).map(|epoch| at(random.view(0, &Random::new(1), epoch).place)).collect();
        assert!((0..5).all(|place| places.contains(&place)), "{places:?}");
        assert!(framing(1, 1).view(0, &Random::new(1), 0).place.is_none());
    }

    #[test]
    fn any_size_of_image_gives_the_size_asked_for() {
        for resize in [Resize::Adm, Resize::Bicubic, Resize::Lanczos, Resize::Bilinear, Resize::Nearest] {
            for (width, height) in [(1, 1), (3, 7), (16, 5), (33, 9), (5, 1000)] {
                let image = GrayImage::from_pixel(width, height, Luma([77]));
                let cropped = square(DynamicImage::ImageLuma8(image), 5, resize, None);
                assert_eq!((cropped.width(), cropped.height()), (5, 5));
                let off = |byte: &u8| byte.abs_diff(77) > 1;
                assert!(!cropped.as_bytes().iter().any(off), "{width}x{height} {:?}", cropped.as_bytes());
            }
        }
    }

    #[test]
    fn nearest_keeps_the_pixels() {
        let image = GrayImage::from_fn(2, 2, |x, y| Luma([if x == y { 255 } else { 0 }]));
        let large = square(DynamicImage::ImageLuma8(image), 4, Resize::Nearest, None);
        assert_eq!(large.as_bytes(), [255, 255, 0, 0, 255, 255, 0, 0, 0, 0, 255, 255, 0, 0, 255, 255]);
    }

    /// Returns a small, complete file whose header claims another size. The sizes follow the name of the IHDR chunk,
    /// and its checksum follows the chunk's 13 bytes.
    fn claiming(width: u32, height: u32) -> Vec<u8> {
        let mut bomb = png(&GrayImage::from_pixel(4, 4, Luma([7])));
        bomb[16..20].copy_from_slice(&width.to_be_bytes());
        bomb[20..24].copy_from_slice(&height.to_be_bytes());
        let mut sum = flate2::Crc::new();
        sum.update(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&sum.sum().to_be_bytes());
        bomb
    }

    #[test]
    fn images_that_would_fill_the_memory_are_refused() {
        let refused = |width, height| framing(3, 4).decode(&claiming(width, height), View::default()).unwrap_err();
        assert!(refused(60_000, 60_000).contains("cannot be decoded"));
        assert_eq!(refused(16_384, 8_192), "has 16384x8192 pixels; at most 89478485 pixels are read");
        let narrow = png(&GrayImage::from_pixel(30_000, 1, Luma([7])));
        let error = framing(3, 64).decode(&narrow, View::default()).unwrap_err();
        assert_eq!(error, "is too narrow: 30000x1 pixels");
    }

    /// Returns EXIF data (big-endian TIFF) with one entry, the orientation.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
        exif.extend([0, orientation, 0, 0, 0, 0, 0, 0]);
        exif
    }

    /// Encodes a grey image of 16x16 pixels with an orientation.
    fn turned(image: &GrayImage, format: ImageFormat, orientation: u8) -> Vec<u8> {
        let (mut bytes, exif) = (Vec::new(), exif(orientation));
        match format {
            ImageFormat::Png => {
                let mut encoder = PngEncoder::new(&mut bytes);
                encoder.set_exif_metadata(exif).unwrap();
                encoder.write_image(image, 16, 16, ExtendedColorType::L8).unwrap();
            }
            ImageFormat::Jpeg => {
                let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
                encoder.set_exif_metadata(exif).unwrap();
                encoder.write_image(image, 16, 16, ExtendedColorType::L8).unwrap();
            }
            _ => {
                let rgb = DynamicImage::ImageLuma8(image.clone()).into_rgb8();
                let mut encoder = WebPEncoder::new_lossless(&mut bytes);
                encoder.set_exif_metadata(exif).unwrap();
                encoder.write_image(&rgb, 16, 16, ExtendedColorType::Rgb8).unwrap();
            }
        }
        bytes
    }

    #[test]
    fn exif_orientation_is_applied_in_every_format() {
        // The upright image has four quarters of different grey.
        let upright = |x: u32, y: u32| [[250, 170], [90, 10]][(y / 8) as usize][(x / 8) as usize];
        for orientation in 1..=8 {
            // Pixel of the upright image at column `c` and row `r` of the stored image. EXIF defines it by the sides of
            // the picture that the first row and the first column show.
            let pixel = |c: u32, r: u32| match orientation {
                1 => upright(c, r),
                2 => upright(15 - c, r),
                3 => upright(15 - c, 15 - r),
                4 => upright(c, 15 - r),
                5 => upright(r, c),
                6 => upright(15 - r, c),
                7 => upright(15 - r, 15 - c),
                _ => upright(r, 15 - c),
            };
            let stored = GrayImage::from_fn(16, 16, |c, r| Luma([pixel(c, r)]));
            for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
                let got = bytes_of(framing(1, 16), &turned(&stored, format, orientation));
                let expected: Vec<u8> = (0..256).map(|i| upright(i % 16, i / 16)).collect();
                let near = got.iter().zip(&expected).all(|(got, expected)| got.abs_diff(*expected) < 6);
                assert!(near, "{format:?} with orientation {orientation}: {got:?}");
            }
        }
    }

    #[test]
    fn exif_data_after_the_image_data_of_a_png_are_read() {
        let image = GrayImage::from_fn(2, 2, |_, y| Luma([if y == 0 { 0 } else { 255 }]));
        let mut bytes = png(&image);
        let (data, mut sum) = (exif(3), flate2::Crc::new());
        sum.update(b"eXIf");
        sum.update(&data);
        let mut chunk = (data.len() as u32).to_be_bytes().to_vec();
        chunk.extend(b"eXIf");
        chunk.extend(&data);
        chunk.extend(sum.sum().to_be_bytes());
        // The last chunk, IEND, has 12 bytes.
        let end = bytes.len() - 12;
        bytes.splice(end..end, chunk);
        assert_eq!(bytes_of(framing(1, 2), &bytes), [255, 255, 0, 0]);
    }

    #[test]
    fn transparent_pixels_show_the_background() {
        // A clear pixel that hides green, a half-transparent black one, and two opaque ones.
        let pixels = [[0, 255, 0, 0], [0, 0, 0, 128], [10, 20, 30, 255], [1, 2, 3, 255]];
        let image = RgbaImage::from_fn(2, 2, |x, y| Rgba(pixels[(2 * y + x) as usize]));
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
            let file = encoded(image.clone(), format);
            assert!(framing(3, 2).decode(&file, View::default()).unwrap().transparent);
            // 255 * (255 - 128) / 255 = 127.
            let white = [255, 127, 10, 1, 255, 127, 20, 2, 255, 127, 30, 3];
            assert_eq!(bytes_of(framing(3, 2), &file), white, "{format:?}");
            let black = [0, 0, 10, 1, 0, 0, 20, 2, 0, 0, 30, 3];
            assert_eq!(bytes_of(Framing { background: [0; 3], ..framing(3, 2) }, &file), black, "{format:?}");
        }
        let opaque = RgbaImage::from_pixel(2, 2, Rgba([1, 2, 3, 255]));
        assert!(!framing(3, 2).decode(&encoded(opaque, ImageFormat::Png), View::default()).unwrap().transparent);
    }

    #[test]
    fn tiff_gif_and_bmp_are_read_and_what_is_cut_is_refused() {
        let noise = |x: u32, y: u32| (x * 7919 + y * 104_729 + x * y * 31) as u8;
        let image = GrayImage::from_fn(12, 12, |x, y| Luma([noise(x, y)]));
        let rgb = DynamicImage::ImageLuma8(image.clone()).into_rgb8();
        for format in [ImageFormat::Tiff, ImageFormat::Bmp, ImageFormat::Png, ImageFormat::WebP] {
            let file = encoded(rgb.clone(), format);
            assert_eq!(bytes_of(framing(1, 12), &file), image.as_raw()[..], "{format:?}");
            for cut in (0..file.len() - 8).step_by(5) {
                assert!(framing(1, 12).decode(&file[..cut], View::default()).is_err(), "{format:?} cut at {cut}");
            }
        }
        // The encoder of GIF chooses its own palette.
        let flat = encoded(RgbImage::from_pixel(4, 4, Rgb([255, 0, 0])), ImageFormat::Gif);
        assert!(bytes_of(framing(3, 4), &flat)[..16].iter().all(|byte| *byte > 250));
        assert!(framing(3, 4).decode(&[0; 900], View::default()).unwrap_err().contains("zeros only"));
    }

    proptest! {
        #[test]
        fn damaged_files_are_decoded_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(), format in 0..6_usize) {
            let formats = [
                ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP, ImageFormat::Gif,
                ImageFormat::Jpeg,
            ];
            let image = RgbImage::from_fn(9, 7, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
            let mut bytes = encoded(image, formats[format]);
            let place = at.index(bytes.len());
            bytes[place] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            let view = View { mirrored: true, place: None };
            if let Ok(decoded) = framing(3, 8).decode(&bytes, view) {
                prop_assert_eq!(decoded.values.len(), 3 * 64);
            }
        }
    }
}

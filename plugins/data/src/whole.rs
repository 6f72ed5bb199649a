//! Checks that an image file is complete before it is decoded. Decoders fill missing data with a colour and report no
//! error.
//!
//!   JPEG        every marker segment fits, a scan exists, an end marker (EOI) follows it, and a sequential scan
//!               contains no run of zeros, unless its Huffman tables allow one
//!   PNG         every chunk fits, critical chunks have their checksum, and the last chunk is IEND
//!   GIF         every block of the first frame fits, and a valid block or the end of the file follows
//!   WebP        every chunk fits, and no coded data end in a run of zeros
//!   TIFF        no compressed strip ends in a run of zeros; the decoder fails when data are missing
//!   BMP         the decoder fails when data are missing
//!
//! Zeros in uncompressed data are black pixels, so they cannot be recognised as damage.

use flate2::Crc;
use image::ImageFormat;

/// Shortest run of zeros within the data of a JPEG that counts as damage, in bytes: longer than several blocks.
const HOLE: usize = 64;
/// Shortest run of zeros at the end of compressed data that counts as damage, in bytes.
const ZEROS: usize = 32;

/// Checks the structure of an image file.
///
/// # Errors
/// What is damaged.
pub fn check(bytes: &[u8], format: ImageFormat) -> Result<(), String> {
    let found = match format {
        ImageFormat::Jpeg => jpeg(bytes),
        ImageFormat::Png => png(bytes),
        ImageFormat::Gif => gif(bytes),
        ImageFormat::WebP => webp(bytes),
        ImageFormat::Tiff => tiff(bytes),
        _ => Ok(()),
    };
    found.map_err(|what| format!("is damaged: {what}"))
}

/// Returns the payload of a PNG's `eXIf` chunk, which may follow the image data.
pub fn png_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 8;
    while let Some((kind, data, next)) = png_chunk(bytes, at) {
        if kind == *b"eXIf" {
            return Some(data);
        }
        at = next;
    }
    None
}

/// The AC Huffman tables that a JPEG declared: for each table, the symbol whose code consists of zeros only.
#[derive(Default)]
struct Tables([Option<u8>; 4]);

impl Tables {
    /// Reads a segment with tables (DHT): class and number, 16 counts, symbols in order of their codes.
    fn read(&mut self, mut segment: &[u8]) {
        while let [kind, rest @ ..] = segment {
            let Some((counts, rest)) = rest.split_at_checked(16) else { return };
            let symbols: usize = counts.iter().map(|count| usize::from(*count)).sum();
            if let (0x10..=0x13, Some(first)) = (*kind, rest.first()) {
                self.0[usize::from(kind & 3)] = Some(*first);
            }
            segment = rest.get(symbols..).unwrap_or_default();
        }
    }

    /// Returns whether a run of zeros is impossible in a sequential scan with this header (SOS). Each block ends with
    /// the symbol 0 (end of block), so its code must contain a one in one of the scan's tables.
    fn exclude_zeros(&self, header: &[u8]) -> bool {
        let components = header.get(1..).unwrap_or_default().chunks_exact(2);
        let count = header.first().map_or(0, |count| usize::from(*count));
        components.take(count).any(|part| {
            self.0.get(usize::from(part[1] & 15)).is_some_and(|first| first.is_some_and(|symbol| symbol != 0))
        })
    }
}

fn jpeg(bytes: &[u8]) -> Result<(), &'static str> {
    let (mut at, mut scanned, mut sequential, mut dense) = (2, false, false, false);
    let mut tables = Tables::default();
    loop {
        // Entropy-coded data hold FF only as FF 00, as a restart marker, or before another FF.
        let mut zeros = 0;
        while let Some(byte) = bytes.get(at).filter(|byte| **byte != 0xff) {
            zeros = if *byte == 0 { zeros + 1 } else { 0 };
            if dense && zeros >= HOLE {
                return Err("its data contain a run of zeros");
            }
            at += 1;
        }
        let marker = *bytes.get(at + 1).ok_or("the file ends before the image does")?;
        at += 1;
        match marker {
            0xff => {}
            0x00 | 0x01 | 0xd0..=0xd8 => at += 1,
            0xd9 if scanned => return Ok(()),
            0xd9 => return Err("it has an end marker, but no image data"),
            _ => {
                let short = "the file ends within its headers";
                let length = bytes.get(at + 1..at + 3).ok_or(short)?;
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                if length < 2 {
                    return Err("a segment of its headers has no valid length");
                }
                let segment = bytes.get(at + 3..at + 1 + length).ok_or(short)?;
                match marker {
                    0xc0 | 0xc1 => sequential = true,
                    0xc4 => tables.read(segment),
                    0xda => (scanned, dense) = (true, sequential && tables.exclude_zeros(segment)),
                    _ => {}
                }
                at += 1 + length;
            }
        }
    }
}

/// Returns the kind and payload of the chunk at `at`, and the position after its checksum.
fn png_chunk(bytes: &[u8], at: usize) -> Option<([u8; 4], &[u8], usize)> {
    let header = bytes.get(at..at + 8)?;
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let data = bytes.get(at + 8..)?.get(..length)?;
    let next = at + 12 + length;
    (next <= bytes.len()).then_some(([header[4], header[5], header[6], header[7]], data, next))
}

fn png(bytes: &[u8]) -> Result<(), &'static str> {
    let mut at = 8;
    while let Some((kind, data, next)) = png_chunk(bytes, at) {
        if !kind.iter().all(u8::is_ascii_alphabetic) {
            return Err("other bytes are where a chunk should start");
        }
        let mut sum = Crc::new();
        sum.update(&kind);
        sum.update(data);
        let is_critical = kind[0].is_ascii_uppercase();
        if is_critical && bytes[next - 4..next] != sum.sum().to_be_bytes() {
            return Err("the checksum of a chunk does not match");
        }
        if kind == *b"IEND" {
            return Ok(());
        }
        at = next;
    }
    Err("the file ends before the image does")
}

/// Returns the position after a chain of sub-blocks that starts at `at`.
fn gif_blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}

/// Returns the size of the colour table that the flags of a GIF announce, in bytes.
fn gif_table(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

fn gif(bytes: &[u8]) -> Result<(), &'static str> {
    let short = "the file ends before its first frame does";
    let mut at = 13 + gif_table(*bytes.get(10).ok_or(short)?);
    let mut drawn = false;
    loop {
        match bytes.get(at) {
            None if drawn => return Ok(()),
            Some(0x21 | 0x2c | 0x3b) if drawn => return Ok(()),
            None => return Err(short),
            Some(0x21) => at = gif_blocks(bytes, at + 2).ok_or(short)?,
            Some(0x2c) => {
                let flags = *bytes.get(at + 9).ok_or(short)?;
                at = gif_blocks(bytes, at + 11 + gif_table(flags)).ok_or(short)?;
                drawn = true;
            }
            Some(0x3b) => return Err("it has no frame"),
            Some(_) => return Err("other bytes are where a block should start"),
        }
    }
}

fn webp(bytes: &[u8]) -> Result<(), &'static str> {
    let short = "the file ends before the image does";
    let number = |at: usize| -> Option<usize> {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    let end = number(4).ok_or(short)?.saturating_add(8);
    if end > bytes.len() {
        return Err(short);
    }
    let mut at = 12;
    while at + 8 <= end {
        let (kind, length) = (&bytes[at..at + 4], number(at + 4).ok_or(short)?);
        let data = bytes.get(at + 8..).and_then(|rest| rest.get(..length)).ok_or(short)?;
        if !kind.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b' ') {
            return Err("other bytes are where a chunk should start");
        }
        if [&b"VP8 "[..], b"VP8L", b"ANMF"].contains(&kind) && ends_in_zeros(data) {
            return Err("its data end in zeros");
        }
        at += 8 + length + length % 2;
    }
    Ok(())
}

/// Checks the first directory of a TIFF. The decoder refuses a file that this check cannot read.
fn tiff(bytes: &[u8]) -> Result<(), &'static str> {
    match tiff_strips(bytes).is_some_and(|strips| strips.into_iter().any(ends_in_zeros)) {
        true => Err("its data end in zeros"),
        false => Ok(()),
    }
}

/// Returns the strips or tiles of a TIFF's first image that are compressed with LZW, JPEG or deflate.
fn tiff_strips(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let little = match bytes.get(..4)? {
        b"II\x2a\0" => true,
        b"MM\0\x2a" => false,
        _ => return None,
    };
    let number = |at: usize, width: usize| -> Option<usize> {
        let part = bytes.get(at..at.checked_add(width)?)?;
        let add = |sum: usize, byte: &u8| (sum << 8) | usize::from(*byte);
        Some(if little { part.iter().rev().fold(0, add) } else { part.iter().fold(0, add) })
    };
    let directory = number(4, 4)?;
    let (mut compression, mut offsets, mut sizes) = (1, Vec::new(), Vec::new());
    for entry in 0..number(directory, 2)? {
        let at = directory + 2 + 12 * entry;
        let (tag, kind, count) = (number(at, 2)?, number(at + 2, 2)?, number(at + 4, 4)?);
        let width = match kind {
            3 => 2,
            4 => 4,
            _ => continue,
        };
        let start = if count * width <= 4 { at + 8 } else { number(at + 8, 4)? };
        let values = || (0..count).map(|i| number(start + i * width, width)).collect::<Option<Vec<usize>>>();
        match tag {
            259 => compression = *values()?.first()?,
            273 | 324 => offsets = values()?,
            279 | 325 => sizes = values()?,
            _ => {}
        }
    }
    if ![5, 7, 8, 32_946].contains(&compression) {
        return None;
    }
    offsets.into_iter().zip(sizes).map(|(offset, size)| bytes.get(offset..)?.get(..size)).collect()
}

/// Returns whether compressed data end in a run of zeros that no encoder writes.
fn ends_in_zeros(data: &[u8]) -> bool {
    let zeros = data.iter().rev().take_while(|byte| **byte == 0).count();
    zeros >= ZEROS.max(data.len() / 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::{DynamicImage, Rgb, RgbImage};
    use std::io::Cursor;

    /// Encodes an image with noise, so that no part of a compressed file is empty.
    fn file(format: ImageFormat) -> Vec<u8> {
        let noise = |x: u32, y: u32| (x * 7919 + y * 104_729 + x * y * 31) as u8;
        let image = RgbImage::from_fn(24, 20, |x, y| Rgb([noise(x, y), noise(y, x), noise(x + 3, y)]));
        let mut bytes = Cursor::new(Vec::new());
        match format {
            ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&image).unwrap(),
            _ => DynamicImage::ImageRgb8(image).write_to(&mut bytes, format).unwrap(),
        }
        bytes.into_inner()
    }

    #[test]
    fn whole_files_pass_and_trailing_bytes_are_allowed() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
            let mut bytes = file(format);
            assert_eq!(check(&bytes, format), Ok(()), "{format:?}");
            if format != ImageFormat::Gif {
                bytes.extend(*b"trailing");
                assert_eq!(check(&bytes, format), Ok(()), "{format:?} with trailing bytes");
            }
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_damaged() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            let bytes = file(format);
            for cut in 16..bytes.len() - 1 {
                assert!(check(&bytes[..cut], format).is_err(), "{format:?} cut at {cut} of {}", bytes.len());
            }
        }
        // The last two bytes of a GIF end the frame's data and the file; the frame is whole without the trailer.
        let bytes = file(ImageFormat::Gif);
        for cut in 16..bytes.len() - 2 {
            assert!(check(&bytes[..cut], ImageFormat::Gif).is_err(), "cut at {cut} of {}", bytes.len());
        }
    }

    #[test]
    fn a_jpeg_with_a_hole_is_damaged() {
        let mut bytes = file(ImageFormat::Jpeg);
        let end = bytes.len();
        // The end marker remains.
        bytes[end - 110..end - 10].fill(0);
        assert_eq!(check(&bytes, ImageFormat::Jpeg), Err("is damaged: its data contain a run of zeros".into()));
        // A run of zeros that codes a flat image is not damage.
        let mut flat = Cursor::new(Vec::new());
        let image = RgbImage::from_pixel(640, 640, Rgb([128, 128, 128]));
        JpegEncoder::new_with_quality(&mut flat, 90).encode_image(&image).unwrap();
        assert_eq!(check(&flat.into_inner(), ImageFormat::Jpeg), Ok(()));
    }

    #[test]
    fn a_compressed_strip_that_ends_in_zeros_is_damaged() {
        // A little-endian TIFF with a directory of three entries at byte 8 and one strip of 200 bytes at byte 50:
        // compression, offset and size of the strip.
        let of = |compression: u16, zeros: usize| {
            let mut bytes = b"II\x2a\0\x08\0\0\0\x03\0".to_vec();
            for (tag, value) in [(259_u16, compression), (273, 50), (279, 200)] {
                bytes.extend(tag.to_le_bytes());
                bytes.extend([3, 0, 1, 0, 0, 0]);
                bytes.extend(value.to_le_bytes());
                bytes.extend([0, 0]);
            }
            bytes.extend([0; 4]);
            assert_eq!(bytes.len(), 50);
            bytes.extend((0..200).map(|i| if i >= 200 - zeros { 0 } else { 7 }));
            check(&bytes, ImageFormat::Tiff)
        };
        assert!(of(5, 100).is_err() && of(8, 40).is_err());
        assert!(of(5, 10).is_ok() && of(1, 100).is_ok());
    }

    #[test]
    fn a_file_whose_end_is_zeros_is_damaged() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
            let mut bytes = file(format);
            let half = bytes.len() / 2;
            bytes[half..].fill(0);
            assert!(check(&bytes, format).unwrap_err().starts_with("is damaged: "), "{format:?}");
        }
    }
}

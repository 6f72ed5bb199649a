//! Text on pictures, in an embedded font.

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};
use std::sync::LazyLock;

/// Height of a line of text, in pixels: letters and the space around them.
pub const LINE: u32 = 22;
/// Size of the letters, in pixels.
const SIZE: f32 = 17.0;
/// What a shortened text ends with.
const CUT: &str = "..";

// Both fonts are embedded in the binary, so no system font is needed.
static LETTERS: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(epaint_default_fonts::UBUNTU_LIGHT).expect("a valid font"));
static SYMBOLS: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(epaint_default_fonts::NOTO_EMOJI_REGULAR).expect("a valid font"));

/// Returns the font of a character. A character that neither font has becomes a box.
fn font(letter: char) -> &'static FontRef<'static> {
    if LETTERS.glyph_id(letter).0 == 0 && SYMBOLS.glyph_id(letter).0 != 0 { &SYMBOLS } else { &LETTERS }
}

/// Returns the glyphs of a text in one line, and its width in pixels. Control characters become spaces.
fn layout(text: &str) -> (Vec<(Glyph, &'static FontRef<'static>)>, f32) {
    let scale = PxScale::from(SIZE);
    let baseline = (LINE as f32 - SIZE) / 2.0 + LETTERS.as_scaled(scale).ascent();
    let (mut glyphs, mut x) = (Vec::new(), 0.0);
    for letter in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        let font = font(letter);
        let id = font.glyph_id(letter);
        glyphs.push((id.with_scale_and_position(scale, point(x, baseline)), font));
        x += font.as_scaled(scale).h_advance(id);
    }
    (glyphs, x)
}

/// Returns the width of a text, in pixels.
pub fn width(text: &str) -> u32 {
    layout(text).1.ceil() as u32
}

/// Shortens a text to at most `most` pixels.
pub fn shortened(text: &str, most: u32) -> String {
    // No text that fits has more characters than pixels, and a caption may have thousands.
    let text: String = text.chars().take(most as usize).collect();
    if width(&text) <= most {
        return text;
    }
    let ends: Vec<usize> = text.char_indices().map(|(end, _)| end).collect();
    let fits = ends.partition_point(|end| width(&text[..*end]) + width(CUT) <= most);
    format!("{}{CUT}", text[..ends[fits.saturating_sub(1)]].trim_end())
}

/// Writes a text in one line whose upper left corner is at (x, y).
pub fn write(picture: &mut RgbImage, [x, y]: [u32; 2], text: &str, color: Rgb<u8>) {
    for (glyph, font) in layout(text).0 {
        let Some(outline) = font.outline_glyph(glyph) else { continue };
        let bounds = outline.px_bounds();
        outline.draw(|dx, dy, cover| {
            let at = |start: u32, bound: f32, d: u32| i64::from(start) + bound as i64 + i64::from(d);
            let (px, py) = (at(x, bounds.min.x, dx), at(y, bounds.min.y, dy));
            let (Ok(px), Ok(py)) = (u32::try_from(px), u32::try_from(py)) else { return };
            if let Some(pixel) = picture.get_pixel_mut_checked(px, py) {
                let mix = |old: u8, new: u8| {
                    let cover = cover.clamp(0.0, 1.0);
                    (f32::from(old) * (1.0 - cover) + f32::from(new) * cover).round() as u8
                };
                *pixel = Rgb([0, 1, 2].map(|c| mix(pixel[c], color[c])));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shortened_to_the_pixels_that_it_has() {
        assert_eq!(shortened("cat", 200), "cat");
        let long = "a long caption of a cat on a mat ".repeat(50);
        for most in [40, 100, 301] {
            let short = shortened(&long, most);
            assert!(short.ends_with("..") && width(&short) <= most, "{most}: {short}");
            assert!(width(&short) + 20 > most, "{most}: {short} has {} pixels", width(&short));
        }
        assert!(shortened("名前 🙂 a b c d e f g", 60).ends_with(".."));
    }

    #[test]
    fn text_outside_the_picture_is_cut() {
        let mut picture = RgbImage::new(30, 20);
        write(&mut picture, [20, 2], "wide 🙂 名", Rgb([255; 3]));
        assert!(picture.pixels().any(|pixel| pixel[0] > 128));
        write(&mut picture, [500, 500], "outside", Rgb([255; 3]));
    }
}

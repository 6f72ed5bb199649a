//! Decodes captions: the encoding, the white space around the text, and the largest length.
//!
//!   UTF-8, with or without a byte order mark; UTF-16 with a byte order mark
//!
//! A caption in another encoding is refused: a guess would teach the network wrong letters.

use std::borrow::Cow;

/// Longest caption that is accepted, in bytes.
pub const LONGEST_CAPTION: u64 = 8192;

/// Decodes a caption and trims the white space around it.
///
/// # Errors
/// If the caption is empty, too long, or in an encoding that is not read.
pub fn caption(bytes: &[u8]) -> Result<String, String> {
    if bytes.len() as u64 > LONGEST_CAPTION {
        return Err(format!("the caption is longer than {LONGEST_CAPTION} bytes"));
    }
    let text =
        decoded(bytes).ok_or("the caption is not UTF-8; convert it, or add a byte order mark if it is UTF-16")?;
    if text.contains('\0') {
        return Err("the caption contains zero bytes; if it is UTF-16, add a byte order mark or convert it".into());
    }
    match text.trim() {
        "" => Err("the caption is empty".into()),
        text => Ok(text.into()),
    }
}

/// Decodes UTF-8, or UTF-16 that starts with a byte order mark. Drops the mark.
pub fn decoded(bytes: &[u8]) -> Option<Cow<'_, str>> {
    let wide = |unit: fn([u8; 2]) -> u16| {
        let units = bytes[2..].chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
        let text = char::decode_utf16(units).collect::<Result<String, _>>().ok();
        text.filter(|_| bytes.len().is_multiple_of(2)).map(Cow::Owned)
    };
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => std::str::from_utf8(rest).ok().map(Cow::Borrowed),
        [0xff, 0xfe, ..] => wide(u16::from_le_bytes),
        [0xfe, 0xff, ..] => wide(u16::from_be_bytes),
        _ => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
    }
}

/// Returns whether a file starts with the byte order mark of UTF-16.
pub fn is_utf16(bytes: &[u8]) -> bool {
    matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_trimmed_and_what_is_none_is_said() {
        assert_eq!(caption(b" two cats\n"), Ok("two cats".into()));
        assert_eq!(caption(b" \n"), Err("the caption is empty".into()));
        assert!(caption(&[b'a', 0xff]).unwrap_err().starts_with("the caption is not UTF-8"));
        assert!(caption(&[b'a'; LONGEST_CAPTION as usize + 1]).unwrap_err().contains("longer than 8192 bytes"));
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_caption() {
        assert_eq!(caption("\u{feff}caf\u{e9}\n".as_bytes()), Ok("caf\u{e9}".into()));
        let little: Vec<u8> = "\u{feff}caf\u{e9}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = "\u{feff}caf\u{e9}".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!((caption(&little), caption(&big)), (Ok("caf\u{e9}".into()), Ok("caf\u{e9}".into())));
        assert!(caption(&little[..little.len() - 1]).is_err());
        assert_eq!(caption("\u{feff}".as_bytes()), Err("the caption is empty".into()));
    }

    #[test]
    fn other_encodings_are_refused() {
        assert!(caption(b"caf\xe9").is_err());
        let unmarked: Vec<u8> = "a cat".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(caption(&unmarked).unwrap_err().contains("if it is UTF-16"));
    }
}

//! Reasons why an entry of a folder is not read.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;

/// Returns why an entry with this name is never read.
pub fn hidden(name: &OsStr) -> Option<&'static str> {
    let name = name.as_encoded_bytes();
    match name {
        [b'.', ..] => Some("a hidden file or folder (its name starts with a dot)"),
        b"__MACOSX" => Some("a folder that archives of macOS contain"),
        _ => None,
    }
}

/// Returns why an entry cannot be read.
pub fn unreadable(error: ErrorKind) -> String {
    match error {
        ErrorKind::NotFound => "a link that leads nowhere".into(),
        error => format!("a file or folder that cannot be read: {error}"),
    }
}

/// Returns the reason why a regular file that is not an image is not read.
pub fn ending(path: &Path) -> String {
    match path.extension() {
        Some(ending) => format!("an ending that is not read: .{}", ending.to_string_lossy().to_lowercase()),
        None => "a name without an ending".into(),
    }
}

//! Recognises by its first bytes what a file is. The file name is only a hint for damaged files.

use crate::error::{Error, Problem, Result};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// The containers of tensors that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Safetensors.
    Safetensors,
    /// A file of `torch.save`, or any other content, which that reader refuses.
    Torch,
    /// JSON: an index of shards.
    Json,
}

/// The accepted files, for messages.
pub(crate) const ACCEPTS: &str =
    "safetensors, a file of torch.save (.pt, .pth, .ckpt, .bin), or a folder of diffusers or transformers";

/// Number of leading bytes that are inspected. The magic number of a tar archive is at 257.
const START: u64 = 512;

/// Largest header of a safetensors file, in bytes.
const LARGEST_HEADER: u64 = 100_000_000;

/// Refuses pipes, devices and sockets. Opening one could block forever, or never end.
///
/// # Errors
/// If the file does not exist, or is not a regular file.
pub fn regular(path: &Path) -> Result<()> {
    match fs::metadata(path).map_err(|e| Error::io(path, e))? {
        metadata if metadata.is_file() => Ok(()),
        _ => {
            let problem = Problem::new("", format!("{} is not a regular file", path.display()));
            Err(problem.accepts("a file; pipes and devices are not opened").into())
        }
    }
}

/// Returns the kind of a file of weights.
///
/// # Errors
/// If the file cannot be read, or is known to be something else. The error says what it is.
pub fn file_kind(path: &Path) -> Result<FileKind> {
    regular(path)?;
    let mut start = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(START).read_to_end(&mut start).map_err(|e| Error::io(path, e))?;
    if let Some(kind) = container(&start) {
        return Ok(kind);
    }
    if let Some((what, fix)) = other(&start) {
        return Err(refused(path, &what, fix));
    }
    // Unknown content: the reader that the file name selects reports the damage.
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    Ok(match ending.as_deref() {
        Some("safetensors") => FileKind::Safetensors,
        Some("json") => FileKind::Json,
        _ => FileKind::Torch,
    })
}

fn refused(path: &Path, what: &str, fix: &str) -> Error {
    let problem = Problem::new("", format!("{} cannot be read as a checkpoint: it is {what}", path.display()));
    problem.accepts(ACCEPTS).fix(fix).into()
}

/// Returns the container that the first bytes of a file announce.
fn container(start: &[u8]) -> Option<FileKind> {
    let length = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
    match (first, start.get(8), length) {
        // Read as the header length of a safetensors file, the first bytes of a JSON text are a huge number.
        (Some(b'{' | b'['), _, None) => Some(FileKind::Json),
        (Some(b'{' | b'['), _, Some(length)) if length > LARGEST_HEADER => Some(FileKind::Json),
        (_, Some(b'{'), _) => Some(FileKind::Safetensors),
        _ if start.starts_with(b"PK") => Some(FileKind::Torch),
        _ => None,
    }
}

/// Describes a file that is not a container of tensors, and how to get one. Returns `None` if the kind of file is
/// unknown.
fn other(start: &[u8]) -> Option<(String, &'static str)> {
    const DOWNLOAD: &str = "download the file itself; the address needs a sign-in, or does not exist";
    const UNPACK: &str = "unpack it, and name the file in it";
    let known = |what: &str, fix| Some((what.to_string(), fix));
    if start.is_empty() {
        return known("an empty file", "download or copy it again");
    }
    if start.starts_with(b"version https://git-lfs.github.com/") {
        return known("a Git LFS pointer, not the file that it points to", "run `git lfs pull` in its repository");
    }
    const MAGIC: &[(&[u8], &str, &str)] = &[
        (b"\x1f\x8b", "gzip", UNPACK),
        (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
        (b"BZh", "a bzip2 archive", UNPACK),
        (b"\xfd7zXZ\0", "an xz archive", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
        (b"Rar!", "a RAR archive", UNPACK),
        (b"GGUF", "a GGUF file", "use the safetensors file of the same model"),
        (b"lmgg", "a GGML file", "use the safetensors file of the same model"),
        (b"tjgg", "a GGML file", "use the safetensors file of the same model"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "use the PyTorch or safetensors file of the same model"),
        (b"\x93NUMPY", "a NumPy array", "save a state dict with torch.save or as safetensors"),
        (b"\x89PNG", "a PNG image", "name the file of the weights"),
        (b"\xff\xd8\xff", "a JPEG image", "name the file of the weights"),
        (b"%PDF", "a PDF document", "name the file of the weights"),
        (b"\x7fELF", "a program or library", "name the file of the weights"),
    ];
    if let Some((_, what, fix)) = MAGIC.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return known(what, fix);
    }
    if start.get(257..262) == Some(b"ustar") {
        return known("a tar archive", UNPACK);
    }
    if start.get(4..8) == Some(b"TFL3") {
        return known("a TensorFlow Lite file", "use the PyTorch or safetensors file of the same model");
    }
    // ONNX is a protocol buffer: field 1 is the version of its format, and a text or the graph follows.
    if let [8, 1..=32, 0x12 | 0x1a | 0x22 | 0x3a | 0x42, ..] = start {
        return known("an ONNX file", "use the PyTorch or safetensors file of the same model");
    }
    let text = text_of(start)?;
    let lower = text.trim_start_matches('\u{feff}').trim_start().to_lowercase();
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") || lower.contains("<head") {
        return known("an HTML page", DOWNLOAD);
    }
    if lower.starts_with("<?xml") || lower.starts_with('<') {
        return known("an XML document, such as the error of a download", DOWNLOAD);
    }
    let line: String = text.trim().lines().next().unwrap_or_default().chars().take(60).collect();
    Some((format!("a text that begins with {line:?}"), DOWNLOAD))
}

/// Returns the text that a file begins with; `None` if these bytes are not text.
fn text_of(start: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // The last character may be cut off.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&start[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let is_text = |c: char| !c.is_control() || c.is_whitespace();
    (text.chars().count() >= 4 && text.chars().all(is_text)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what the message says about a file of these bytes and this name.
    fn said(name: &str, bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = file_kind(&path).expect_err("the file is not a checkpoint");
        assert_eq!(error.exit_code(), 2);
        let said = error.to_string();
        assert!(said.contains(name) && said.contains("cannot be read as a checkpoint"), "{said}");
        said
    }

    fn kind(name: &str, bytes: &[u8]) -> FileKind {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        file_kind(&path).unwrap()
    }

    #[test]
    fn a_file_that_is_not_a_checkpoint_is_named_as_what_it_is() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4f4f\nsize 4265380512\n";
        let mut tar = vec![b'a'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        for name in ["a.safetensors", "a.ckpt", "a"] {
            for (bytes, what) in [
                (&b""[..], "an empty file"),
                (pointer, "a Git LFS pointer"),
                (b"<!DOCTYPE html><html><head><title>Sign in</title>", "an HTML page"),
                (b"\n  <HTML lang=en>", "an HTML page"),
                (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
                (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
                (b"GGUF\x03\0\0\0", "a GGUF file"),
                (b"\x08\x07\x12\x07pytorch", "an ONNX file"),
                (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
                (&tar, "a tar archive"),
                (b"Entry not found", "a text that begins with \"Entry not found\""),
            ] {
                let said = said(name, bytes);
                assert!(said.contains(what), "{name}: {said}");
            }
        }
        let said = said("a.ckpt", pointer);
        assert!(said.contains("fix      run `git lfs pull`"), "{said}");
    }

    #[test]
    fn containers_are_recognised_under_any_name() {
        let safetensors = [&2_u64.to_le_bytes()[..], b"{}"].concat();
        for name in ["a.safetensors", "a.SAFETENSORS", "a.safetensor", "a.ckpt", "a.pt", "a.json", "a"] {
            assert_eq!(kind(name, &safetensors), FileKind::Safetensors, "{name}");
            assert_eq!(kind(name, b"PK\x03\x04\0\0\0\0\0\0"), FileKind::Torch, "{name}");
            assert_eq!(kind(name, b"{\"abc\": {\"a\": 1}}"), FileKind::Json, "{name}");
        }
        // A header of 123 bytes: the first byte of the length is `{`.
        let header = [&123_u64.to_le_bytes()[..], b"{\"a\"", &[b' '; 119]].concat();
        assert_eq!(kind("a", &header), FileKind::Safetensors);
        // Unknown bytes go to the reader that the name announces.
        assert_eq!(kind("a.SafeTensors", &[0; 16]), FileKind::Safetensors);
        assert_eq!(kind("a.pt", &[0; 16]), FileKind::Torch);
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_refused_before_they_are_opened() {
        let said = file_kind(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(said.contains("not a regular file"), "{said}");
    }
}

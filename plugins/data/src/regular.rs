//! Reads regular files only. Opening a pipe would wait for a writer, and opening a device may have an effect.

use std::fs::{self, File, FileType, Metadata};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Opens a regular file, or the regular file that a link leads to.
///
/// # Errors
/// If the path does not exist, cannot be read, or is not a regular file.
pub fn open(path: &Path) -> Result<File> {
    refuse(&fs::metadata(path)?)?;
    let file = File::open(path)?;
    // The path may lead to another file since the check, so check the opened file as well.
    refuse(&file.metadata()?)?;
    Ok(file)
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// If the file cannot be opened or read, or is larger.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("the file is larger than {most} bytes")));
    }
    Ok(bytes)
}

/// Returns what a path that is not a regular file is.
pub fn kind(of: FileType) -> &'static str {
    if of.is_dir() {
        "a folder"
    } else if of.is_fifo() {
        "a named pipe"
    } else if of.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

fn refuse(metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let what = format!("is {}; only regular files are read", kind(metadata.file_type()));
    Err(Error::new(ErrorKind::InvalidInput, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    #[test]
    fn only_regular_files_are_read() {
        let root = TempDir::new().unwrap();
        let file = root.path().join("a");
        fs::write(&file, b"1234").unwrap();
        assert_eq!(read(&file, 4).unwrap(), b"1234");
        assert!(read(&file, 3).unwrap_err().to_string().contains("larger than 3 bytes"));
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read(&link, 4).unwrap(), b"1234");

        let socket = root.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        for (path, what) in
            [(root.path(), "is a folder"), (&socket, "is a socket"), (Path::new("/dev/zero"), "is a device")]
        {
            let error = open(path).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}

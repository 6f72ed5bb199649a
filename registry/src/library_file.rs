//! Files of plugin libraries: bounded reading, and opening exactly the bytes that were read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Largest plugin library, in bytes. Built libraries have about 100 kB.
pub const MOST_BYTES: u64 = 256_000_000;

/// Reads a library's file: a regular file of at most [`MOST_BYTES`] bytes. Never blocks, and never reads a device.
///
/// # Errors
/// If the file cannot be read, is not a regular file, or is too large.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let refuse = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    let not_regular = || refuse("it is not a regular file".to_string());
    // Check before opening, because opening a device may have effects. Check again after it, because the path may have
    // been replaced.
    if !path.metadata()?.is_file() {
        return not_regular();
    }
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Opening a FIFO would wait for a writer.
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return not_regular();
    }
    let mut content = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST_BYTES {
        return refuse(format!("it has more than {} MB", MOST_BYTES / 1_000_000));
    }
    Ok(content)
}

/// Opens a library from its bytes. This runs its code. The library is never closed. `name` is shown by debuggers.
///
/// # Errors
/// If the bytes cannot be stored, or the system's loader refuses them.
pub fn open(name: &str, content: &[u8]) -> Result<(), String> {
    #[cfg(target_os = "linux")]
    if let Ok(memory) = sealed(name, content) {
        use std::os::fd::AsRawFd;
        let path = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
        if open_path(&path).is_ok() {
            // The loader knows an open library by its path, so the descriptor must stay open: another library with the
            // same number would be taken for this one.
            std::mem::forget(memory);
            return Ok(());
        }
        // Some systems do not execute code from such memory, or have no /proc.
    }
    let (folder, path) = private_copy(name, content).map_err(|e| format!("it cannot be copied: {e}"))?;
    let opened = open_path(&path);
    // The mapping stays valid without the file where the system allows removing it.
    drop(folder);
    opened
}

/// Opens the library at `path`, which runs its code.
///
/// # Errors
/// If the system's loader refuses the file. The message is the loader's.
pub fn open_path(path: &Path) -> Result<(), String> {
    #[cfg(unix)]
    let opened = {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        // SAFETY: opening runs the library's initializers. The user requested this library, it was built for this
        // framework, and it is never closed.
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(libloading::Library::from)
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let opened = unsafe { libloading::Library::new(path) };
    opened.map(std::mem::forget).map_err(|e| e.to_string())
}

/// Copies the bytes to memory that nobody can change, not even this process.
#[cfg(target_os = "linux")]
fn sealed(name: &str, content: &[u8]) -> io::Result<File> {
    use std::ffi::CString;
    use std::os::fd::{AsRawFd, FromRawFd};
    let name = CString::new(name.chars().filter(|c| *c != '\0').take(60).collect::<String>())?;
    // SAFETY: `name` is a C string that outlives the call.
    let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(content)?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open, and F_ADD_SEALS takes an integer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Writes the bytes to a file in a new folder that only this user can enter.
fn private_copy(name: &str, content: &[u8]) -> io::Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(Path::new(name).file_name().unwrap_or("library".as_ref()));
    File::create_new(&path)?.write_all(content)?;
    Ok((folder, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "bytes").unwrap();
        assert_eq!(read(&path).unwrap(), b"bytes");
        assert!(read(folder.path()).unwrap_err().to_string().contains("not a regular file"));
        assert_eq!(read(&folder.path().join("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_and_pipes_are_refused_at_once() {
        use std::ffi::CString;
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let name = CString::new(pipe.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is a C string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for path in [pipe.as_path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
            assert!(read(path).unwrap_err().to_string().contains("not a regular file"), "{}", path.display());
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn sealed_memory_holds_the_bytes_and_cannot_be_changed() {
        let mut file = sealed("a name", b"some bytes").unwrap();
        assert!(file.write_all(b"more").is_err() && file.set_len(3).is_err());
        use std::os::fd::AsRawFd;
        assert_eq!(fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap(), b"some bytes");
    }

    #[test]
    fn a_private_copy_holds_the_bytes() {
        let (folder, path) = private_copy("library.so", b"bytes").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"bytes");
        assert!(path.starts_with(folder.path()) && path.ends_with("library.so"));
    }
}

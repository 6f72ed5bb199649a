//! Checks of outputs before the work begins: an hour of sampling must not end with a misspelt folder.

use crate::console::bytes;
use crate::{Outcome, system};
use framework::error::{Error, Problem};
use std::fs;
use std::path::Path;

/// Checks that a file can be written to `path`, which `option` names. `ending` is the only accepted extension.
///
/// # Errors
/// If the extension differs, the path is a folder, or the parent folder does not exist or cannot be written.
pub fn file(option: &str, path: &Path, ending: Option<&str>) -> Outcome {
    let refuse = |what: String| Problem::new(option, what);
    if let Some(ending) = ending
        && !path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
    {
        let what = refuse(format!("{} does not end with .{ending}", path.display()));
        return Err(what.accepts(format!("the path of a .{ending} file")).into());
    }
    if path.is_dir() {
        return Err(refuse(format!("{} is a folder", path.display())).accepts("the path of a file").into());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let what = refuse(format!("the folder {} does not exist", folder.display()));
        return Err(what
            .accepts("a file in an existing folder")
            .fix("create the folder, or choose another one")
            .into());
    }
    writable(option, folder)
}

/// Checks that files can be written to `folder`, which exists.
///
/// # Errors
/// If no file can be written.
pub fn writable(option: &str, folder: &Path) -> Outcome {
    // The file has no name and disappears when it is closed.
    let written = tempfile::tempfile_in(folder);
    written.map(drop).map_err(|error| {
        let what = format!("the folder {} cannot be written: {error}", folder.display());
        Error::from(Problem::new(option, what).fix("choose another folder"))
    })
}

/// Creates the folder that `option` names, and checks that it is empty and can be written.
///
/// # Errors
/// If the folder contains anything, or cannot be created or written.
pub fn empty_folder(option: &str, folder: &Path) -> Outcome {
    let refuse = |what: String| Error::from(Problem::new(option, what).accepts("an empty folder, or a new one"));
    let failed = |error: std::io::Error| refuse(format!("{}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    if fs::read_dir(folder).map_err(failed)?.next().is_some() {
        return Err(refuse(format!("{} already contains files", folder.display())));
    }
    writable(option, folder)
}

/// Checks that the disk has room for `needed` bytes in the folder of `path`, which `option` names.
///
/// # Errors
/// If less is free. An unknown amount of free space is not an error.
pub fn room(option: &str, path: &Path, needed: u64) -> Outcome {
    room_or(option, path, needed, "free some space, or write fewer images (--count)")
}

/// Checks like [`room`], with the fix to suggest.
///
/// # Errors
/// Like [`room`].
pub fn room_or(option: &str, path: &Path, needed: u64, fix: &str) -> Outcome {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match system::free_space(folder) {
        Some(free) if free < needed => {
            let (needed, free) = (bytes(needed as f64), bytes(free as f64));
            let what = format!("{} needs {needed}, and the disk has {free} free", path.display());
            Err(Problem::new(option, what).fix(fix).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_need_their_folder_and_their_ending() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        file("--output", &at("a.png"), Some("png")).unwrap();
        file("--output", &at("a.PNG"), Some("png")).unwrap();
        file("--output", &at("a"), None).unwrap();
        file("--output", Path::new("a.png"), Some("png")).unwrap();
        for (name, ending, what) in [
            ("a.gif", Some("png"), "does not end with .png"),
            ("a", Some("png"), "does not end with .png"),
            ("none/a.png", Some("png"), "does not exist"),
            ("", None, "is a folder"),
        ] {
            let error = file("--output", &at(name), ending).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(what), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the checks leave nothing");
    }

    #[test]
    fn image_folders_are_empty_or_new() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("new/images");
        empty_folder("--images", &images).unwrap();
        empty_folder("--images", &images).unwrap();
        fs::write(images.join("000000.png"), "old").unwrap();
        assert!(empty_folder("--images", &images).unwrap_err().to_string().contains("already contains files"));
        fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(empty_folder("--images", &folder.path().join("file")).unwrap_err().exit_code(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn more_than_any_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        room("--tensors", &folder.path().join("t"), 1).unwrap();
        let error = room("--tensors", &folder.path().join("t"), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("the disk has") && error.contains("--count"), "{error}");
    }
}

//! Describes a path of the document that cannot be opened: where it is looked for, and the nearest existing name.

use framework::error::{Error, Problem};
use std::io;
use std::path::Path;

/// Largest edit distance of a suggested name.
const MOST_EDITS: usize = 3;

/// Returns the error about a path that the document names at `pointer`.
pub fn cannot_open(pointer: &str, path: &Path, accepts: &str, error: &io::Error) -> Error {
    let here = std::env::current_dir().map_or("the working directory".to_string(), |here| here.display().to_string());
    let accepts = match path.is_relative() {
        true => format!("{accepts}; a relative path starts at {here}"),
        false => accepts.to_string(),
    };
    let problem = Problem::new(pointer, format!("{}: {error}", path.display())).accepts(accepts);
    match error.kind() {
        io::ErrorKind::NotFound => problem.nearest(nearest(path)).into(),
        _ => problem.into(),
    }
}

/// Returns the existing path next to `path` with the most similar name.
fn nearest(path: &Path) -> Option<String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name()?.to_str()?;
    let names = parent.read_dir().ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let near = names.map(|other| (edits(name, &other), other)).filter(|(edits, _)| *edits <= MOST_EDITS);
    near.min().map(|(_, other)| path.with_file_name(other).display().to_string())
}

/// Computes the edit distance (Levenshtein) of two names: the smallest number of inserted, deleted and replaced
/// letters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("photos", "photos"), 0);
        assert_eq!(edits("photoz", "photos"), 1);
        assert_eq!(edits("photos", "photo"), 1);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }

    #[test]
    fn the_nearest_name_and_the_pointer_are_stated() {
        let root = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(root.path().join("photos")).unwrap();
        let path = root.path().join("photoz");
        let error = std::fs::read_dir(&path).unwrap_err();
        let error = cannot_open("/data/path", &path, "a folder", &error);
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("photoz: No such file or directory") && text.contains("at       /data/path"), "{text}");
        assert!(text.contains(&format!("nearest  {}", root.path().join("photos").display())), "{text}");
    }
}

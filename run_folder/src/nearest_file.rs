//! Suggests an existing path for a misspelt one.

use registry::nearest;
use std::path::{Path, PathBuf};

/// Most entries of a folder that are compared.
const MOST_ENTRIES: usize = 10_000;

/// Returns an existing path whose name is near to the first name of `path` that does not exist; `None` if there is
/// none.
pub fn nearest_file(path: &Path) -> Option<String> {
    let mut found = PathBuf::new();
    let mut parts = path.components();
    for part in parts.by_ref() {
        let next = found.join(part);
        if next.exists() {
            found = next;
            continue;
        }
        let folder = if found.as_os_str().is_empty() { Path::new(".") } else { &found };
        let entries = folder.read_dir().ok()?.flatten().take(MOST_ENTRIES);
        let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let near = nearest(part.as_os_str().to_str()?, names.iter().map(String::as_str))?;
        // The rest of the path may exist below the suggested name.
        let rest: PathBuf = parts.collect();
        let [whole, part] = [found.join(&near).join(rest), found.join(near)];
        let near = if whole.exists() { whole } else { part };
        return Some(near.components().collect::<PathBuf>().display().to_string());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_misspelt_name_of_a_path_is_corrected() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("runs/digits")).unwrap();
        std::fs::write(folder.path().join("pipeline.json"), "").unwrap();
        let at = |name: &str| folder.path().join(name);
        let near = |name: &str| nearest_file(&at(name));
        let shown = |name: &str| Some(at(name).display().to_string());
        assert_eq!(near("pipelin.json"), shown("pipeline.json"));
        assert_eq!(near("run/digits"), shown("runs/digits"));
        assert_eq!(near("runs/digit"), shown("runs/digits"));
        assert_eq!(near("run/other"), shown("runs"));
        assert_eq!(near("something-else.json"), None);
        assert_eq!(near("pipeline.json"), None);
    }
}

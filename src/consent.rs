//! Consent to run the code of the plugin libraries that a document lists. A consent given on a terminal is remembered
//! by the SHA-256 of the library's file, so a changed file needs a new one.

use crate::console;
use framework::error::Problem;
use registry::library::Library;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// Largest file of remembered consents that is read, in bytes. A line has about 100 bytes.
const MOST_BYTES: u64 = 1_000_000;

/// Whether the user allows a library to run its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// The library may be opened.
    Given,
    /// The library must not be opened.
    Missing,
}

/// Returns the consent to a library that `document` lists. `trusted` is `--trust-plugins`. Asks on a terminal if
/// `may_ask` and no consent is remembered.
pub fn of(library: &Library, document: &Path, trusted: bool, may_ask: bool) -> Consent {
    let store = store();
    let is_remembered = || store.as_deref().is_some_and(|path| contains(path, &library.sha256));
    if trusted || is_remembered() || (may_ask && asked(library, document, store.as_deref())) {
        Consent::Given
    } else {
        Consent::Missing
    }
}

/// Creates the problem with a listed library that has no consent. `index` is its position in the document's `plugins`.
pub fn missing(library: &Library, document: &Path, index: usize) -> Problem {
    let path = library.path.display();
    Problem::new(
        format!("/plugins/{index}"),
        format!("the plugin library {path} is not opened without consent, because opening it runs its code"),
    )
    .in_file(&document.display().to_string())
    .accepts(format!(
        "consent to sha256 {}: --plugin-dir, UNGUIDED_PLUGINS, --trust-plugins, or an answer on a terminal",
        library.sha256
    ))
    .fix(format!("add --plugin-dir {path} (this library), or --trust-plugins (all that the document lists)"))
}

/// Asks the user on the terminal, and remembers a consent. Returns `false` without asking if standard input or standard
/// error is not a terminal.
fn asked(library: &Library, document: &Path, store: Option<&Path>) -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    let mut question = format!(
        "{} lists a plugin library. Opening it runs its code with your rights.\n  library    {}\n  sha256     {}\n",
        document.display(),
        library.path.display(),
        library.sha256
    );
    for card in &library.plugins {
        question += &format!("  registers  {} \"{}\" of {}\n", card.kind.name(), card.name, card.origin);
    }
    question += "Open it now and in the future, as long as its bytes are these? [y/N] ";
    // If the question could not be shown, no answer counts as consent.
    if !console::ask(&question) {
        return false;
    }
    let mut answer = String::new();
    let is_yes =
        io::stdin().read_line(&mut answer).is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    if is_yes {
        let remembered = store.map(|store| remember(store, library));
        if !matches!(remembered, Some(Ok(()))) {
            console::say("the consent holds for this command only: it could not be saved");
        }
    }
    is_yes
}

/// Returns the file of remembered consents in the user's configuration folder; `None` if there is no such folder.
fn store() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let configuration = folder("XDG_CONFIG_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".config")))
        .or_else(|| folder("APPDATA"))?;
    Some(configuration.join("unguided").join("trusted-plugins"))
}

/// Returns whether the file of remembered consents contains a hash. An unreadable file contains none.
fn contains(store: &Path, sha256: &str) -> bool {
    let mut text = Vec::new();
    let is_file = fs::metadata(store).is_ok_and(|metadata| metadata.is_file());
    let read = is_file && File::open(store).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut text)).is_ok();
    read && String::from_utf8_lossy(&text).lines().any(|line| line.split_whitespace().next() == Some(sha256))
}

/// Adds a line with the hash of a library and, for the reader, its path.
fn remember(store: &Path, library: &Library) -> io::Result<()> {
    if let Some(folder) = store.parent() {
        fs::create_dir_all(folder)?;
    }
    let path = library.path.display().to_string().replace(char::is_control, "?");
    let mut file = OpenOptions::new().create(true).append(true).open(store)?;
    file.write_all(format!("{} {path}\n", library.sha256).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consent_is_found_by_its_whole_hash_at_the_start_of_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("trusted-plugins");
        let (known, other) = ("ab".repeat(32), "cd".repeat(32));
        assert!(!contains(&store, &known), "an absent file contains no consent");
        fs::write(&store, format!("{known} /a/path {other}\n")).unwrap();
        assert!(contains(&store, &known));
        assert!(!contains(&store, &other) && !contains(&store, &known[1..]) && !contains(&store, ""));
    }
}

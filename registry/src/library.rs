//! Plugin libraries: reading their files, checking that they fit this framework, and opening them.
//!
//! Opening a shared library runs its code. Therefore all libraries are first read and checked as files, and none is
//! opened unless all of them fit. An open library is never closed.

use crate::library_file;
use framework::error::{Problem, Problems};
use framework::plugin::{self, BUILD_ID, BUILD_ID_SECTION, Entry, Kind, PLUGINS_SECTION};
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use object::{Endianness, FileKind, Object, ObjectKind, ObjectSection};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fmt, fs};

/// File name of the shared framework, which every plugin library links.
pub const FRAMEWORK: &str = "libframework_dylib.so";

/// The last bytes of the file of a finished library. The length of the [`Seal`] is stored before them.
const MAGIC: &[u8; 8] = b"UNGUIDED";

/// Creates the problem with the library at `path`.
fn refusal(path: &Path, what: impl Into<String>, fix: impl Into<String>) -> Problem {
    Problem::new(path.display().to_string(), what).fix(fix)
}

/// One plugin of a library.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Slot that the plugin fills.
    pub kind: Kind,
    /// Name of the plugin in documents.
    pub name: String,
    /// Crate of the plugin, and its version.
    pub origin: String,
    /// Papers that the plugin implements.
    pub papers: Vec<String>,
}

/// The data that `plugin build` appends to a library.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seal {
    /// SHA-256 of all bytes before the seal.
    sha256: String,
    /// Folder of the library's source.
    source: PathBuf,
    /// JSON Schema of each plugin, by kind and name.
    schemas: Map<String, Value>,
}

/// The content of a plugin library's file. Reading it runs no code of the library.
#[derive(Clone, Debug)]
pub struct Library {
    /// Path of the file.
    pub path: PathBuf,
    /// Versions and hashes of everything that the library was built from.
    pub build_id: String,
    /// SHA-256 of the whole file, in hexadecimal. The user consents to these bytes.
    pub sha256: String,
    /// Plugins in the library.
    pub plugins: Vec<Card>,
    /// Whether the library links the shared framework.
    shared: bool,
    seal: Seal,
    /// The whole file. These bytes are opened, whatever happens to the file in the meantime.
    content: Vec<u8>,
}

/// The open libraries and their plugins.
static OPENED: Mutex<Vec<(PathBuf, Vec<Card>)>> = Mutex::new(Vec::new());

/// Returns the library from which a plugin was loaded; `None` if the plugin is linked into the program.
pub fn origin(kind: Kind, name: &str) -> Option<PathBuf> {
    let opened = OPENED.lock().expect("no thread panics while it holds this lock");
    let holds = |cards: &[Card]| cards.iter().any(|card| card.kind == kind && card.name == name);
    opened.iter().find(|(_, cards)| holds(cards)).map(|(path, _)| path.clone())
}

/// Returns whether a library with this file name is open.
pub fn is_open(file_name: &std::ffi::OsStr) -> bool {
    let opened = OPENED.lock().expect("no thread panics while it holds this lock");
    opened.iter().any(|(path, _)| path.file_name() == Some(file_name))
}

impl Library {
    /// Reads the file of a library.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or is not a plugin library for this machine.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let refuse = |what: &str, fix: &str| refusal(path, what, fix);
        let file = library_file::read(path).map_err(|e| {
            refuse(&format!("the plugin library cannot be read: {e}"), "use a file that `unguided plugin build` wrote")
        })?;
        let no_library = || refuse("the file is not a shared library", "use a file that `unguided plugin build` wrote");
        if FileKind::parse(&*file) == Ok(FileKind::Elf32) {
            return Err(refuse(
                "the library is built for a 32-bit machine",
                "build it on this machine: unguided plugin build FOLDER",
            ));
        }
        if FileKind::parse(&*file) != Ok(FileKind::Elf64) {
            return Err(no_library());
        }
        let damaged = |why: &dyn fmt::Display| {
            refuse(
                &format!("the library is damaged or truncated: {why}"),
                "build it again: unguided plugin build FOLDER",
            )
        };
        let (content, seal) = unseal(&file).map_err(|why| damaged(&why))?;
        let elf = ElfFile64::<Endianness>::parse(content).map_err(|e| damaged(&e))?;
        let machine = format!("{:?}", elf.architecture()).to_lowercase();
        if machine != std::env::consts::ARCH {
            let what = format!("the library is built for {machine}; this machine is {}", std::env::consts::ARCH);
            return Err(refuse(&what, "build it on this machine: unguided plugin build FOLDER"));
        }
        if elf.kind() != ObjectKind::Dynamic {
            return Err(no_library());
        }
        let section = |name: &str| {
            let data = elf.section_by_name(name)?.data().ok()?;
            Some(String::from_utf8_lossy(data).into_owned())
        };
        let (Some(ids), Some(cards)) = (section(BUILD_ID_SECTION), section(PLUGINS_SECTION)) else {
            return Err(refuse("the library is not an Unguided plugin", "see `unguided plugin new --help`"));
        };
        let Some(seal) = seal else {
            return Err(refuse(
                "the plugin library is unfinished or truncated: it does not end with the seal of `plugin build`",
                "build it: unguided plugin build FOLDER",
            ));
        };
        let build_id = ids.split('\0').next().unwrap_or_default().to_string();
        let plugins = cards.split_terminator('\0').filter_map(card).collect();
        let shared = needed(content).is_some_and(|names| names.iter().any(|name| name == FRAMEWORK));
        let sha256 = checksum(&file);
        Ok(Self { path: path.to_path_buf(), build_id, sha256, plugins, shared, seal, content: file })
    }

    /// Returns the JSON Schema of a plugin in the library.
    pub fn schema(&self, card: &Card) -> Option<&Value> {
        self.seal.schemas.get(&key(card.kind, &card.name))
    }

    /// Checks that the library fits this framework.
    ///
    /// # Errors
    /// If the library was built for another framework. The problem lists the differences and the command that rebuilds
    /// the library.
    pub fn check(&self) -> Result<(), Problem> {
        let fix = format!("unguided plugin build {}", self.seal.source.display());
        let ours = BUILD_ID.trim_end_matches('\0');
        if self.build_id != ours {
            let pairs = ours.split("; ").zip(self.build_id.split("; "));
            let differs = pairs.filter(|(ours, theirs)| ours != theirs);
            let mut refused = refusal(&self.path, "the library was built for another build of this framework", fix);
            refused.differs = differs.map(|(ours, theirs)| format!("{ours} here, {theirs} in the library")).collect();
            return Err(refused);
        }
        if !self.shared {
            let what = "the library contains its own copy of the framework, so it cannot register plugins here";
            return Err(refusal(&self.path, what, fix));
        }
        Ok(())
    }

    /// Opens the bytes that were read. This runs the library's code, which registers its plugins.
    ///
    /// # Errors
    /// If the library cannot be opened, or does not register the plugins that its file lists.
    pub fn open(self) -> Result<(), Problem> {
        let Self { path, plugins, seal, content, .. } = self;
        let fix = format!("unguided plugin build {}", seal.source.display());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        library_file::open(&name, &content).map_err(|e| refusal(&path, cannot_open(&e), &fix))?;
        let registered = plugin::entries();
        if let Some(card) = plugins.iter().find(|card| !registered.iter().any(|entry| is(entry, card))) {
            let what = format!(
                "the library did not register its {} \"{}\": it contains its own copy of the framework",
                card.kind.name(),
                card.name
            );
            return Err(refusal(&path, what, fix));
        }
        OPENED.lock().expect("no thread panics while it holds this lock").push((path, plugins));
        Ok(())
    }
}

fn is(entry: &Entry, card: &Card) -> bool {
    entry.kind == card.kind && entry.name == card.name
}

fn key(kind: Kind, name: &str) -> String {
    format!("{} {name}", kind.name())
}

fn card(record: &str) -> Option<Card> {
    let mut fields = record.split('\t');
    let (kind, name, from, version) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let kind = Kind::ALL.into_iter().find(|known| format!("{known:?}") == kind)?;
    let papers = fields.map(str::to_string).collect();
    Some(Card { kind, name: name.to_string(), origin: format!("{from} {version}"), papers })
}

/// Returns the names of the shared libraries that a library depends on.
fn needed(content: &[u8]) -> Option<Vec<String>> {
    let header = FileHeader64::<Endianness>::parse(content).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, content).ok()?;
    let (entries, strings) = sections.dynamic(endian, content).ok()??;
    let strings = sections.strings(endian, content, strings).ok()?;
    let names = entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED);
    names.map(|entry| Some(String::from_utf8_lossy(entry.string(endian, strings).ok()?).into_owned())).collect()
}

/// Splits the file into the library and its seal; `None` if the file has no seal.
fn unseal(file: &[u8]) -> Result<(&[u8], Option<Seal>), String> {
    let Some((rest, length)) = file.strip_suffix(MAGIC).and_then(|rest| rest.split_last_chunk::<8>()) else {
        return Ok((file, None));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let start = rest.len().checked_sub(length).ok_or("its seal is longer than the file")?;
    let (content, seal) = rest.split_at(start);
    let seal: Seal = serde_json::from_slice(seal).map_err(|e| format!("its seal cannot be read: {e}"))?;
    if seal.sha256 != checksum(content) {
        return Err("its content does not match its checksum".to_string());
    }
    Ok((content, Some(seal)))
}

fn checksum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Finishes a compiled library: writes it to `finished` with its checksum and schemas appended. `source` is the folder
/// of its crate; `schemas` is the result of [`describe`].
///
/// # Errors
/// If a file cannot be read or written.
pub fn seal(compiled: &Path, finished: &Path, source: &Path, schemas: Map<String, Value>) -> std::io::Result<()> {
    let mut file = fs::read(compiled)?;
    let seal = Seal { sha256: checksum(&file), source: source.to_path_buf(), schemas };
    let seal = serde_json::to_vec(&seal)?;
    file.extend(&seal);
    file.extend((seal.len() as u64).to_le_bytes());
    file.extend(MAGIC);
    // A running process may have mapped the old file. Rename instead of overwriting it, so that its bytes stay valid.
    let partial = finished.with_extension("partial");
    fs::write(&partial, file)?;
    fs::rename(partial, finished)
}

/// Opens a compiled library, which runs its code. Returns the schema of each of its plugins.
///
/// # Errors
/// If the library cannot be opened or registers no plugin.
pub fn describe(compiled: &Path) -> Result<Map<String, Value>, Problem> {
    let known: Vec<*const Entry> = plugin::entries().into_iter().map(std::ptr::from_ref).collect();
    let fix = "see the messages of the linker and the loader";
    library_file::open_path(compiled).map_err(|e| refusal(compiled, cannot_open(&e), fix))?;
    let new = plugin::entries().into_iter().filter(|entry| !known.contains(&std::ptr::from_ref(*entry)));
    let schemas: Map<String, Value> =
        new.map(|entry| (key(entry.kind, entry.name), Value::from((entry.schema)()))).collect();
    if schemas.is_empty() {
        return Err(refusal(compiled, "the library registers no plugin", "add a `framework::register!` line"));
    }
    Ok(schemas)
}

fn cannot_open(error: &str) -> String {
    format!("the library cannot be opened: {error}")
}

/// Resolves paths, sorts them, and removes duplicates and libraries that are already open.
pub fn distinct(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        paths.iter().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).collect();
    paths.sort();
    paths.dedup();
    paths.retain(|path| !OPENED.lock().expect("the lock is not poisoned").iter().any(|(opened, _)| opened == path));
    paths
}

/// Reads the libraries at `paths`. Returns those that can be read, and the problems with the others.
pub(crate) fn read_all(paths: &[PathBuf]) -> (Vec<Library>, Problems) {
    let (mut libraries, mut refused) = (Vec::new(), Problems::new());
    for path in distinct(paths) {
        match Library::read(&path) {
            Ok(library) => libraries.push(library),
            Err(problem) => refused.push(problem),
        }
    }
    (libraries, refused)
}

/// Checks libraries that were read, then opens them. Opens none if one is refused or `refused` is not empty.
pub(crate) fn open_all(libraries: Vec<Library>, mut refused: Problems, parsed: bool) -> Result<(), Problems> {
    let mut fitting: Vec<Library> = Vec::new();
    for library in libraries {
        match library.check().err().or_else(|| taken(&library, &fitting)) {
            Some(problem) => refused.push(problem),
            None => fitting.push(library),
        }
    }
    if let (true, Some(library)) = (parsed, fitting.first()) {
        let what = "a library cannot be loaded after the first document was parsed";
        refused.push(refusal(&library.path, what, "load all libraries before the first document"));
    }
    if !refused.is_empty() {
        return Err(refused);
    }
    fitting.into_iter().try_for_each(|library| library.open().map_err(|problem| vec![problem]))
}

/// Returns the problem with the first plugin name of `library` that is already taken. The problem names the holder.
fn taken(library: &Library, others: &[Library]) -> Option<Problem> {
    let linked = plugin::entries();
    library.plugins.iter().enumerate().find_map(|(i, card)| {
        let entry = linked.iter().find(|entry| is(entry, card));
        let same = |other: &&Card| (other.kind, &other.name) == (card.kind, &card.name);
        let holder = match entry {
            Some(entry) => match origin(card.kind, &card.name) {
                Some(path) => Some(path.display().to_string()),
                None => Some(format!("the linked crate \"{}\"", entry.origin)),
            },
            None if library.plugins[..i].iter().any(|other| same(&other)) => Some("the same library".to_string()),
            None => {
                let other = others.iter().find(|other| other.plugins.iter().any(|other| same(&other)));
                other.map(|other| other.path.display().to_string())
            }
        }?;
        let what = format!("the {} name \"{}\" is taken by {holder}", card.kind.name(), card.name);
        Some(refusal(&library.path, what, "rename one of them in its `register!` line, or load only one"))
    })
}

/// Returns the paths of the plugin libraries that a document lists.
pub fn listed(document: &Value) -> impl Iterator<Item = &str> {
    document["plugins"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Returns a problem for each listed library that is not open. The document of a checkpoint must not open libraries
/// itself.
pub fn missing(document: &Value) -> Problems {
    let is_open = |name: &str| Path::new(name).file_name().is_some_and(is_open);
    let missing = listed(document).enumerate().filter(|(_, name)| !is_open(name));
    missing
        .map(|(i, name)| {
            Problem::new(format!("/plugins/{i}"), format!("the plugin library \"{name}\" is not loaded"))
                .accepts("libraries named on the command line, because a checkpoint alone must not run their code")
                .fix("add --plugin-dir FOLDER")
        })
        .collect()
}

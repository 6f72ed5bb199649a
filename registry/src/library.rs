//! Plugin libraries: what their file says, whether it fits this framework, and opening it.
//!
//! Opening a shared library runs its code. So everything is read from the file first, and nothing is opened unless all
//! of it fits. A library is never closed again.

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

/// The shared framework that every plugin library links.
pub const FRAMEWORK: &str = "libframework_dylib.so";

/// Ends the file of a library that was built to the end; before it, the length of the [`Seal`].
const MAGIC: &[u8; 8] = b"UNGUIDED";

/// Why a library was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its file.
    pub path: PathBuf,
    /// One sentence that says what is wrong.
    pub what: String,
    /// What this framework and the library were built from, where that is what differs.
    pub differs: Vec<String>,
    /// What to do.
    pub fix: String,
}

impl Refused {
    fn new(path: &Path, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), what: what.into(), differs: Vec::new(), fix: fix.into() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n  at       {}", self.what, self.path.display())?;
        for line in &self.differs {
            write!(f, "\n  differs  {line}")?;
        }
        write!(f, "\n  fix      {}", self.fix)
    }
}

/// One plugin of a library.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// The slot it fills.
    pub kind: Kind,
    /// Its name in documents.
    pub name: String,
    /// The crate it comes from, and its version.
    pub origin: String,
    /// Its sources.
    pub papers: Vec<String>,
}

/// What `plugin build` writes behind a library.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seal {
    /// Of everything before it.
    sha256: String,
    /// Where the library's source lies.
    source: PathBuf,
    /// The schema of each plugin, by kind and name.
    schemas: Map<String, Value>,
}

/// What the file of a plugin library says. None of its code has run.
#[derive(Clone, Debug)]
pub struct Library {
    /// The file.
    pub path: PathBuf,
    /// What it was built from.
    pub build_id: String,
    /// Its plugins.
    pub plugins: Vec<Card>,
    /// Whether it links the shared framework.
    shared: bool,
    seal: Seal,
}

/// Libraries that were opened, with their plugins.
static OPENED: Mutex<Vec<(PathBuf, Vec<Card>)>> = Mutex::new(Vec::new());

/// The library that a plugin was loaded from; `None` if it is linked into the program.
pub fn origin(kind: Kind, name: &str) -> Option<PathBuf> {
    let opened = OPENED.lock().expect("no holder panics");
    let holds = |cards: &[Card]| cards.iter().any(|card| card.kind == kind && card.name == name);
    opened.iter().find(|(_, cards)| holds(cards)).map(|(path, _)| path.clone())
}

/// The library of that file name, if it is open.
pub fn is_open(file_name: &std::ffi::OsStr) -> bool {
    let opened = OPENED.lock().expect("no holder panics");
    opened.iter().any(|(path, _)| path.file_name() == Some(file_name))
}

impl Library {
    /// Reads the file of a library.
    ///
    /// # Errors
    /// If it cannot be read, is no plugin library of this machine, or is damaged.
    pub fn read(path: &Path) -> Result<Self, Refused> {
        let refuse = |what: &str, fix: &str| Refused::new(path, what, fix);
        let file = fs::read(path).map_err(|e| {
            refuse(&format!("the plugin library cannot be read: {e}"), "name a file that `unguided plugin build` wrote")
        })?;
        let no_library = || refuse("the file is no shared library", "name a file that `unguided plugin build` wrote");
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
                &format!("the library is damaged or was cut short: {why}"),
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
            return Err(refuse("the library is no Unguided plugin", "see `unguided plugin new --help`"));
        };
        let Some(seal) = seal else {
            return Err(refuse(
                "the plugin library was not finished, or was cut short: it does not end with the seal of `plugin build`",
                "build it: unguided plugin build FOLDER",
            ));
        };
        let build_id = ids.split('\0').next().unwrap_or_default().to_string();
        let plugins = cards.split_terminator('\0').filter_map(card).collect();
        let shared = needed(content).is_some_and(|names| names.iter().any(|name| name == FRAMEWORK));
        Ok(Self { path: path.to_path_buf(), build_id, plugins, shared, seal })
    }

    /// The JSON Schema of one of its plugins.
    pub fn schema(&self, card: &Card) -> Option<&Value> {
        self.seal.schemas.get(&key(card.kind, &card.name))
    }

    /// Whether the library fits this framework.
    ///
    /// # Errors
    /// What differs, and how to build it again.
    pub fn check(&self) -> Result<(), Refused> {
        let fix = format!("unguided plugin build {}", self.seal.source.display());
        let ours = BUILD_ID.trim_end_matches('\0');
        if self.build_id != ours {
            let pairs = ours.split("; ").zip(self.build_id.split("; "));
            let differs = pairs.filter(|(ours, theirs)| ours != theirs);
            let mut refused =
                Refused::new(&self.path, "the library was built for another build of this framework", fix);
            refused.differs = differs.map(|(ours, theirs)| format!("here {ours}, library {theirs}")).collect();
            return Err(refused);
        }
        if !self.shared {
            let what = "the library holds a framework of its own, and would register nothing here";
            return Err(Refused::new(&self.path, what, fix));
        }
        Ok(())
    }

    /// Opens the library, which runs its code: its plugins register themselves.
    ///
    /// # Errors
    /// If it cannot be opened, or does not register what its file says.
    pub fn open(self) -> Result<(), Refused> {
        let Self { path, plugins, seal, .. } = self;
        let fix = format!("unguided plugin build {}", seal.source.display());
        open(&path, &fix)?;
        let registered = plugin::entries();
        if let Some(card) = plugins.iter().find(|card| !registered.iter().any(|entry| is(entry, card))) {
            let what = format!(
                "the library did not register its {} \"{}\": it holds a framework of its own",
                card.kind.name(),
                card.name
            );
            return Err(Refused::new(&path, what, fix));
        }
        OPENED.lock().expect("no holder panics").push((path, plugins));
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

/// The names of the libraries that a library asks the loader for.
fn needed(content: &[u8]) -> Option<Vec<String>> {
    let header = FileHeader64::<Endianness>::parse(content).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, content).ok()?;
    let (entries, strings) = sections.dynamic(endian, content).ok()??;
    let strings = sections.strings(endian, content, strings).ok()?;
    let names = entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED);
    names.map(|entry| Some(String::from_utf8_lossy(entry.string(endian, strings).ok()?).into_owned())).collect()
}

/// The library without its seal, and the seal; `None` if it ends without one.
fn unseal(file: &[u8]) -> Result<(&[u8], Option<Seal>), String> {
    let Some((rest, length)) = file.strip_suffix(MAGIC).and_then(|rest| rest.split_last_chunk::<8>()) else {
        return Ok((file, None));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let start = rest.len().checked_sub(length).ok_or("its seal is longer than the file")?;
    let (content, seal) = rest.split_at(start);
    let seal: Seal = serde_json::from_slice(seal).map_err(|e| format!("its seal cannot be read: {e}"))?;
    if seal.sha256 != checksum(content) {
        return Err("its content is not that of its checksum".to_string());
    }
    Ok((content, Some(seal)))
}

fn checksum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Finishes a library that was just compiled: writes schemas and checksum behind it. `source` is the folder of its
/// crate, `schemas` what [`describe`] gave.
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
    // A running process may have the old file open: it keeps it, since the new one takes its name, not its place.
    let partial = finished.with_extension("partial");
    fs::write(&partial, file)?;
    fs::rename(partial, finished)
}

/// Opens a library that was just compiled and gives the schema of each of its plugins. Runs its code.
///
/// # Errors
/// If it cannot be opened or registers nothing.
pub fn describe(compiled: &Path) -> Result<Map<String, Value>, Refused> {
    let known: Vec<*const Entry> = plugin::entries().into_iter().map(std::ptr::from_ref).collect();
    open(compiled, "see what the linker and the loader say")?;
    let new = plugin::entries().into_iter().filter(|entry| !known.contains(&std::ptr::from_ref(*entry)));
    let schemas: Map<String, Value> =
        new.map(|entry| (key(entry.kind, entry.name), Value::from((entry.schema)()))).collect();
    if schemas.is_empty() {
        return Err(Refused::new(compiled, "the library registers no plugin", "add a `framework::register!` line"));
    }
    Ok(schemas)
}

fn open(path: &Path, fix: &str) -> Result<(), Refused> {
    #[cfg(unix)]
    let opened = {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        // SAFETY: the user asked for this library, it was built for this very framework, and it is never closed.
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let opened = unsafe { libloading::Library::new(path) };
    match opened {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(_) if !path.exists() => {
            Err(Refused::new(path, "the library vanished after it was checked, before it was opened", fix))
        }
        Err(error) => Err(Refused::new(path, format!("the library cannot be opened: {error}"), fix)),
    }
}

/// Reads and checks libraries, and then opens them, unless they are open already.
pub(crate) fn load(paths: &[PathBuf], parsed: bool) -> Result<(), Vec<Refused>> {
    let mut paths: Vec<PathBuf> =
        paths.iter().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).collect();
    paths.sort();
    paths.dedup();
    paths.retain(|path| !OPENED.lock().expect("no holder panics").iter().any(|(opened, _)| opened == path));
    let (mut libraries, mut refused): (Vec<Library>, Vec<Refused>) = (Vec::new(), Vec::new());
    for path in &paths {
        match Library::read(path).and_then(|library| library.check().map(|()| library)) {
            Ok(library) => match taken(&library, &libraries) {
                Some(problem) => refused.push(problem),
                None => libraries.push(library),
            },
            Err(problem) => refused.push(problem),
        }
    }
    if let (true, Some(library)) = (parsed, libraries.first()) {
        let what = "a library cannot be opened after the first document was read";
        refused.push(Refused::new(&library.path, what, "name all libraries at the start"));
    }
    if !refused.is_empty() {
        return Err(refused);
    }
    libraries.into_iter().try_for_each(|library| library.open().map_err(|problem| vec![problem]))
}

/// The first name of `library` that is taken, and by whom.
fn taken(library: &Library, others: &[Library]) -> Option<Refused> {
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
        Some(Refused::new(&library.path, what, "rename one of them in its `register!` line, or load only one"))
    })
}

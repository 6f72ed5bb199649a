//! Consent to the plugin libraries that a document lists, and what is opened after it was given.

use framework::plugin::Kind;
use registry::library::{self, Library};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;
use unguided as _;

/// Returns a command that runs in `folder`, with `folder/home` as the home and the configuration folder of the user.
fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.current_dir(folder).env_remove("UNGUIDED_PLUGINS").env("CARGO_NET_OFFLINE", "true");
    command.env("XDG_CONFIG_HOME", folder.join("home")).env("RAN", folder.join("ran")).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Adds code that runs when the library is opened. It writes the file that the variable `RAN` names.
const OPENED: &str = r#"
extern "C" fn opened() {
    if let Ok(path) = std::env::var("RAN") {
        std::fs::write(path, "").unwrap();
    }
}
#[used]
#[unsafe(link_section = ".init_array")]
static OPENED: extern "C" fn() = opened;
"#;

/// Returns the finished library and the document of a built objective `trusted_loss`.
fn built() -> (PathBuf, PathBuf) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            // The crate is compiled with the user's own home, where the compiler is installed.
            let output = command(folder.path()).args(arguments).env_remove("RAN").output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        };
        run(&["plugin", "new", "trusted_loss", "--kind", "objective"]);
        let source = folder.path().join("trusted_loss/src/lib.rs");
        fs::write(&source, fs::read_to_string(&source).unwrap() + OPENED).unwrap();
        run(&["plugin", "build", "trusted_loss"]);
        folder
    });
    let plugin = folder.path().join("trusted_loss");
    (plugin.join("target/trusted_loss.so"), plugin.join("pipeline.json"))
}

/// Returns a folder as a user downloads it: `pipeline.json`, and the library at `target/trusted_loss.so`.
fn downloaded() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (library, document) = built();
    fs::create_dir(folder.path().join("target")).unwrap();
    fs::copy(library, folder.path().join("target/trusted_loss.so")).unwrap();
    fs::copy(document, folder.path().join("pipeline.json")).unwrap();
    folder
}

/// Runs a command, and returns its exit code, whether code of the library ran, and what it printed.
fn outcome(folder: &Path, command: &mut Command) -> (Option<i32>, bool, String) {
    let output = command.output().unwrap();
    let ran = fs::remove_file(folder.join("ran")).is_ok();
    (output.status.code(), ran, text(&output))
}

fn library_of(folder: &Path) -> Library {
    Library::read(&folder.join("target/trusted_loss.so")).unwrap()
}

#[test]
fn a_document_alone_runs_no_code() {
    let home = downloaded();
    let folder = home.path();
    let sha256 = library_of(folder).sha256;
    let path = folder.canonicalize().unwrap().join("target/trusted_loss.so").display().to_string();
    let official = ["--pipeline", "pipeline.json"];
    let commands: [&[&str]; 5] = [
        &["check", "pipeline.json"],
        &["train", "pipeline.json", "--run", "run"],
        &["encode", "pipeline.json", "--output", "latents"],
        &["forward", official[0], official[1], "--checkpoint", "a", "--input", "b", "--output", "c"],
        &["convert", official[0], official[1], "a", "b"],
    ];
    for arguments in commands {
        let (code, ran, said) = outcome(folder, command(folder).args(arguments));
        assert_eq!((code, ran), (Some(2), false), "{arguments:?}\n{said}");
        for part in [path.as_str(), sha256.as_str(), "--plugin-dir", "--trust-plugins", "/plugins/0"] {
            assert!(said.contains(part), "{arguments:?} does not say {part}:\n{said}");
        }
        assert!(!folder.join("run").exists() && !folder.join("latents").exists());
    }
    // A document that is refused anyway runs no code either.
    fs::write(folder.join("broken.json"), r#"{"plugins": ["target/trusted_loss.so"], "version": 7}"#).unwrap();
    let (code, ran, said) = outcome(folder, command(folder).args(["check", "broken.json"]));
    assert_eq!((code, ran), (Some(2), false), "{said}");
}

#[test]
fn each_consent_opens_the_library() {
    let home = downloaded();
    let folder = home.path();
    let check = || {
        let mut check = command(folder);
        check.args(["check", "pipeline.json"]);
        check
    };
    for arguments in [
        &["--trust-plugins"][..],
        &["--plugin-dir", "target"],
        &["--plugin-dir", "target/trusted_loss.so"],
        &["--plugin-dir", "target", "--trust-plugins"],
    ] {
        let (code, ran, said) = outcome(folder, check().args(arguments));
        assert_eq!((code, ran), (Some(0), true), "{arguments:?}\n{said}");
    }
    let (code, ran, said) = outcome(folder, check().env("UNGUIDED_PLUGINS", "target"));
    assert_eq!((code, ran), (Some(0), true), "{said}");
}

#[test]
fn a_library_that_the_user_names_replaces_a_listed_one_of_the_same_name() {
    let home = downloaded();
    let folder = home.path();
    fs::create_dir(folder.join("mine")).unwrap();
    fs::rename(folder.join("target/trusted_loss.so"), folder.join("mine/trusted_loss.so")).unwrap();
    fs::write(folder.join("target/trusted_loss.so"), "not a library").unwrap();
    let (code, ran, said) = outcome(folder, command(folder).args(["check", "pipeline.json", "--plugin-dir", "mine"]));
    assert_eq!((code, ran), (Some(0), true), "{said}");
}

#[test]
fn a_remembered_consent_holds_for_the_same_bytes_only() {
    let home = downloaded();
    let folder = home.path();
    let store = folder.join("home/unguided/trusted-plugins");
    fs::create_dir_all(store.parent().unwrap()).unwrap();
    let check = || outcome(folder, command(folder).args(["check", "pipeline.json"]));
    fs::write(&store, format!("{} the path is for the reader\n", library_of(folder).sha256)).unwrap();
    let (code, ran, said) = check();
    assert_eq!((code, ran), (Some(0), true), "{said}");
    // Another consent, and no readable file of consents.
    fs::write(&store, format!("{} the path is for the reader\n", "0".repeat(64))).unwrap();
    assert_eq!(check().0, Some(2));
    fs::remove_file(&store).unwrap();
    fs::create_dir(&store).unwrap();
    let (code, ran, said) = check();
    assert_eq!((code, ran), (Some(2), false), "{said}");
}

#[test]
fn the_consent_is_never_asked_for_where_standard_input_is_no_terminal() {
    let home = downloaded();
    let folder = home.path();
    let mut check = command(folder);
    check.args(["check", "pipeline.json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = check.spawn().unwrap();
    // The command may end before it reads the answer.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"y\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(!text(&output).contains("[y/N]") && !folder.join("ran").exists(), "{}", text(&output));
    assert!(!folder.join("home/unguided").exists(), "a consent was remembered");
}

/// Opens a pseudo terminal: the end of its user, and the end of the command.
#[cfg(unix)]
fn terminal() -> (fs::File, fs::File) {
    use std::os::fd::FromRawFd;
    let (mut user, mut command) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both numbers outlive the call, and the other arguments may be null.
    let opened = unsafe { libc::openpty(&mut user, &mut command, none, std::ptr::null_mut(), std::ptr::null_mut()) };
    assert_eq!(opened, 0);
    for descriptor in [user, command] {
        // Children of other tests must not keep the terminal open.
        // SAFETY: the descriptor is open, and the command takes an integer.
        assert_eq!(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
    }
    // SAFETY: the descriptors are new, and nothing else owns them.
    unsafe { (fs::File::from_raw_fd(user), fs::File::from_raw_fd(command)) }
}

#[cfg(unix)]
#[test]
fn a_terminal_is_asked_and_a_yes_is_remembered() {
    use std::io::{Read, Write};
    let home = downloaded();
    let folder = home.path();
    let sha256 = library_of(folder).sha256;
    let store = folder.join("home/unguided/trusted-plugins");
    let answer = |answer: &[u8]| {
        let (mut user, theirs) = terminal();
        let mut check = command(folder);
        check.args(["check", "pipeline.json"]).stdin(theirs.try_clone().unwrap()).stderr(theirs).stdout(Stdio::null());
        let mut child = check.spawn().unwrap();
        // The command's ends must be its own, so that the terminal closes with it.
        drop(check);
        let mut said = Vec::new();
        let mut byte = [0];
        while !said.ends_with(b"[y/N] ") && user.read_exact(&mut byte).is_ok() {
            said.push(byte[0]);
        }
        user.write_all(answer).unwrap();
        // Read on, so that the command does not wait for room. Linux ends a closed terminal with an error.
        let mut rest = Vec::new();
        let _ = user.read_to_end(&mut rest);
        let code = child.wait().unwrap().code();
        let ran = fs::remove_file(folder.join("ran")).is_ok();
        (code, ran, String::from_utf8_lossy(&said).into_owned())
    };
    let (code, ran, said) = answer(b"n\n");
    assert_eq!((code, ran, store.exists()), (Some(2), false, false), "{said}");
    for part in
        ["pipeline.json lists a plugin library", &sha256, "target/trusted_loss.so", "objective \"trusted_loss\""]
    {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    let (code, ran, said) = answer(b"y\n");
    assert_eq!((code, ran), (Some(0), true), "{said}");
    assert!(fs::read_to_string(&store).unwrap().starts_with(&sha256));
    // Remembered: no terminal is needed any more.
    let (code, ran, said) = outcome(folder, command(folder).args(["check", "pipeline.json"]));
    assert_eq!((code, ran), (Some(0), true), "{said}");
}

#[test]
fn the_bytes_that_were_checked_are_opened_whatever_happens_to_the_file() {
    let home = downloaded();
    let path = home.path().join("target/trusted_loss.so");
    let library = library_of(home.path());
    library.check().unwrap();
    fs::write(&path, "not a library").unwrap();
    library.open().unwrap();
    assert_eq!(library::origin(Kind::Objective, "trusted_loss"), Some(path));
}

#[cfg(unix)]
#[test]
fn devices_pipes_and_folders_are_refused_without_waiting() {
    use std::os::unix::ffi::OsStrExt;
    let home = tempfile::tempdir().unwrap();
    let folder = home.path();
    let name = std::ffi::CString::new(folder.join("pipe.so").as_os_str().as_bytes()).unwrap();
    // SAFETY: the name is a C string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    for name in ["/dev/zero", "pipe.so"] {
        let (code, _, said) = outcome(folder, command(folder).args(["list", "--plugin-dir", name]));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("the plugin library cannot be read: it is not a regular file"), "{said}");
    }
    fs::write(folder.join("pipeline.json"), r#"{"plugins": ["/dev/zero", "pipe.so", "."]}"#).unwrap();
    let (code, _, said) = outcome(folder, command(folder).args(["check", "pipeline.json"]));
    assert_eq!((code, said.matches("it is not a regular file").count()), (Some(2), 3), "{said}");
}

#[test]
fn doctor_shows_the_hash_of_a_library_and_runs_no_code() {
    let home = downloaded();
    let folder = home.path();
    let (code, ran, said) = outcome(folder, command(folder).args(["doctor", "--plugin-dir", "target"]));
    assert_eq!((code, ran), (Some(0), false), "{said}");
    for part in [library_of(folder).sha256.as_str(), "fits this build", "objective \"trusted_loss\""] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}

#[test]
fn consent_without_a_document_has_no_effect_and_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, said) = outcome(folder.path(), command(folder.path()).args(["list", "--trust-plugins"]));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--plugin-dir"), "{said}");
}

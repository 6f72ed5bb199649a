//! External plugins, as a user meets them. They are created, built and used in their own folder. A library that does
//! not fit is refused before any of its code runs. A plugin that fails is named.

use registry::Registry;
use registry::library::{self, Library};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tempfile::TempDir;
use unguided as _;

/// Runs the command in `folder`, without plugins from the environment.
fn unguided(folder: &Path, arguments: &[&str]) -> Output {
    command(folder).args(arguments).output().expect("the command starts")
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.current_dir(folder).env_remove("UNGUIDED_PLUGINS").env("CARGO_NET_OFFLINE", "true");
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// Returns the message of a command that refuses its input. The folder is written as DIR.
#[track_caller]
fn refused(folder: &Path, output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", text(output));
    let folder = folder.canonicalize().unwrap().display().to_string();
    text(output).trim_end().replace(&folder, "DIR")
}

/// Adds code that runs when the library is opened. It writes the file that the variable `RAN` names.
fn tell_when_opened(source: &Path) {
    let mut code = fs::read_to_string(source).unwrap();
    code += r#"
extern "C" fn opened() {
    if let Ok(path) = std::env::var("RAN") {
        std::fs::write(path, "").unwrap();
    }
}
#[used]
#[unsafe(link_section = ".init_array")]
static OPENED: extern "C" fn() = opened;
"#;
    fs::write(source, code).unwrap();
}

/// Returns a folder with a built objective `my_loss`. Its library writes the file `RAN` when it is opened.
fn my_loss() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        done(unguided(folder.path(), &["plugin", "new", "my_loss", "--kind", "objective"]));
        tell_when_opened(&folder.path().join("my_loss/src/lib.rs"));
        done(unguided(folder.path(), &["plugin", "build", "my_loss"]));
        folder
    });
    folder.path()
}

fn built() -> PathBuf {
    my_loss().join("my_loss/target/my_loss.so")
}

/// Returns the path of the library as the compiler wrote it, without a seal.
fn compiled() -> PathBuf {
    my_loss().join("my_loss/target/plugin/target/release/libmy_loss.so")
}

/// Trains a pipeline for `steps` steps.
fn train(folder: &Path, pipeline: &str, run: &str, steps: usize) -> Output {
    let steps = format!("/train/steps={steps}");
    let mut train = command(folder);
    train.args(["train", pipeline, "--run", run, "--set", &steps, "--set", "/train/save_every=10"]);
    train
        .args(["--set", "/train/log_every=5", "--set", "/train/keep_last=9", "--set", "/metrics=[]"])
        .args(["--set", "/train/warmup_steps=0"]);
    train.output().unwrap()
}

/// Returns all tensors of a checkpoint except the optimizer's record, sorted by name.
fn weights(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(checkpoint).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec()));
    let mut all: Vec<_> = tensors.filter(|(name, _)| name != "optimizer").collect();
    all.sort();
    assert!(all.len() > 4);
    all
}

#[test]
fn a_new_objective_is_built_inspected_listed_trained_proven_and_resumed() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path();
    done(unguided(folder, &["plugin", "new", "new_loss", "--kind", "objective"]));
    done(unguided(folder, &["plugin", "test", "new_loss"]));
    let said = done(unguided(folder, &["plugin", "build", "new_loss"]));
    let library = folder.join("new_loss/target/new_loss.so");
    assert!(said.contains("objective \"new_loss\""), "{said}");
    assert!(fs::metadata(&library).unwrap().len() < 1_000_000);

    let said = done(unguided(folder, &["plugin", "inspect", "new_loss/target/new_loss.so"]));
    for part in [
        "rustc: rustc ",
        "target: ",
        "framework: ",
        "fits         this installation",
        "objective    new_loss",
        "new_loss 0.1.0",
        "drop_probability",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    // Editors run `cargo metadata` to find a crate's dependencies.
    let target = said.lines().find_map(|line| line.split("target: ").nth(1)).unwrap().trim();
    let mut metadata = Command::new("cargo");
    metadata.args(["metadata", "--offline", "--format-version", "1", "--filter-platform", target]);
    let asked = metadata.current_dir(folder.join("new_loss")).output().unwrap();
    assert!(asked.status.success(), "{}", text(&asked));
    let seen: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    let nodes = seen.pointer("/resolve/nodes").unwrap().as_array().unwrap();
    let own = nodes.iter().find(|node| node["id"].as_str().unwrap().contains("new_loss")).unwrap();
    assert_eq!(own["deps"][0]["name"], "framework", "{own}");

    let origin = format!("new_loss           {}", library.canonicalize().unwrap().display());
    for named in [["--plugin-dir", "new_loss/target"], ["--plugin-dir", "new_loss/target/new_loss.so"]] {
        let said = done(unguided(folder, &[&named[..], &["list"]].concat()));
        assert!(said.contains(&origin), "{said}");
    }
    let said = done(command(folder).arg("schema").env("UNGUIDED_PLUGINS", "new_loss/target").output().unwrap());
    let schema: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(schema.pointer("/$defs/objective.new_loss/properties/scale/maximum"), Some(&serde_json::json!(100.0)));
    assert!(!done(unguided(folder, &["list"])).contains("new_loss"), "a library was opened without being named");

    done(unguided(folder, &["check", "new_loss/pipeline.json"]));
    done(train(folder, "new_loss/pipeline.json", "whole", 20));
    let said = done(unguided(folder, &["verify", "new_loss", "--worlds", "20", "--plugin-dir", "new_loss/target"]));
    assert!(said.contains("4 statements proven") && said.contains("the data at scale `scale`"), "{said}");

    // Repeat the last ten steps from the checkpoint of step 10.
    let last = folder.join("whole/checkpoints/step-000000020.safetensors");
    let expected = weights(&last);
    fs::remove_file(&last).unwrap();
    let said = done(train(folder, "new_loss/pipeline.json", "whole", 20));
    assert!(said.contains("(step 10)") && weights(&last) == expected, "{said}");
}

#[test]
fn every_kind_begins_as_a_plugin_that_builds_passes_its_test_and_trains() {
    let home = tempfile::tempdir().unwrap();
    for kind in ["backbone", "tokenizer", "sampler", "guidance", "dataset", "metric"] {
        let name = format!("my_{kind}");
        done(unguided(home.path(), &["plugin", "new", &name, "--kind", kind]));
        let said = done(unguided(home.path(), &["plugin", "test", &name]));
        assert!(said.contains("1 passed; 0 failed"), "{said}");
        done(unguided(home.path(), &["plugin", "build", &name]));
        let pipeline = format!("{name}/pipeline.json");
        let mut train = vec!["train", &pipeline, "--run", &name, "--set", "/train/steps=20"];
        train.extend(["--set", "/train/sample_columns=1"]);
        if kind != "metric" {
            train.extend(["--set", "/metrics=[]"]);
        }
        done(unguided(home.path(), &train));
    }
}

#[test]
fn a_backbone_from_a_library_trains_resumes_and_samples() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path();
    done(unguided(folder, &["plugin", "new", "my_net", "--kind", "backbone"]));
    done(unguided(folder, &["plugin", "build", "my_net"]));
    done(train(folder, "my_net/pipeline.json", "run", 20));
    let last = folder.join("run/checkpoints/step-000000020.safetensors");
    let expected = weights(&last);
    fs::remove_file(&last).unwrap();
    done(train(folder, "my_net/pipeline.json", "run", 20));
    assert!(weights(&last) == expected, "the resumed run ends with different bits");

    let sample = ["sample", "run", "--count", "1", "--output", "one.png"];
    done(unguided(folder, &[&sample[..], &["--plugin-dir", "my_net/target"]].concat()));
    assert!(folder.join("one.png").exists());
    let said = refused(folder, &unguided(folder, &sample));
    insta::assert_snapshot!(said, @r#"
    error: the plugin library "target/my_net.so" is not loaded
      at       run (its document)  /plugins/0
      accepts  libraries named on the command line, because a checkpoint alone must not run their code
      fix      add --plugin-dir FOLDER
    "#);
}

/// Runs `list` with a crafted library and returns its message. Checks that none of the library's code ran.
fn list_with(name: &str, content: &[u8]) -> String {
    let home = tempfile::tempdir().unwrap();
    let (library, ran) = (home.path().join(name), home.path().join("ran"));
    fs::write(&library, content).unwrap();
    let output = command(home.path()).args(["list", "--plugin-dir", name]).env("RAN", &ran).output().unwrap();
    assert!(!ran.exists(), "code of the library ran");
    refused(home.path(), &output)
}

/// Returns the library with some bytes of its content replaced, and with a valid seal.
fn patched(from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let home = tempfile::tempdir().unwrap();
    let mut content = fs::read(compiled()).unwrap();
    let places: Vec<usize> =
        content.windows(from.len()).enumerate().filter(|(_, window)| *window == from).map(|(i, _)| i).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| content[*at..at + to.len()].copy_from_slice(to));
    let (before, after) = (home.path().join("before.so"), home.path().join("after.so"));
    fs::write(&before, content).unwrap();
    library::seal(&before, &after, Path::new("FOLDER"), serde_json::Map::new()).unwrap();
    fs::read(after).unwrap()
}

#[test]
fn a_library_that_fits_runs_its_code_when_it_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let ran = home.path().join("ran");
    let list = |arguments: &[&str]| command(my_loss()).arg("list").args(arguments).env("RAN", &ran).output().unwrap();
    done(list(&[]));
    assert!(!ran.exists());
    done(list(&["--plugin-dir", "my_loss/target"]));
    assert!(ran.exists());
}

#[test]
fn a_library_of_another_build_is_refused_with_what_differs() {
    let said = list_with("old.so", &patched(b"framework: 0.1.0;", b"framework: 0.0.9;"));
    insta::assert_snapshot!(said, @r#"
    error: the library was built for another build of this framework
      at       DIR/old.so
      differs  framework: 0.1.0 here, framework: 0.0.9 in the library
      fix      unguided plugin build FOLDER
    "#);
    let said = list_with("old.so", &patched(b"rustc: rustc 1.", b"rustc: rustc 0."));
    assert!(said.contains("differs  rustc: rustc 1.") && said.contains(" here, rustc: rustc 0."), "{said}");
}

#[test]
fn a_library_of_another_machine_is_refused() {
    let mut content = fs::read(compiled()).unwrap();
    content[18..20].copy_from_slice(&183_u16.to_le_bytes());
    let said = list_with("arm.so", &resealed(&content));
    insta::assert_snapshot!(said, @r#"
    error: the library is built for aarch64; this machine is x86_64
      at       DIR/arm.so
      fix      build it on this machine: unguided plugin build FOLDER
    "#);
    let mut content = fs::read(compiled()).unwrap();
    content[4] = 1;
    insta::assert_snapshot!(list_with("old.so", &content), @r#"
    error: the library is built for a 32-bit machine
      at       DIR/old.so
      fix      build it on this machine: unguided plugin build FOLDER
    "#);
}

fn resealed(content: &[u8]) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    let (before, after) = (home.path().join("before.so"), home.path().join("after.so"));
    fs::write(&before, content).unwrap();
    library::seal(&before, &after, Path::new("FOLDER"), serde_json::Map::new()).unwrap();
    fs::read(after).unwrap()
}

#[test]
fn a_library_that_is_damaged_or_cut_short_is_refused() {
    let mut content = fs::read(built()).unwrap();
    content[4000] ^= 4;
    insta::assert_snapshot!(list_with("flipped.so", &content), @r#"
    error: the library is damaged or truncated: its content does not match its checksum
      at       DIR/flipped.so
      fix      build it again: unguided plugin build FOLDER
    "#);
    let said = list_with("short.so", &content[..content.len() / 2]);
    assert!(said.starts_with("error: the library is damaged or truncated: "), "{said}");
    insta::assert_snapshot!(list_with("unfinished.so", &fs::read(compiled()).unwrap()), @r#"
    error: the plugin library is unfinished or truncated: it does not end with the seal of `plugin build`
      at       DIR/unfinished.so
      fix      build it: unguided plugin build FOLDER
    "#);
}

#[test]
fn files_that_are_not_plugins_are_refused() {
    insta::assert_snapshot!(list_with("text.so", b"not a library"), @r#"
    error: the file is not a shared library
      at       DIR/text.so
      fix      use a file that `unguided plugin build` wrote
    "#);
    let home = tempfile::tempdir().unwrap();
    let source = home.path().join("other.rs");
    fs::write(&source, "#[unsafe(no_mangle)] pub extern \"C\" fn other() {}").unwrap();
    let library = home.path().join("other.so");
    let built = Command::new("rustc").args(["--crate-type", "cdylib"]).arg(&source).arg("-o").arg(&library).status();
    assert!(built.unwrap().success());
    insta::assert_snapshot!(list_with("other.so", &fs::read(library).unwrap()), @r#"
    error: the library is not an Unguided plugin
      at       DIR/other.so
      fix      see `unguided plugin new --help`
    "#);
    let said = refused(home.path(), &unguided(home.path(), &["list", "--plugin-dir", "nowhere"]));
    insta::assert_snapshot!(said, @r#"
    error: the plugin library cannot be read: No such file or directory (os error 2)
      at       nowhere
      fix      use a file that `unguided plugin build` wrote
    "#);
    fs::create_dir(home.path().join("empty")).unwrap();
    let said = refused(home.path(), &unguided(home.path(), &["list", "--plugin-dir", "empty"]));
    insta::assert_snapshot!(said, @r#"
    error: the folder contains no plugin library
      at       empty
      accepts  a folder with .so files, or one such file
    "#);
}

#[test]
fn a_library_with_a_framework_of_its_own_is_refused() {
    let said = list_with("own.so", &patched(b"libframework_dylib.so\0", b"libframework_other.so\0"));
    insta::assert_snapshot!(said, @r#"
    error: the library contains its own copy of the framework, so it cannot register plugins here
      at       DIR/own.so
      fix      unguided plugin build FOLDER
    "#);
}

#[test]
fn a_name_that_is_taken_is_refused_with_its_owner() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path();
    fs::copy(built(), folder.join("first.so")).unwrap();
    fs::copy(built(), folder.join("second.so")).unwrap();
    let said = refused(folder, &unguided(folder, &["list", "--plugin-dir", "."]));
    insta::assert_snapshot!(said, @r#"
    error: the objective name "my_loss" is taken by DIR/first.so
      at       DIR/second.so
      fix      rename one of them in its `register!` line, or load only one
    "#);
    insta::assert_snapshot!(list_with("my_cfg.so", &renamed_to_a_linked_one()), @r#"
    error: the objective name "cfg" is taken by the linked crate "objectives"
      at       DIR/my_cfg.so
      fix      rename one of them in its `register!` line, or load only one
    "#);
}

/// Builds a library whose objective is called `cfg`, and returns its bytes.
fn renamed_to_a_linked_one() -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    done(unguided(home.path(), &["plugin", "new", "cfg", "--kind", "objective"]));
    done(unguided(home.path(), &["plugin", "build", "cfg"]));
    fs::read(home.path().join("cfg/target/cfg.so")).unwrap()
}

#[test]
fn a_library_that_vanishes_between_check_and_opening_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("gone.so");
    fs::copy(built(), &path).unwrap();
    let library = Library::read(&path).unwrap();
    library.check().unwrap();
    fs::remove_file(&path).unwrap();
    let said = library.open().unwrap_err().to_string().replace(&home.path().display().to_string(), "DIR");
    let said = said.replace(&my_loss().display().to_string(), "FOLDER");
    insta::assert_snapshot!(said, @r#"
    the library was removed after it was checked and before it was opened
      at       DIR/gone.so
      fix      unguided plugin build FOLDER/my_loss
    "#);
}

/// Every file that is almost a library is refused with an error. None crashes the host.
#[test]
fn fuzzed_libraries_never_crash_the_host() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("fuzzed.so");
    let (whole, content) = (fs::read(built()).unwrap(), fs::read(compiled()).unwrap());
    let mut state = 7_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for trial in 0..400 {
        let mut file = if trial % 2 == 0 { whole.clone() } else { content.clone() };
        match trial % 4 {
            0 => (0..=random(8)).for_each(|_| {
                let at = random(file.len());
                file[at] ^= 1 << random(8);
            }),
            // Headers and section tables. A reader that trusts them would read out of bounds.
            1 => (0..=random(8)).for_each(|_| {
                let at = if random(2) == 0 { random(4096) } else { file.len() - 1 - random(4096) };
                file[at] ^= 1 << random(8);
            }),
            2 => file.truncate(random(file.len())),
            _ => file = (0..random(10_000)).map(|_| random(256) as u8).collect(),
        }
        // Seal the unsealed files, so that the reader goes on to their content.
        let file = if trial % 2 == 0 { file } else { resealed(&file) };
        fs::write(&path, &file).unwrap();
        let read = Library::read(&path).and_then(|library| library.check().map(|()| library));
        if trial % 2 == 0 {
            assert!(read.is_err() || file == whole, "trial {trial} was accepted");
            assert!(Registry::load(std::slice::from_ref(&path)).is_err());
        }
    }
}

/// Source of an objective that fails as `mode` says, from step 12 on. It also shows that a plugin can have its own
/// dependencies.
const HOSTILE: &str = r#"
use framework::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", rename_all = "snake_case")]
#[schemars(crate = "framework::schemars")]
pub enum Mode {
    Panics,
    OneLoss,
    NotFinite,
    NoGradient,
    Nothing,
}

/// Fails in a chosen way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct Hostile {
    /// Kind of failure.
    pub mode: Mode,
}

framework::register!(objective "hostile" => Hostile);

impl Objective for Hostile {
    fn needs(&self) -> Needs {
        Needs::default()
    }
    fn loss(&self, context: &Context<'_>) -> Tensor<1> {
        let loss = context.loss(context.online(context.condition, None));
        match self.mode {
            _ if context.step < 12 => loss,
            Mode::Panics => panic!("index {} of {}", 3, 2),
            Mode::OneLoss => loss.mean(),
            Mode::NotFinite => loss * libm::log(0.0),
            Mode::NoGradient => loss.detach(),
            Mode::Nothing => loss,
        }
    }
    fn null(&self) -> NullPrediction {
        NullPrediction::TrainedAt(None)
    }
    fn optimum(&self, _: Family) -> Optimum {
        Optimum::Unstated("it fails")
    }
    fn extra_passes(&self) -> usize {
        0
    }
}
"#;

#[test]
fn a_plugin_that_fails_ends_its_run_by_name_and_the_last_checkpoint_is_whole() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path();
    done(unguided(folder, &["plugin", "new", "hostile", "--kind", "objective"]));
    fs::write(folder.join("hostile/src/lib.rs"), HOSTILE).unwrap();
    let manifest = fs::read_to_string(folder.join("hostile/Cargo.toml")).unwrap();
    fs::write(folder.join("hostile/Cargo.toml"), manifest.replace("[dependencies]", "[dependencies]\nlibm = \"0.2\""))
        .unwrap();
    done(unguided(folder, &["plugin", "build", "hostile"]));
    let library = folder.canonicalize().unwrap().join("hostile/target/hostile.so");
    let said_of = |mode: &str| {
        let pipeline = fs::read_to_string(folder.join("hostile/pipeline.json")).unwrap();
        let objective = format!("\"type\": \"hostile\",\n    \"mode\": \"{mode}\"");
        let name = format!("hostile/{mode}.json");
        fs::write(folder.join(&name), pipeline.replace("\"type\": \"hostile\"", &objective)).unwrap();
        let output = train(folder, &name, mode, 20);
        (output.status.code(), text(&output).replace(&library.display().to_string(), "LIBRARY"))
    };
    for (mode, expected) in [
        (
            "panics",
            "error: objective \"hostile\" of LIBRARY panicked: index 3 of 2, at step 13 (seed 0). The last good checkpoint is panics/checkpoints/step-000000010.safetensors.",
        ),
        (
            "one_loss",
            "error: objective \"hostile\" of LIBRARY returned 1 losses for a batch of 64, at step 13 (seed 0). The last good checkpoint is one_loss/checkpoints/step-000000010.safetensors.",
        ),
        (
            "not_finite",
            "error: the loss of objective \"hostile\" of LIBRARY is not finite, at step 13 (seed 0). The last good checkpoint is not_finite/checkpoints/step-000000010.safetensors.",
        ),
        ("no_gradient", "error: objective \"hostile\" of LIBRARY panicked: "),
    ] {
        let (code, said) = said_of(mode);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
        let last =
            framework::checkpoint::Checkpoint::load(&folder.join(mode).join("checkpoints/step-000000010.safetensors"));
        assert_eq!(last.unwrap().step, 10);
    }
    let (code, said) = said_of("nothing");
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn panics_of_datasets_and_tokenizers_are_named() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path();
    let broken = |name: &str, kind: &str, line: &str, with: &str| {
        done(unguided(folder, &["plugin", "new", name, "--kind", kind]));
        let source = folder.join(name).join("src/lib.rs");
        let code = fs::read_to_string(&source).unwrap();
        assert!(code.contains(line));
        fs::write(&source, code.replacen(line, with, 1)).unwrap();
        done(unguided(folder, &["plugin", "build", name]));
        let output = train(folder, &format!("{name}/pipeline.json"), &format!("runs/{name}"), 20);
        let library = folder.canonicalize().unwrap().join(name).join(format!("target/{name}.so"));
        (output.status.code(), text(&output).replace(&library.display().to_string(), "LIBRARY"))
    };
    let class = "let class = index % 2;";
    let (code, said) =
        broken("no_data", "dataset", class, "let class = if true { panic!(\"no {index}\") } else { 0 };");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("data \"no_data\" of LIBRARY panicked: no "), "{said}");
    // One item in fifty panics. It counts as an unreadable item: the run replaces and counts it.
    let (code, said) =
        broken("some_data", "dataset", class, "let class = if index % 50 == 7 { panic!(\"gap\") } else { index % 2 };");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("data \"some_data\" of LIBRARY panicked: gap"), "{said}");
    let latent = "Latent::Values(to_positions(images) * self.gain)";
    let (code, said) = broken("no_latents", "tokenizer", latent, "panic!(\"{:?}\", images.dims())");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("tokenizer \"no_latents\" of LIBRARY panicked: ["), "{said}");
}

#[test]
fn compile_errors_are_the_compilers_own() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path();
    done(unguided(folder, &["plugin", "new", "my_rule", "--kind", "guidance"]));
    let source = folder.join("my_rule/src/lib.rs");
    let code = fs::read_to_string(&source).unwrap();
    fs::write(&source, code.replace("self.schedule.at(progress)", "self.might.at(progress)")).unwrap();
    let output = unguided(folder, &["plugin", "build", "my_rule"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("error[E0609]: no field `might`") && said.contains("my_rule/src/lib.rs:"), "{said}");

    let manifest = folder.join("my_rule/Cargo.toml");
    let given = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, given.replace("[dependencies]", "[dependencies]\nserde = \"1\"")).unwrap();
    let said = refused(folder, &unguided(folder, &["plugin", "build", "my_rule"]));
    insta::assert_snapshot!(said, @r#"
    error: the crate depends on "serde", which the framework already provides
      at       DIR/my_rule/Cargo.toml
      fix      remove the dependency and write `use framework::serde;`
    "#);
    let said = refused(folder, &unguided(folder, &["plugin", "new", "My-Rule", "--kind", "guidance"]));
    insta::assert_snapshot!(said, @r#"
    error: a plugin cannot be called "My-Rule"
      accepts  lower-case letters, digits and underscores, starting with a letter; no reserved word
    "#);
}

/// Both third-party examples, built from their committed sources.
#[test]
fn third_party_examples_build_pass_their_tests_and_train() {
    let home = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, tests) in [("third_party_objective", "2 passed"), ("third_party_guidance", "2 passed")] {
        let (from, to) = (root.join("examples").join(name), home.path().join(name));
        fs::create_dir_all(to.join("src")).unwrap();
        for file in ["Cargo.toml", "src/lib.rs"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
        let said = done(unguided(home.path(), &["plugin", "test", name]));
        assert!(said.contains(tests), "{said}");
        done(unguided(home.path(), &["plugin", "build", name]));
    }
    fs::copy(
        root.join("examples/third_party_objective/pipeline.json"),
        home.path().join("third_party_objective/pipeline.json"),
    )
    .unwrap();
    let libraries = ["--plugin-dir", "third_party_objective/target", "--plugin-dir", "third_party_guidance/target"];
    let said = done(unguided(home.path(), &[&["verify", "gft_zero", "--worlds", "50"][..], &libraries].concat()));
    assert!(said.contains("1 statements proven to 1e-6, 0 refuted"), "{said}");
    done(train(home.path(), "third_party_objective/pipeline.json", "run", 10));
    let pipeline = root.join("examples/pipelines/digits-sit-cfg-tiny.json").display().to_string();
    let rule = ["--set", r#"/guidance={"type": "cfg_zero", "scale": 2.0}"#, "--run", "sit"];
    done(unguided(home.path(), &[&["train", &pipeline][..], &rule, &libraries].concat()));
}

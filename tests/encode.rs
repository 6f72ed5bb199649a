//! `encode` writes latents once, writes the same bytes however often it is stopped, and its output can be trained on.

mod folders;
mod letters;

use framework::data::dataset::DatasetConfig;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path as FilePath;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use unguided::execute;

const TINY: &str = "examples/pipelines/digits-dit-gft-tiny.json";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.args(arguments);
    command
}

fn unguided(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the command starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the data entry that `encode` prints.
#[track_caller]
fn entry(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(output));
    let said = String::from_utf8_lossy(&output.stdout);
    let (_, entry) = said.split_once("\"data\": ").expect("the output contains a data entry");
    serde_json::from_str(entry).unwrap()
}

fn files(folder: &FilePath) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let files = fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap()));
    files.filter(|(name, _)| name.ends_with(".safetensors")).collect()
}

#[test]
fn digits_are_encoded_once_and_trained_from() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let whole = at("whole");
    let encode = ["encode", TINY, "--output", &whole, "--shard", "100", "--dtype", "f32", "--flip"];
    let entry = entry(&unguided(&encode));
    let expected = json!({ "type": "latents", "path": at("whole"), "num_classes": 10, "input_size": 8, "channels": 1 });
    assert_eq!(entry, expected);
    let whole = files(FilePath::new(&whole));
    assert_eq!(whole.len(), 18);
    let file = safetensors::SafeTensors::deserialize(&whole["000017.safetensors"]).unwrap();
    assert_eq!(file.tensor("x").unwrap().shape(), [97, 1, 8, 8]);
    let [x, flipped] = ["x", "x_flip"].map(|name| file.tensor(name).unwrap().data().to_vec());
    // The first row of the first image is the reversed first row of its mirror image.
    assert!(x[..32].chunks(4).eq(flipped[..32].chunks(4).rev()));

    // Kill `encode` at times taken from the clock. It must end with the same bytes.
    let mut random = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos() as u64;
    let killed = encode.map(|word| if word == at("whole") { at("killed") } else { word.to_string() });
    let killed = killed.each_ref().map(String::as_str);
    for _ in 0..3 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut child = command(&killed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 + (random >> 33) % 80));
        let _ = child.kill();
        child.wait().unwrap();
    }
    // Imitate a kill between two files, and a kill while a file was written.
    let _ = fs::remove_file(at("killed/000003.safetensors"));
    // On a busy machine, every kill may have come before the command created its folder.
    fs::create_dir_all(at("killed")).unwrap();
    fs::write(at("killed/000003.safetensors.partial"), "half a file").unwrap();
    assert!(unguided(&killed).status.success());
    assert!(files(FilePath::new(&at("killed"))) == whole, "the resumed folder has different bytes");

    let data = format!("/data={entry}");
    let trained = unguided(&["train", TINY, "--run", &at("run"), "--set", &data, "--set", "/train/steps=2"]);
    assert!(trained.status.success(), "{}", text(&trained));
    let checked = unguided(&["check", TINY, "--set", &data]);
    assert!(checked.status.success(), "{}", text(&checked));
}

#[test]
fn a_folder_with_other_content_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let latents = at("latents");
    let encode = |more: &[&str]| unguided(&[&["encode", TINY, "--output", &latents], more].concat());
    assert!(encode(&[]).status.success());
    // A document with another network can reuse the same latents.
    assert!(encode(&["--set", "/backbone/hidden_size=32"]).status.success());
    for (more, says) in [
        (&["--shard", "100"][..], "different /shard"),
        (&["--dtype", "f32"], "different /dtype"),
        (&["--flip"], "different /flip"),
    ] {
        let output = encode(more);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(says), "{}", text(&output));
    }
    let foreign = at("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(at("foreign/a.safetensors"), "anything").unwrap();
    let output = unguided(&["encode", TINY, "--output", &foreign]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("was not written by `encode`"), "{}", text(&output));
    // Data that is already encoded, and a tokenizer without its codebook.
    let read = format!("/data={{\"type\":\"latents\",\"path\":\"{latents}\"}}");
    let tokens = "examples/pipelines/digits-llamagen-vq-tiny.json";
    for (document, set, says) in
        [(TINY, read.as_str(), "already holds latents"), (tokens, "/train/seed=1", "has not learned its codebook yet")]
    {
        let output = unguided(&["encode", document, "--output", &at("other"), "--set", set]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(says), "{}", text(&output));
    }
}

#[test]
fn captions_are_kept_and_trained_from() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let mut document = json!({
        "version": 1,
        "data": { "type": "shapes", "image_size": 16, "count": 50 },
        "tokenizer": { "type": "pixels" },
        "conditioner": { "type": "letters" },
        "backbone": {
            "type": "sd15", "sample_size": 16, "in_channels": 3, "block_out_channels": [8, 8], "layers_per_block": 1,
            "attention": [1], "num_heads": 2, "cross_attention_dim": 26, "norm_num_groups": 4
        },
        "objective": { "type": "cfg" },
        "train": { "steps": 2, "batch_size": 4, "learning_rate": 1e-3, "sample_columns": 1 },
        "sampler": { "type": "ddim", "steps": 2 },
        "guidance": { "type": "none" }
    });
    let images: data::Shapes = serde_json::from_value(json!({ "image_size": 16, "count": 50 })).unwrap();
    let images = images.open().unwrap();
    fs::write(at("a.json"), document.to_string()).unwrap();
    execute(["unguided", "encode", &at("a.json"), "--output", &at("latents"), "--shard", "20"]).unwrap();
    let entry = json!({ "path": at("latents"), "captions": true, "input_size": 16, "channels": 3 });
    let latents: data::Latents = serde_json::from_value(entry.clone()).unwrap();
    let open = latents.open().unwrap();
    assert_eq!((open.len(), Some(open.info())), (50, latents.info()));
    for index in 0..50 {
        assert_eq!(open.label(index).unwrap(), images.label(index).unwrap());
    }
    document["data"] = entry;
    document["data"]["type"] = json!("latents");
    fs::write(at("b.json"), document.to_string()).unwrap();
    execute(["unguided", "train", &at("b.json"), "--run", &at("run")]).unwrap();
    assert!(fs::read_to_string(at("run/report.html")).unwrap().contains("<li>"));
}

#[test]
fn images_that_cannot_be_read_are_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    folders::images(&images);
    fs::write(images.join("3/1.png"), "no image").unwrap();
    let data =
        json!({ "type": "image_folder", "path": images, "image_size": 8, "channels": 1, "horizontal_flip": true });
    let output = folder.path().join("latents");
    let encode = || {
        unguided(&[
            "encode",
            TINY,
            "--output",
            output.to_str().unwrap(),
            "--shard",
            "20",
            "--set",
            &format!("/data={data}"),
        ])
    };
    // The second call finds every file complete and reports the same counts.
    for _ in 0..2 {
        let done = encode();
        let said = text(&done);
        assert!(said.contains("29 items in 2 files") && said.contains("1 items could not be read"), "{said}");
    }
    let file = &files(&output)["000000.safetensors"];
    let file = safetensors::SafeTensors::deserialize(file).unwrap();
    assert_eq!(file.tensor("x").unwrap().shape(), [19, 1, 8, 8]);
    assert_eq!(file.tensor("x_flip").unwrap().shape(), [19, 1, 8, 8]);
}

#[test]
fn tokens_are_written_and_train_the_same_network() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    for name in ["llamagen", "var"] {
        let document = format!("examples/pipelines/pairs/{name}-cfg.json");
        let (tokens, reader) = (at(&format!("{name}-tokens")), at(&format!("{name}.json")));
        let output = unguided(&["encode", &document, "--output", &tokens, "--shard", "1000"]);
        // The command prints the entry that reads the tokens.
        let data = entry(&output);
        let file = &files(FilePath::new(&tokens))["000000.safetensors"];
        let stored = safetensors::SafeTensors::deserialize(file).unwrap();
        let x = stored.tensor("x").unwrap();
        let shape: &[usize] = if name == "var" { &[1000, 1, 1, 85] } else { &[1000, 1, 8, 8] };
        assert_eq!((x.dtype(), x.shape()), (safetensors::Dtype::I32, shape));
        let mut read: Value = serde_json::from_str(&fs::read_to_string(&document).unwrap()).unwrap();
        read["data"] = data;
        fs::write(&reader, read.to_string()).unwrap();
        let weights = |document: &str, run: &str| {
            let output = unguided(&["train", document, "--run", &at(run), "--set", "/metrics=[]"]);
            assert!(output.status.success(), "{}", text(&output));
            let newest = FilePath::new(&at(run)).join("checkpoints").join(framework::checkpoint::file_name(3));
            framework::checkpoint::Checkpoint::load(&newest).unwrap().model
        };
        let (images, encoded) =
            (weights(&document, &format!("{name}-images")), weights(&reader, &format!("{name}-read")));
        assert!(images == encoded, "{name}: training from tokens gives other weights");
        // A vocabulary that does not fit the files or the network is refused, with the place.
        let output = unguided(&["check", &reader, "--set", "/data/vocabulary=5"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output).contains("a vocabulary of 5"), "{}", text(&output));
        let output = unguided(&["check", &reader, "--set", "/data/channels=1"]);
        assert!(text(&output).contains("`channels` has no effect: tokens have none"), "{}", text(&output));
    }
}

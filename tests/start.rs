//! A new user's first minutes: `init` on images and on published checkpoints, `check --data`, and a picture that is
//! sampled again.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use unguided as _;

fn command(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unguided"));
    command.args(arguments).current_dir(folder).env_remove("UNGUIDED_PLUGINS").output().expect("the command starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command that succeeds. Returns what it printed.
#[track_caller]
fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

/// Runs a command that refuses its input. Returns the error.
#[track_caller]
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns a drawing of 24x24 pixels: a coloured disc, square or cross.
fn drawing(shape: usize, i: usize) -> Vec<f32> {
    let (x0, y0) = (8.0 + (i % 4) as f32 * 2.0, 8.0 + (i / 4 % 4) as f32 * 2.0);
    let inside = |x: f32, y: f32| match shape {
        0 => (x - x0).hypot(y - y0) < 6.0,
        1 => (x - x0).abs().max((y - y0).abs()) < 5.0,
        _ => (x - x0).abs().min((y - y0).abs()) < 2.0,
    };
    let value = |at: usize| {
        let (channel, y, x) = (at / 576, at / 24 % 24, at % 24);
        if inside(x as f32, y as f32) && channel != shape { 1.0 } else { -1.0 }
    };
    (0..3 * 576).map(value).collect()
}

const NAMES: [&str; 3] = ["disc", "square", "cross"];

/// Writes 16 drawings per class, in class folders or with captions, one broken image and one other file.
fn drawings(folder: &Path, captions: bool) {
    for (shape, name) in NAMES.iter().enumerate() {
        let class = if captions { folder.to_path_buf() } else { folder.join(name) };
        fs::create_dir_all(&class).unwrap();
        for i in 0..16 {
            let picture = run_folder::picture::image(&drawing(shape, i), [3, 24, 24]);
            let path = class.join(format!("{name}-{i:02}.png"));
            run_folder::picture::save(&picture, &path).unwrap();
            if captions {
                fs::write(path.with_extension("txt"), format!("a {name}\n")).unwrap();
            }
        }
    }
    let place = if captions { folder.to_path_buf() } else { folder.join("disc") };
    let whole = fs::read(place.join("disc-00.png")).unwrap();
    fs::write(place.join("broken.png"), &whole[..whole.len() / 2]).unwrap();
    if captions {
        fs::write(place.join("broken.txt"), "a disc").unwrap();
    }
    fs::write(place.join("notes.md"), "not an image").unwrap();
}

/// A stand-in of Stable Diffusion 1.5 with small weights, as a diffusers folder.
fn stable_diffusion(folder: &Path) {
    let configs: Value =
        serde_json::from_slice(&fs::read(goldens::path("sd15_diffusers_configs.json")).unwrap()).unwrap();
    for (part, weights, name) in [
        ("unet", "sd15_diffusers_unet.safetensors", "diffusion_pytorch_model.safetensors"),
        ("vae", "sd15_diffusers_vae.safetensors", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "sd15_diffusers_text_encoder.safetensors", "model.safetensors"),
    ] {
        fs::create_dir_all(folder.join(part)).unwrap();
        fs::copy(goldens::path(weights), folder.join(part).join(name)).unwrap();
        fs::write(folder.join(part).join("config.json"), configs[part].to_string()).unwrap();
    }
    // A vocabulary of the letters, which fits the small text encoder.
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let tokens = letters.iter().cloned().chain(letters.iter().map(|letter| format!("{letter}</w>")));
    let tokens = tokens.chain(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    let vocabulary: serde_json::Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    let tokenizer = folder.join("tokenizer");
    fs::create_dir_all(&tokenizer).unwrap();
    fs::write(tokenizer.join("vocab.json"), Value::from(vocabulary).to_string()).unwrap();
    fs::write(tokenizer.join("merges.txt"), "#version: 0.2\n").unwrap();
}

/// Overrides that end a training after a few seconds.
const SHORT: [&str; 12] = [
    "--set",
    "/train/steps=4",
    "--set",
    "/train/warmup_steps=1",
    "--set",
    "/train/metric_samples=0",
    "--set",
    "/train/sample_columns=2",
    "--set",
    "/sampler/steps=2",
    "--set",
    "/metrics=[]",
];

/// Trains the document of a recipe for a few steps, and samples its network.
#[track_caller]
fn trains(folder: &Path, document: &str) {
    done(folder, &["check", document]);
    done(folder, &[&["train", document, "--run", "run"][..], &SHORT].concat());
    done(folder, &["sample", "run", "--count", "2", "--scale", "1.5"]);
}

#[test]
fn drawings_become_a_network_and_a_picture_is_sampled_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    drawings(&at.join("drawings"), false);
    let said = done(at, &["init", "drawings", "--yes", "--minutes", "0.02", "--image-size", "8"]);
    assert!(said.contains("49 in drawings, colour, shorter side 24 pixels"), "{said}");
    assert!(said.contains("3 classes: cross 16, disc 17, square 16"), "{said}");
    assert!(said.contains("recipe       small-images") && said.contains("time         about"), "{said}");
    let document = fs::read_to_string(at.join("drawings.json")).unwrap();
    assert!(document.contains("  // The network reads the pixels themselves.\n"), "{document}");
    assert!(document.contains("\"$schema\": \"pipeline.schema.json\"") && at.join("pipeline.schema.json").exists());
    assert!(refused(at, &["init", "drawings", "--yes"]).contains("drawings.json already exists"));

    let said = done(at, &["check", "--data", "drawings.json"]);
    assert!(said.contains("49 items in 3 classes") && said.contains("17 disc"), "{said}");
    assert!(said.contains("of all items, 1 cannot be read") && said.contains("broken.png"), "{said}");
    assert!(said.contains("1 skipped: the ending") || said.contains("notes.md"), "{said}");
    assert!(!said.contains("not checked"), "{said}");
    let (sheet, _) = run_folder::picture::read_with(&at.join("drawings-data.png")).unwrap();
    assert!(sheet.width() > 500 && sheet.height() > 300, "{:?}", sheet.dimensions());
    let said = done(at, &["check", "drawings.json"]);
    assert!(said.contains("not checked  /data") && said.contains("check --data"), "{said}");
    let found = command(at, &["check", "--data", "--json", "drawings.json"]);
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((&found["ok"], &found["data"]["items"]), (&json!(true), &json!(49)));
    assert_eq!(found["data"]["classes"][1], json!({ "name": "disc", "items": 17 }));
    assert_eq!(found["data"]["unreadable"].as_array().unwrap().len(), 1);

    done(at, &[&["train", "drawings.json", "--run", "run"][..], &SHORT].concat());
    let asked = ["sample", "run", "--classes", "cross,0,disc", "--count", "3", "--seed", "5", "--scale", "1.5"];
    done(at, &[&asked[..], &["--batch-size", "4", "--output", "grid.png", "--images", "images"]].concat());
    let (_, texts) = run_folder::picture::read_with(&at.join("grid.png")).unwrap();
    let get = |name: &str| texts.iter().find(|(keyword, _)| keyword == name).map(|(_, text)| text.as_str());
    assert_eq!((get("seed"), get("scale"), get("step")), (Some("5"), Some("1.5"), Some("4")));
    assert!(get("document").unwrap().contains("\"image_folder\"") && get("Software").unwrap().starts_with("Unguided "));
    // The same bytes come back from the picture alone, for the grid and for an image of the third batch.
    let image = "images/000008-class-1.png";
    for picture in ["grid.png", image] {
        let said = done(at, &["sample", "--from", picture, "--output", "again.png"]);
        assert!(said.contains(&format!("equal to {picture} in every pixel")), "{said}");
        assert_eq!(fs::read(at.join("again.png")).unwrap(), fs::read(at.join(picture)).unwrap());
    }

    // A moved run is found where the user says, and another checkpoint is refused.
    fs::rename(at.join("run"), at.join("moved")).unwrap();
    let said = refused(at, &["sample", "--from", "grid.png", "--output", "again.png"]);
    assert!(said.contains("does not exist here") && said.contains("--from PICTURE"), "{said}");
    done(at, &["sample", "moved", "--from", "grid.png", "--output", "again.png"]);
    done(at, &[&["train", "drawings.json", "--run", "run"][..], &SHORT, &["--set", "/train/seed=1"]].concat());
    let said = refused(at, &["sample", "run", "--from", "grid.png", "--output", "again.png"]);
    assert!(said.contains("is not the one that the picture was sampled from"), "{said}");
    let said = refused(at, &["sample", "--from", "drawings-data.png", "--output", "again.png"]);
    assert!(said.contains("does not say how it was sampled"), "{said}");
    let said = refused(at, &["sample", "--from", "grid.png", "--seed", "1"]);
    assert!(said.contains("cannot be used with"), "{said}");
    let said = refused(at, &["sample", "moved", "--classes", "crosss"]);
    assert!(said.contains("no class crosss") && said.contains("nearest  cross"), "{said}");
    let said = refused(at, &["sample", "move"]);
    assert!(said.contains("nearest  moved"), "{said}");
    let said = refused(at, &["check", "drawing.json"]);
    assert!(said.contains("nearest  drawings.json"), "{said}");
}

#[test]
fn images_with_captions_train_a_small_text_to_image_network() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    drawings(&at.join("drawings"), true);
    let said = done(at, &["init", "drawings", "--yes", "--minutes", "0.02", "--image-size", "16"]);
    assert!(said.contains("captions in text files: 4 words, at most 2 each"), "{said}");
    assert!(said.contains("recipe       captions"), "{said}");
    trains(at, "drawings.json");
    let said = done(at, &["check", "--data", "drawings.json"]);
    assert!(said.contains("49 items with captions"), "{said}");
}

#[test]
fn latents_of_an_autoencoder_train_from_scratch() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    drawings(&at.join("drawings"), false);
    stable_diffusion(&at.join("sd"));
    let asked = ["init", "drawings", "--vae", "sd", "--image-size", "16", "--minutes", "0.02", "--objective", "cfg"];
    let said = done(at, &[&asked[..], &["--backbone", "dit", "--out", "latents.json"]].concat());
    assert!(said.contains("recipe       latents"), "{said}");
    trains(at, "latents.json");
    let said = done(at, &["check", "latents.json"]);
    assert!(said.contains("/tokenizer: the weights in sd"), "{said}");
}

#[test]
fn a_published_transformer_is_tuned_to_own_classes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    drawings(&at.join("drawings"), false);
    stable_diffusion(&at.join("sd"));
    for (name, backbone) in [("dit_ckpt_train.pt", "dit"), ("sit_ckpt_plain.pt", "sit")] {
        let checkpoint = goldens::path(name);
        let checkpoint = checkpoint.to_str().unwrap();
        let asked = ["init", checkpoint, "--data", "drawings", "--vae", "sd", "--minutes", "0.02", "--force"];
        let said = done(at, &[&asked[..], &["--set", "/backbone/num_heads=4", "--out", "tuned.json"]].concat());
        assert!(said.contains(&format!("assumed \"{backbone}\"")), "{said}");
        assert!(said.contains("10 classes") && said.contains("recipe       own-classes"), "{said}");
        fs::remove_dir_all(at.join("run")).ok();
        trains(at, "tuned.json");
    }
}

#[test]
fn stable_diffusion_gets_adapters_for_captions() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    drawings(&at.join("drawings"), true);
    stable_diffusion(&at.join("sd"));
    let said = done(at, &["init", "sd", "--data", "drawings", "--minutes", "0.02", "--out", "lora.json"]);
    assert!(said.contains("recipe       lora"), "{said}");
    trains(at, "lora.json");
}

#[test]
fn init_refuses_what_it_cannot_use_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    drawings(&at.join("drawings"), false);
    assert!(refused(at, &["init", "drawing"]).contains("nearest  drawings"));
    fs::create_dir(at.join("empty")).unwrap();
    assert!(refused(at, &["init", "empty"]).contains("holds no images"));
    let said = refused(at, &["init", "drawings/disc"]);
    assert!(said.contains("neither class folders nor captions") && said.contains("sub-folder of its own"), "{said}");
    let checkpoint = goldens::path("dit_ckpt_plain.pt");
    let checkpoint = checkpoint.to_str().unwrap();
    assert!(refused(at, &["init", checkpoint]).contains("add --data FOLDER"));
    assert!(refused(at, &["init", checkpoint, "--data", "drawings"]).contains("--vae"));
    let other = goldens::path("llamagen_ckpt.pt");
    let said = refused(at, &["init", other.to_str().unwrap(), "--data", "drawings"]);
    assert!(said.contains("no recipe starts from"), "{said}");
    assert!(refused(at, &["init", "drawings", "--data", "drawings"]).contains("is not a checkpoint"));
    let said = refused(at, &["init", "drawings", "--set", "/trian/seed=1"]);
    assert!(said.contains("the document has no /trian/seed"), "{said}");
    let listed = done(at, &["init", "--list"]);
    for recipe in ["small-images", "captions", "latents", "own-classes", "lora"] {
        assert!(listed.contains(recipe), "{listed}");
    }
    // Only drawings were there, and nothing was left behind.
    assert_eq!(fs::read_dir(at).unwrap().count(), 2);
}

#[test]
fn machine_readable_output_is_json() {
    let folder = tempfile::tempdir().unwrap();
    let parsed = |arguments: &[&str]| -> Value {
        serde_json::from_slice(&command(folder.path(), arguments).stdout).expect("JSON on standard output")
    };
    let list = parsed(&["list", "--json"]);
    let is_gft = |plugin: &&Value| plugin["kind"] == "objective" && plugin["type"] == "gft";
    let gft = list["plugins"].as_array().unwrap().iter().find(is_gft).unwrap().clone();
    assert_eq!(gft["papers"], json!(["arXiv:2501.15420"]));
    let verify = parsed(&["verify", "cfg", "--worlds", "3", "--json"]);
    assert_eq!((&verify["refuted"], &verify["statements"][0]["objective"]["type"]), (&json!(0), &json!("cfg")));
    assert_eq!(verify["statements"].as_array().unwrap().len() % 4, 0);
    fs::write(folder.path().join("a.json"), "{ \"version\": 1, /* nothing else */ }").unwrap();
    let check = command(folder.path(), &["check", "--json", "a.json"]);
    assert_eq!(check.status.code(), Some(2));
    let check: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(check["ok"], json!(false));
    assert!(check["problems"].as_array().unwrap().iter().any(|problem| problem["what"].as_str().is_some()));
}

#[test]
fn quiet_prints_results_and_errors_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = "examples/pipelines/digits-dit-gft-tiny.json";
    let quiet = command(root, &["check", "-q", document]);
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", text(&quiet));
    assert!(!quiet.stdout.is_empty());
    let wrong = command(root, &["-q", "check", "absent.json"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).starts_with("error: absent.json"));
    let verbose = command(root, &["-v", "check", document]);
    assert!(String::from_utf8_lossy(&verbose.stderr).contains("the command took"));
}

//! Data of a user from the folder to the run: classes that a network needs, and data that change while a run is stopped.

mod folders;

use framework::error::Error;
use serde_json::json;
use std::fs;
use unguided::execute;

#[track_caller]
fn refused(arguments: &[&str]) -> String {
    match execute(arguments) {
        Err(error @ Error::Input(_)) => format!("error: {error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flat_folder_for_a_network_with_classes_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let picture = run_folder::picture::image(&[0.0; 64], [1, 8, 8]);
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    run_folder::picture::save(&picture, &images.join("1.png")).unwrap();
    let data = json!({ "type": "image_folder", "path": images, "image_size": 8, "channels": 1 });
    let run = folder.path().join("run").to_str().unwrap().to_string();
    let set = format!("/data={data}");
    let document = "examples/pipelines/digits-dit-gft-tiny.json";
    let text = refused(&["unguided", "train", document, "--run", &run, "--set", &set, "--set", "/metrics=[]"]);
    assert!(text.contains("the dataset has no classes; the backbone expects 10 classes"), "{text}");
    assert!(text.contains("put the images of each class into a sub-folder of its own"), "{text}");
}

#[test]
fn a_run_refuses_changed_data_until_the_change_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    folders::images(folder.path().join("images").as_path());
    let data = json!({ "type": "image_folder", "path": at("images"), "image_size": 8, "channels": 1 });
    let set = format!("/data={data}");
    let document = "examples/pipelines/digits-dit-gft-tiny.json";
    let run = at("run");
    let arguments = ["unguided", "train", document, "--run", &run, "--set", &set, "--set", "/metrics=[]"];
    execute(arguments).unwrap();
    // The same data resume, also when their times changed.
    let bytes = fs::read(at("images/3/1.png")).unwrap();
    fs::write(at("images/3/1.png"), &bytes).unwrap();
    execute(arguments).unwrap();

    fs::rename(at("images/3"), at("images/3b")).unwrap();
    let text = refused(&arguments);
    assert!(text.contains("the data are not those that the run was trained on"), "{text}");
    assert!(text.contains("classes that are gone: `3`; new classes: `3b`"), "{text}");
    assert!(text.contains("--accept-data-change"), "{text}");
    let accepted = [&arguments[..], &["--accept-data-change"]].concat();
    execute(accepted).unwrap();

    fs::rename(at("images/3b"), at("images/3")).unwrap();
    fs::rename(at("images/4/2.png"), at("images/4/other.png")).unwrap();
    assert!(refused(&arguments).contains("the names, sizes or labels of items changed"));
    fs::remove_file(at("images/4/other.png")).unwrap();
    assert!(refused(&arguments).contains("the number of items was 30, and is 29 now"));
}

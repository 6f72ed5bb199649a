//! `evaluate`: sources and references, resumption, sweeps, refused inputs.

mod commands;
#[cfg(unix)]
mod default_signals;

use commands::{command, done, refused, text, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use unguided as _;

/// Returns the folder of a small trained run. The first call trains it.
fn run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        // Every execution of the tests trains anew, and leaves one folder.
        let run = Path::new(env!("CARGO_TARGET_TMPDIR")).join("evaluated-run");
        let _ = fs::remove_dir_all(&run);
        let train = ["train", "examples/pipelines/digits-dit-gft-tiny.json", "--run", run.to_str().unwrap()];
        done(unguided(&train));
        run
    })
}

/// Runs the command.
fn unguided(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the command starts")
}

/// A metric that needs few images: 2 x 2 pixels in colour are 12 values.
const FRECHET: [&str; 4] = ["--metric", "frechet", "--image-size", "2"];

/// Writes `count` grey images of 4 x 4 pixels.
fn images(folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    for i in 0..count {
        let values: Vec<f32> = (0..16).map(|j| ((i * 37 + j * 71 + i * j * 13) % 101) as f32 / 50.0 - 1.0).collect();
        let picture = run_folder::picture::image(&values, [1, 4, 4]);
        run_folder::picture::save(&picture, &folder.join(format!("{i:03}.png"))).unwrap();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Returns the value of a metric in `evaluation.json` of a folder.
#[track_caller]
fn metric(folder: &Path, name: &str) -> f64 {
    let evaluation = read(&folder.join("evaluation.json"));
    let all = evaluation["metrics"].as_array().unwrap();
    let found = all.iter().find(|m| m["name"] == name).unwrap_or_else(|| panic!("no {name} in {evaluation:#}"));
    found["value"].as_f64().unwrap()
}

#[test]
fn a_folder_against_itself_has_frechet_distance_0() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two, out) = (folder.path().join("one"), folder.path().join("two"), folder.path().join("out"));
    images(&one, 40);
    images(&two, 20);
    let evaluate = |against: &Path, out: &Path, more: &[&str]| {
        let first = ["evaluate", path(&one), "--against", path(against), "--output", path(out)];
        done(unguided(&[&first[..], &FRECHET, more].concat()))
    };
    let said = evaluate(&one, &out, &[]);
    assert!(said.contains("40 images against 40 real images") && said.contains("frechet_pixels"), "{said}");
    assert!(metric(&out, "frechet_pixels") < 1e-5);
    let other = folder.path().join("other");
    evaluate(&two, &other, &[]);
    assert!(metric(&other, "frechet_pixels") > 1e-3);
    // The results are the same from saved statistics.
    let (statistics, again) = (folder.path().join("statistics"), folder.path().join("again"));
    evaluate(&two, &folder.path().join("saved"), &["--save-statistics", path(&statistics)]);
    evaluate(&statistics, &again, &[]);
    assert_eq!(metric(&again, "frechet_pixels"), metric(&other, "frechet_pixels"));
    let file = fs::read_dir(&statistics).unwrap().next().unwrap().unwrap().path();
    evaluate(&file, &folder.path().join("file"), &[]);
    assert_eq!(metric(&folder.path().join("file"), "frechet_pixels"), metric(&other, "frechet_pixels"));
    // The same command shows the stored results; as JSON, they are the only output.
    let shown = unguided(
        &[&["evaluate", path(&one), "--against", path(&one), "--output", path(&out), "--json"][..], &FRECHET].concat(),
    );
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["metrics"], read(&out.join("evaluation.json"))["metrics"]);
}

#[test]
fn a_run_is_measured_as_its_training_measured_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let said = done(unguided(&["evaluate", path(run()), "--output", path(&out)]));
    assert!(said.contains("100 images against 1797 real images, NFE 4"), "{said}");
    let (report, evaluation) = (read(&run().join("report.json")), read(&out.join("evaluation.json")));
    assert_eq!(evaluation["nfe"], report["nfe"]);
    for m in evaluation["metrics"].as_array().unwrap() {
        // The samples have the same bits; the metrics receive them in batches of another size, and sums round.
        let (found, expected) = (m["value"].as_f64().unwrap(), report[m["name"].as_str().unwrap()].as_f64().unwrap());
        assert!((found - expected).abs() <= 1e-10 * expected.abs(), "{}: {found}, {expected}", m["name"]);
    }
    assert!(!out.join("samples").exists() && !out.join("reference").exists(), "only results remain");
    // Without an output folder, each request has its own folder in the run.
    let evaluate = |scale: &str| done(unguided(&["evaluate", path(run()), "--samples", "70", "--scale", scale]));
    assert_ne!(evaluate("1"), evaluate("3"));
    assert_eq!(fs::read_dir(run().join("evaluations")).unwrap().count(), 2);
}

#[test]
fn encoded_latents_are_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
    let document = "examples/pipelines/digits-dit-gft-tiny.json";
    done(unguided(&["encode", document, "--output", path(&latents), "--dtype", "f32"]));
    let evaluate = ["evaluate", path(&latents), "--output", path(&out)];
    done(unguided(&[&evaluate[..], &["--against", document]].concat()));
    assert!(metric(&out, "frechet_pixels") < 1e-5);
    // A sample is its own nearest image.
    assert!(metric(&out, "class_accuracy") > 0.98);
    let real = folder.path().join("real");
    images(&real, 30);
    let said = refused(unguided(&["evaluate", path(&latents), "--against", path(&real), "--metric", "frechet"]), 2);
    assert!(said.contains("need the tokenizer") && said.contains("--document"), "{said}");
}

/// Kills the command when `is_due`, with a signal that it cannot handle.
fn kill_when(mut child: Child, is_due: impl Fn() -> bool) {
    wait_for(&mut child, is_due);
    child.kill().unwrap();
    child.wait().unwrap();
}

fn files(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, |all| all.count())
}

#[test]
fn a_killed_evaluation_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let evaluate = |out: &Path| {
        let mut evaluate = command(&["evaluate", path(run()), "--samples", "400", "--batch-size", "8"]);
        evaluate.args(["--set", "/sampler/steps=40", "--output", path(out)]);
        evaluate
    };
    done(evaluate(&whole).output().unwrap());
    for least in [3, 11] {
        let child = evaluate(&killed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        kill_when(child, || files(&killed.join("samples")) >= least);
        assert!(!killed.join("evaluation.json").exists(), "the kill came too late");
    }
    let kept = files(&killed.join("samples"));
    done(evaluate(&killed).output().unwrap());
    assert!(kept >= 11);
    for name in ["evaluation.json", "request.json"] {
        assert!(fs::read(whole.join(name)).unwrap() == fs::read(killed.join(name)).unwrap(), "{name} differs");
    }
    assert_eq!(files(&whole), files(&killed));
    // Another request does not go into the folder.
    let said = refused(evaluate(&killed).args(["--seed", "1"]).output().unwrap(), 2);
    assert!(said.contains("another /seed") && said.contains("--output"), "{said}");
}

/// Returns `sweep.json` without the measured times.
fn points(folder: &Path) -> Value {
    let mut sweep = read(&folder.join("sweep.json"));
    for point in sweep["points"].as_array_mut().unwrap() {
        assert!(point["seconds_per_image"].as_f64().unwrap() > 0.0 && point["images_per_second"].is_number());
        point["seconds_per_image"] = json!(0);
        point["images_per_second"] = json!(0);
    }
    sweep
}

#[test]
fn a_sweep_measures_each_point_from_the_same_noise_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let sweep = |out: &Path| {
        let mut sweep = command(&["evaluate", path(run()), "--samples", "80", "--batch-size", "20", "--keep-samples"]);
        sweep.args(["--sweep", "scale=1:2:1", "--sweep", "/sampler/steps=4,60,4", "--output", path(out)]);
        sweep
    };
    let said = done(sweep(&at("whole")).output().unwrap());
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("scale=1 /sampler/steps=4  class_accuracy"), "{said}");
    assert!(lines[1].contains("NFE 60") && lines[1].contains("images/s"), "{said}");
    let all = points(&at("whole"));
    assert_eq!(all["points"].as_array().unwrap().len(), 6);
    assert_eq!(all["points"][4]["settings"], json!({ "/guidance/scale": 2, "/sampler/steps": 60 }));
    assert_eq!(all["points"][0]["metrics"], all["points"][2]["metrics"]);
    assert_ne!(all["points"][0]["metrics"], all["points"][3]["metrics"]);
    let table = fs::read_to_string(at("whole/sweep.csv")).unwrap();
    assert_eq!(table.lines().count(), 7);
    assert!(table.starts_with("/guidance/scale,/sampler/steps,class_accuracy,"), "{table}");
    assert!(table.lines().next().unwrap().ends_with("evaluations,seconds_per_image,images_per_second"), "{table}");
    // One evaluation at a point has its results.
    let single = ["evaluate", path(run()), "--samples", "80", "--batch-size", "20", "--scale", "2", "--steps", "60"];
    done(unguided(&[&single[..], &["--output", path(&at("single"))]].concat()));
    assert_eq!(
        read(&at("single/evaluation.json"))["metrics"],
        read(&at("whole/points/0004/evaluation.json"))["metrics"]
    );

    let child = sweep(&at("killed")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    kill_when(child, || files(&at("killed/points/0001/samples")) >= 1);
    let first = fs::metadata(at("killed/points/0000/evaluation.json")).unwrap().modified().unwrap();
    done(sweep(&at("killed")).output().unwrap());
    let again = fs::metadata(at("killed/points/0000/evaluation.json")).unwrap().modified().unwrap();
    assert_eq!(first, again, "a complete point is measured again");
    assert_eq!(points(&at("killed")), all);
    for i in 0..6 {
        let read = |sweep: &str| fs::read(at(sweep).join(format!("points/{i:04}/evaluation.json"))).unwrap();
        assert!(read("whole") == read("killed"), "point {i} differs");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_evaluation_ends_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut evaluate = command(&["evaluate", path(run()), "--samples", "100000", "--output", path(&out)]);
    default_signals::with_default_signals(&mut evaluate);
    let mut child = evaluate.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&mut child, || files(&out.join("samples")) >= 1);
    let start = Instant::now();
    // SAFETY: the process is a child that was not waited for, so its id belongs to it.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn wrong_input_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    images(&at("images"), 20);
    fs::create_dir_all(at("empty")).unwrap();
    fs::write(at("text.txt"), "no checkpoint").unwrap();
    let (images, empty, text_file, out) = (at("images"), at("empty"), at("text.txt"), at("out"));
    let (images, empty, trained) = (path(&images), path(&empty), path(run()));
    let cases: &[(&[&str], &str)] = &[
        (&["absent", "--against", images, "--metric", "frechet"], "absent does not exist"),
        (&[path(&text_file), "--against", images, "--metric", "frechet"], "is no checkpoint"),
        (&[images, "--metric", "frechet"], "--against is missing"),
        (&[images, "--against", images], "no metric is given"),
        (&[images, "--against", "absent", "--metric", "frechet"], "absent does not exist"),
        (&[empty, "--against", images, "--metric", "frechet"], "contains no image"),
        (&[images, "--against", images, "--metric", "frechett"], "nearest  frechet"),
        (&[images, "--against", images, "--metric", "{\"type\":"], "is not JSON"),
        (&[images, "--against", images, "--metric", "frechet"], "needs at least 49 samples; there are 20"),
        (&[images, "--against", images, "--metric", "class_accuracy"], "needs classes"),
        (&[images, "--against", images, "--metric", "frechet", "--samples", "21"], "has 20 images"),
        (&[images, "--against", images, "--metric", "frechet", "--scale", "2"], "--scale has no effect"),
        (&[images, "--against", images, "--metric", "frechet", "--sweep", "scale=1,2"], "--sweep has no effect"),
        (&[trained, "--samples", "10"], "use --samples 65"),
        (&[trained, "--scale", "0.5"], "accepts  scales >= 1"),
        (&[trained, "--sweep", "scale=1:0:1"], "is empty"),
        (&[trained, "--sweep", "/train/steps=1,2"], "does not change the samples"),
        (&[trained, "--sweep", "scale=0.5:1:0.5"], "at scale=0.5: "),
        (&[trained, "--metric", "caption_accuracy"], "needs captions"),
        (&[trained, "--image-size", "8"], "--image-size has no effect"),
        (&[trained, "--output", images], "already contains other files"),
        (&[trained, "--save-statistics", images], "already contains files"),
    ];
    for (arguments, says) in cases {
        let mut all = [&["evaluate"][..], arguments].concat();
        let out = path(&out).to_string();
        if !arguments.contains(&"--output") {
            all.extend(["--output", &out]);
        }
        let said = refused(unguided(&all), 2);
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert!(!Path::new(&out).exists(), "{arguments:?} left a folder");
    }
}

#[test]
fn a_metric_that_fails_is_named_and_the_others_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let fails = r#"{"type":"class_accuracy","neighbours":5000}"#;
    let evaluate = ["evaluate", path(run()), "--metric", fails, "--metric", "frechet", "--output", path(&out)];
    let said = refused(unguided(&evaluate), 1);
    assert!(said.contains("a metric failed: metric \"class_accuracy\""), "{said}");
    assert!(metric(&out, "frechet_pixels") > 0.0);
    assert_eq!(read(&out.join("evaluation.json"))["failed"][0]["name"], "metric \"class_accuracy\"");
    assert!(out.join("samples").exists(), "the samples are kept to measure them again");
    assert_eq!(text(&unguided(&evaluate)), said);
}

#[test]
fn samples_as_npz_are_the_images_of_the_picture_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let sample = ["sample", path(run()), "--count", "2", "--batch-size", "3", "--output"];
    let (grid, npz, pngs) = (at("grid.png"), at("samples.npz"), at("images"));
    done(unguided(&[&sample[..], &[path(&grid), "--npz", path(&npz), "--images", path(&pngs)]].concat()));
    let bytes = fs::read(&npz).unwrap();
    // Stored entries: the header ends with a line break, and the values follow.
    let start = bytes.windows(9).position(|at| at == b"arr_0.npy").unwrap();
    let end = start + bytes[start..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let header = String::from_utf8_lossy(&bytes[start..end]).to_string();
    assert!(header.contains("'|u1'") && header.contains("(20, 8, 8, 3"), "{header}");
    for (i, values) in bytes[end..end + 20 * 8 * 8 * 3].chunks(8 * 8 * 3).enumerate() {
        let file = pngs.join(format!("{i:06}-class-{}.png", i / 2));
        let data = json!({ "type": "image_folder", "path": pngs, "image_size": 8 });
        assert!(file.exists(), "{} is missing", file.display());
        let decoded = registry::Registry::linked()
            .part::<Box<dyn framework::plugin::DatasetPlugin>>(framework::plugin::Kind::Data, data)
            .unwrap()
            .open()
            .unwrap()
            .plain(i)
            .unwrap();
        let byte = |channel: usize, pixel: usize| ((decoded.values[channel * 64 + pixel] + 1.0) * 127.5).round() as u8;
        let expected: Vec<u8> =
            (0..64).flat_map(|pixel| (0..3).map(move |c| (c, pixel))).map(|(c, p)| byte(c, p)).collect();
        assert_eq!(values, expected, "image {i}");
    }
    assert!(
        refused(unguided(&[&sample[..], &[path(&grid), "--npz", path(&at("a.zip"))]].concat()), 2).contains(".npz")
    );
}

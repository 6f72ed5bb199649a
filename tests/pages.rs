//! The report of a run and the page of a comparison in headless Chromium: at phone and desktop width, light and dark.
//!
//! Chromium is driven by its command line. A small script in a copy of the page reports what it measured as a message
//! to a frame of the tested width, and `--dump-dom` prints the message. That needs no crate that speaks the debugging
//! protocol, and a frame may be narrower than the smallest window.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use unguided as _;

const TINY: &str = "examples/pipelines/digits-dit-gft-tiny.json";

/// Names of the program on common systems.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

fn browser() -> Option<&'static str> {
    let starts = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    BROWSERS.into_iter().find(starts)
}

fn unguided(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).output().expect("the command starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}\n{said}");
    said
}

/// Reads a page. The template writes a slash as an entity.
fn shown(page: &Path) -> String {
    fs::read_to_string(page).unwrap().replace("&#x2f;", "/")
}

fn train(run: &Path, more: &[&str]) {
    let fixed = ["train", TINY, "--run", run.to_str().unwrap(), "--set", "/train/sample_every=10"];
    unguided(&[&fixed[..], more].concat());
}

/// Script that measures a page in a frame and sends the result to the page around the frame.
const MEASURE: &str = "
const errors = [];
addEventListener('error', e => errors.push(e.message || 'a resource failed to load'), true);
addEventListener('securitypolicyviolation', e => errors.push('refused: ' + e.blockedURI));
addEventListener('load', () => setTimeout(() => {
  const wide = [...document.querySelectorAll('body *')].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest('.scroll, .legend, pre, svg'));
  const shown = axis => [...document.querySelectorAll('.by-' + axis)].filter(e => e.offsetParent).length;
  const first = [shown('step'), shown('time'), shown('images')];
  document.getElementById('by-time')?.click();
  const texts = [...document.querySelectorAll('.chart text')].filter(e => e.getBoundingClientRect().height);
  parent.postMessage({
    width: innerWidth,
    overflow: Math.max(0, document.documentElement.scrollWidth - innerWidth),
    wide: wide.map(e => e.outerHTML.slice(0, 80)),
    requests: performance.getEntriesByType('resource').map(e => e.name.slice(0, 60)).filter(n => !n.startsWith('data:')),
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    back: getComputedStyle(document.body).backgroundColor,
    broken: [...document.images].filter(e => !e.complete || !e.naturalWidth).length,
    pixels: [...document.querySelectorAll('img.pixels')].filter(e => getComputedStyle(e).imageRendering == 'pixelated').length,
    charts: document.querySelectorAll('.chart').length,
    smallest: Math.min(...texts.map(e => e.getBoundingClientRect().height)),
    first, then: [shown('step'), shown('time'), shown('images')],
    errors,
  }, '*');
}, 50));
";

/// Opens a page in a frame of `width` pixels and returns what the script measured.
fn opened(browser: &str, page: &Path, width: u32, is_dark: bool) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(page).unwrap();
    // The page allows no script at all. Only the copy allows the one that measures.
    let policy = "default-src 'none';";
    assert!(text.contains(policy) && !text.contains("<script"), "{}", page.display());
    let text = text.replacen(policy, "default-src 'none'; script-src 'unsafe-inline';", 1);
    let text = text.replacen("<title>", &format!("<script>{MEASURE}</script><title>"), 1);
    fs::write(folder.path().join("page.html"), text).unwrap();
    let frame = format!(
        "<!doctype html><pre id=found></pre><script>addEventListener('message', e => \
         document.getElementById('found').textContent = JSON.stringify(e.data))</script>\
         <iframe src=page.html style='border:0;width:{width}px;height:900px'></iframe>"
    );
    fs::write(folder.path().join("frame.html"), frame).unwrap();
    let output = Command::new(browser)
        // Root needs --no-sandbox; the profile keeps tests apart that run at the same time.
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("--blink-settings=preferredColorScheme={}", if is_dark { 0 } else { 1 }))
        .args(["--window-size=1600,1000", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("file://{}", folder.path().join("frame.html").display()))
        .output()
        .expect("the browser starts");
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let console: Vec<&str> = log.lines().filter(|line| line.contains(":CONSOLE")).collect();
    assert!(console.is_empty(), "{console:?}");
    let found = dom.split_once("<pre id=\"found\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (found, _) = found.unwrap_or_else(|| panic!("no result in\n{dom}\n{log}"));
    let found = found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&found).unwrap_or_else(|e| panic!("{e}: {found}\n{log}"))
}

#[test]
fn the_pages_fit_phones_and_desktops_and_stay_on_their_own() {
    let Some(browser) = browser() else {
        goldens::skipped("the_pages_fit_phones_and_desktops_and_stay_on_their_own", "no Chromium");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    train(&at("gft"), &[]);
    train(
        &at("cfg"),
        &[
            "--set",
            "/objective={\"type\": \"cfg\"}",
            "--set",
            "/backbone/guidance_input=null",
            "--set",
            "/guidance={\"type\": \"cfg\", \"scale\": 2}",
        ],
    );
    let point = |scale: f64| {
        json!({
            "settings": { "/guidance/scale": scale }, "evaluations": 8, "seconds_per_image": 0.01,
            "metrics": { "frechet": 20.0 - scale, "class_accuracy": scale / 4.0 }
        })
    };
    let sweep = json!({ "points": [point(1.0), point(2.0), point(3.0)] });
    fs::create_dir(at("sweep")).unwrap();
    fs::write(at("sweep/sweep.json"), sweep.to_string()).unwrap();
    let [a, b, c, page] = ["gft", "cfg", "sweep", "compare.html"].map(|name| at(name).display().to_string());
    unguided(&["compare", &a, &b, &c, "--out", &page, "--samples", "2"]);

    let mut backs = Vec::new();
    for (page, charts) in [(at("gft/report.html"), 12), (at("compare.html"), 12)] {
        for width in [390, 1440] {
            for is_dark in [false, true] {
                let found = opened(browser, &page, width, is_dark);
                let case = format!("{} at {width} pixels, dark: {is_dark}\n{found:#}", page.display());
                assert_eq!((&found["width"], &found["dark"]), (&json!(width), &json!(is_dark)), "{case}");
                assert_eq!((&found["overflow"], &found["wide"]), (&json!(0), &json!([])), "{case}");
                assert_eq!((&found["requests"], &found["errors"]), (&json!([]), &json!([])), "{case}");
                assert_eq!(found["broken"], json!(0), "{case}");
                assert!(found["pixels"].as_u64() >= Some(2), "{case}");
                assert!(found["charts"].as_u64() >= Some(charts), "{case}");
                assert!(found["smallest"].as_f64() >= Some(9.0), "the text of a chart is too small: {case}");
                // The buttons switch the charts without a script of the page.
                let count = |key: &str, axis: usize| found[key][axis].as_u64().unwrap();
                assert!(count("first", 0) > 0 && count("first", 1) == 0 && count("first", 2) == 0, "{case}");
                assert!(count("then", 0) == 0 && count("then", 1) > 0 && count("then", 2) == 0, "{case}");
                backs.push(found["back"].clone());
            }
        }
    }
    assert_ne!(backs[0], backs[1], "light and dark look the same");
}

#[test]
fn a_comparison_puts_runs_next_to_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    train(Path::new(&at("first")), &[]);
    train(Path::new(&at("second")), &["--set", "/train/seed=1"]);
    let report = shown(Path::new(&at("first/report.html")));
    for part in ["arXiv:2501.15420", "class accuracy", "unguided 0.", "cpu", "scale 2.0", "/backbone/hidden_size"] {
        assert!(report.contains(part), "{part} is not in the report");
    }
    assert!(!Path::new(&at("first/report.md")).exists() && !Path::new(&at("first/loss.png")).exists());

    let files = [("--out", at("x.html")), ("--json", at("x.json")), ("--csv", at("x.csv"))];
    let mut arguments = vec!["compare".to_string(), at("first"), at("second"), "--samples=1".into()];
    arguments.extend(files.iter().flat_map(|(option, path)| [option.to_string(), path.clone()]));
    unguided(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let page = shown(Path::new(&at("x.html")));
    assert!(page.contains("Samples from the same noise") && page.contains("/train/seed"));
    // One image per class and run: eight classes at most.
    assert_eq!(page.matches("<img ").count(), 2 * 8);
    let json: Value = serde_json::from_str(&fs::read_to_string(at("x.json")).unwrap()).unwrap();
    assert_eq!(json["differences"], json!([{ "pointer": "/train/seed", "values": ["0", "1"] }]));
    let run = &json["runs"][0];
    assert_eq!((&run["name"], &run["finished"], &run["step"]), (&json!("first"), &json!(true), &json!(20)));
    for cost in ["nfe", "images_per_second", "seconds_per_step", "peak_memory_bytes", "parameters"] {
        assert!(cfg!(not(target_os = "linux")) || run["costs"][cost].as_f64() > Some(0.0), "{cost}: {run:#}");
    }
    assert!(fs::read_to_string(at("x.csv")).unwrap().contains("second,difference,/train/seed,,,,,1"));

    // The same noise and weights give the images that `sample` writes.
    let images = at("images");
    unguided(&[
        "sample",
        &at("first"),
        "--classes",
        "0",
        "--count",
        "1",
        "--images",
        &images,
        "--output",
        &at("grid.png"),
    ]);
    // The page's images have no texts.
    let sampled = image::open(Path::new(&images).join("000000-class-0.png")).unwrap().into_rgb8();
    let encoded = base64(&run_folder::picture::png(&sampled).unwrap());
    assert!(page.contains(&encoded), "the first image is not the one that `sample` writes");
}

/// Encodes bytes in base64, independently of the page.
fn base64(bytes: &[u8]) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        let letter = |i: usize| match i <= three.len() {
            true => char::from(letters[(bits >> (18 - 6 * i)) as usize & 63]),
            false => '=',
        };
        (0..4).map(letter).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[test]
fn a_report_that_cannot_be_written_does_not_lose_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let page = run.join("report.html");
    // A folder with the name of the page cannot be replaced by a file.
    fs::create_dir_all(page.join("in-the-way")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_unguided"))
        .args(["train", TINY, "--run", run.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(
        output.status.success() && said.contains("error: the run is complete, but its page is not written"),
        "{said}"
    );
    assert!(run.join("report.json").is_file() && run.join("samples.png").is_file());
    fs::remove_dir_all(&page).unwrap();
    unguided(&["compare", run.to_str().unwrap(), "--out", page.to_str().unwrap()]);
    assert!(fs::read_to_string(&page).unwrap().contains("run report"));
}

#[test]
fn what_cannot_be_compared_is_refused_and_what_is_unfinished_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let refused = |arguments: &[&str], says: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_unguided")).arg("compare").args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).to_string();
        assert_eq!(output.status.code(), Some(2), "{text}");
        says.iter().for_each(|part| assert!(text.contains(part), "{part} is not in\n{text}"));
    };
    let out = at("x.html");
    refused(&[&at("none"), "--out", &out], &["does not exist", "document.json"]);
    refused(&[folder.path().to_str().unwrap(), "--out", &out], &["is not the folder of a run", "fix"]);
    refused(&["README.md", "--out", &out], &["is not a folder"]);
    refused(&[&at("none"), "--out", &at("x.png")], &["does not end with .html"]);
    refused(&[&at("none"), "--out", &at("none/x.html")], &["does not exist"]);

    let run = at("run");
    train(Path::new(&run), &[]);
    refused(&[&run, &run, "--out", &out], &["is named twice"]);
    // A run that was stopped has no report yet.
    fs::remove_file(Path::new(&run).join("report.json")).unwrap();
    let said = unguided(&["compare", &run, "--out", &out]);
    assert!(said.contains("run is unfinished (step 20 of 20)"), "{said}");
    assert!(fs::read_to_string(&out).unwrap().contains("is unfinished"));
    // Runs without a checkpoint still have curves.
    fs::remove_dir_all(Path::new(&run).join("checkpoints")).unwrap();
    let other = at("other");
    train(Path::new(&other), &["--set", "/metrics=[]"]);
    let said = unguided(&["compare", &run, &other, "--out", &out]);
    assert!(said.contains("no checkpoint"), "{said}");
}

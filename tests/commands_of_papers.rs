//! The commands that measure or draw what the papers report: `cost` and `plane`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use unguided as _;

fn unguided(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unguided")).args(arguments).output().expect("the command starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn refused(arguments: &[&str], says: &str) {
    let output = unguided(arguments);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains(says), "{}", text(&output));
}

#[test]
fn cost_prints_ratios_to_cfg_next_to_the_published_ones() {
    let pair = |objective: &str| format!("examples/pipelines/pairs/dit-{objective}.json");
    let (gft, cfg, distill, cca, mg) = (pair("gft"), pair("cfg"), pair("distill"), pair("cca"), pair("mg"));
    let output = unguided(&["cost", &gft, &cfg, &distill, &cca, &mg, "--steps", "5"]);
    assert!(output.status.success(), "{}", text(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = |name: &str| -> Vec<String> {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {table}"));
        line.split_whitespace().map(String::from).collect()
    };
    // document, objective, ms/step, ratio, "low to high", paper, peak MiB, ratio, paper
    for (name, paper) in
        [("dit-cfg", ["1.00", "1.00"]), ("dit-gft", ["1.19", "1.00"]), ("dit-distill", ["1.42", "1.15"])]
    {
        let cells = row(name);
        assert_eq!([cells[7].as_str(), cells[10].as_str()], paper, "{cells:?}");
        assert!(cells[2].parse::<f64>().unwrap() > 0.0);
    }
    assert_eq!([row("dit-cca")[7].as_str(), row("dit-cca")[10].as_str()], ["2.01", "1.39"]);
    assert_eq!([row("dit-mg")[7].as_str(), row("dit-mg")[10].as_str()], ["-", "-"]);
    // The document of cfg is the baseline, wherever it is in the list.
    assert_eq!(row("dit-cfg")[3..7], ["1.00", "1.00", "to", "1.00"]);
    if cfg!(target_os = "linux") {
        assert!(row("dit-gft")[8].parse::<f64>().unwrap() > 10.0, "{table}");
        assert_eq!(row("dit-cfg")[9], "1.00");
    }
    let larger = "examples/pipelines/digits-dit-cfg-tiny.json";
    refused(&["cost", &gft, larger], "trains 4 samples per step");
    refused(&["cost", "absent.json"], "absent.json");
}

#[test]
fn plane_draws_a_run_on_points_and_refuses_others() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    for objective in ["cfg", "gft"] {
        let document = format!("examples/pipelines/points-dit-{objective}-tiny.json");
        let trained = unguided(&["train", &document, "--run", &at(objective)]);
        assert!(trained.status.success(), "{}", text(&trained));
        let picture = at(&format!("{objective}.png"));
        let drawn = unguided(&["plane", &at(objective), "--output", &picture, "--count", "30", "--trajectories", "5"]);
        assert!(drawn.status.success(), "{}", text(&drawn));
        assert!(text(&drawn).contains("class 1    mean log density"), "{}", text(&drawn));
        assert!(fs::metadata(Path::new(&picture)).unwrap().len() > 10_000);
    }
    let digits = "examples/pipelines/pairs/dit-cfg.json";
    let trained = unguided(&["train", digits, "--run", &at("digits")]);
    assert!(trained.status.success(), "{}", text(&trained));
    refused(&["plane", &at("digits"), "--output", &at("digits.png")], "has no points in the plane");
    assert!(!Path::new(&at("digits.png")).exists());
}

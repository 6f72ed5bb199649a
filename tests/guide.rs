//! The guide, as a reader follows it: in an empty folder, every file and every command of the page, in its order.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn every_command_of_the_guide_works_from_an_empty_folder() {
    let guide = fs::read_to_string("docs/write-an-objective.md").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let unguided = Path::new(env!("CARGO_BIN_EXE_unguided")).parent().unwrap();
    let path = std::env::join_paths(
        [unguided.to_path_buf()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let path = path.unwrap();
    let mut commands = 0;
    // Every second part lies between fences; its first line says what it is.
    for block in guide.split("```").skip(1).step_by(2) {
        let (what, text) = block.split_once('\n').unwrap();
        match what.split_once(' ') {
            Some((_, file)) => fs::write(folder.path().join(file), text).unwrap(),
            None if what == "sh" => {
                let run = Command::new("bash")
                    .args(["-euc", text])
                    .current_dir(&folder)
                    .env("PATH", &path)
                    .env_remove("UNGUIDED_PLUGINS")
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&run.stdout).to_string() + &String::from_utf8_lossy(&run.stderr);
                // A line behind `!` is one that must fail, which `set -e` does not look at.
                let refuted = !text.contains("\n! ") || said.contains("1 refuted") || said.contains("4 refuted");
                assert!(run.status.success() && refuted, "{text}\n{said}");
                commands += text.lines().count();
            }
            None => {}
        }
    }
    assert!(commands >= 15, "{commands}");
    assert!(folder.path().join("runs/late/samples.png").exists() && folder.path().join("samples.png").exists());
}

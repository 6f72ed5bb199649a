//! Plugins that fail while they run: the run ends with their name, and its last checkpoint is whole.

mod installed;

use installed::{done, text, train, unguided};
use std::fs;
use unguided as _;

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

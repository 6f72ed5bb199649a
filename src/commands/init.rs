//! `init`: writes a document for a folder of images or a published checkpoint, and says what training it costs.

use crate::console::{self, bytes};
use crate::init::estimate::{self, Speed};
use crate::init::options::InitOptions;
use crate::init::published::{self, Published};
use crate::init::questions::Questions;
use crate::init::recipes::{self, Choices, Recipe};
use crate::init::survey::{Survey, survey};
use crate::init::text;
use crate::memory::Needs;
use crate::{Outcome, outputs};
use framework::burn::tensor::Device;
use framework::checkpoint::tensor_file::write_atomically;
use framework::error::{Problem, Result};
use framework::pipeline::train_config::{CAPTION_ROWS, MOST_ROWS};
use registry::Registry;
use run_folder::document;
use run_folder::folder::RunFolder;
use run_folder::page::numbers::thousands;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Sides of the images that are offered for networks on pixels.
const SIDES: [usize; 4] = [8, 16, 32, 64];

/// Writes a document, or lists the recipes.
pub fn init(options: &InitOptions) -> Outcome {
    if options.list {
        for [name, needs, what] in recipes::ALL {
            console::print(&format!("{name:<13} {needs:<45} {what}"))?;
        }
        return Ok(());
    }
    let written = write(options)?;
    console::report(&format!("next         unguided check --data {}", written.display()));
    console::report(&format!("             unguided train {}", written.display()));
    Ok(())
}

/// Writes the document. Returns its path.
pub fn write(options: &InitOptions) -> Result<PathBuf> {
    let source = options.source.as_deref().expect("the arguments require a source or --list");
    let questions = Questions::new(options.yes);
    // A folder of images is a source by itself. A checkpoint needs images to train on.
    let is_checkpoint = source.is_file() || ["unet", "checkpoints"].iter().any(|name| source.join(name).is_dir());
    let (checkpoint, folder) = match (is_checkpoint, &options.data) {
        (true, Some(data)) => (Some(source), data.as_path()),
        (true, None) => {
            let what = format!("{} is a checkpoint; it needs images to train on", source.display());
            return Err(Problem::new("--data", what).fix("add --data FOLDER").into());
        }
        (false, Some(_)) => {
            let what = format!("{} is not a checkpoint, so --data has no effect", source.display());
            let accepts = "a checkpoint file, or the diffusers folder of Stable Diffusion";
            return Err(Problem::new("--data", what).accepts(accepts).into());
        }
        (false, None) => (None, source),
    };
    let output = output(options, folder)?;
    let found = survey(folder)?;
    found.lines().iter().for_each(|line| console::report(line));
    let objective = objective(options, questions)?;
    let mut choices = Choices { objective, backbone: String::new(), image_size: 0, steps: 1000 };
    let network = checkpoint.map(published::recognise).transpose()?;
    let recipe = match (&network, checkpoint) {
        (Some(network), Some(checkpoint)) => tune(options, &found, network, checkpoint, &mut choices)?,
        _ => scratch(options, questions, &found, &mut choices)?,
    };
    finish(options, questions, &*recipe, choices, &output)
}

/// Returns the path of the document, which must not exist.
fn output(options: &InitOptions, folder: &Path) -> Result<PathBuf> {
    let output = options.out.clone().unwrap_or_else(|| {
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        PathBuf::from(format!("{}.json", folder.file_name().unwrap_or("pipeline".as_ref()).to_string_lossy()))
    });
    if output.exists() && !options.force {
        let what = format!("{} already exists", output.display());
        return Err(Problem::new("--out", what)
            .fix("choose another file with --out, or overwrite it with --force")
            .into());
    }
    outputs::file("--out", &output, Some("json"))?;
    Ok(output)
}

fn objective(options: &InitOptions, questions: Questions) -> Result<String> {
    if let Some(objective) = &options.objective {
        return Ok(objective.clone());
    }
    let choices = [
        ("gft", "gft: one pass per step, any guidance scale when sampling (recommended)"),
        ("mg", "mg: one pass per step, one guidance scale, chosen now"),
        ("cfg", "cfg: classifier-free guidance, two passes per step"),
    ];
    let choices = choices.map(|(name, text)| (name.to_string(), text.to_string()));
    questions.choose("How should the network be guided?", choices.to_vec())
}

type Filled<'a> = Box<dyn Fn(&Choices) -> Result<Recipe> + 'a>;

/// Returns the recipe of a network from scratch.
fn scratch<'a>(
    options: &'a InitOptions,
    questions: Questions,
    found: &'a Survey,
    choices: &mut Choices,
) -> Result<Filled<'a>> {
    choices.backbone = options.backbone.clone().unwrap_or_else(|| "sit".to_string());
    if let Some(path) = &options.vae {
        if found.captions.is_some() {
            let what = "the recipe for latents needs class folders; the images have captions";
            return Err(Problem::new("--vae", what).fix("leave out --vae").into());
        }
        let vae = published::vae(path)?;
        choices.image_size = options.image_size.unwrap_or(256);
        if !choices.image_size.is_multiple_of(vae.factor) {
            let what = format!("{} pixels are not a multiple of {}", choices.image_size, vae.factor);
            let accepts = format!("a multiple of {}, the pixels per latent position", vae.factor);
            return Err(Problem::new("--image-size", what).accepts(accepts).into());
        }
        return Ok(Box::new(move |choices: &Choices| Ok(recipes::latents(found, choices, &vae))));
    }
    choices.image_size = match options.image_size {
        Some(size) => size,
        None => {
            let median = found.sides[1] as usize;
            let recommended = SIDES.into_iter().rfind(|side| *side <= median.min(32)).unwrap_or(SIDES[0]);
            let others = SIDES.into_iter().filter(|side| *side != recommended && *side <= median);
            let text =
                |side: usize| format!("{side} pixels{}", if side == recommended { " (recommended)" } else { "" });
            let sides = std::iter::once(recommended).chain(others).map(|side| (side, text(side)));
            questions.choose("How large should the images be?", sides.collect())?
        }
    };
    if found.captions.is_some() {
        if options.backbone.is_some() {
            let what = "the recipe for captions has a U-Net; --backbone has no effect";
            return Err(Problem::new("--backbone", what).fix("leave it out").into());
        }
        if !choices.image_size.is_multiple_of(4) {
            return Err(Problem::new("--image-size", "the U-Net halves the image twice")
                .accepts("multiples of 4")
                .into());
        }
        return Ok(Box::new(move |choices: &Choices| recipes::captions(found, choices)));
    }
    Ok(Box::new(move |choices: &Choices| Ok(recipes::small_images(found, choices))))
}

/// Returns the recipe that fine-tunes a published network.
fn tune<'a>(
    options: &'a InitOptions,
    found: &'a Survey,
    network: &'a Published,
    checkpoint: &'a Path,
    choices: &mut Choices,
) -> Result<Filled<'a>> {
    console::report(&format!("checkpoint   {}", recipes::described(network)));
    let refuse = |at: &str, what: &str, fix: &str| Err(Problem::new(at, what).fix(fix).into());
    match network {
        Published::Transformer { sizes, side, notes, .. } => {
            if found.captions.is_some() {
                return refuse("--data", "the network has classes; the images have captions", "use class folders");
            }
            let Some(path) = &options.vae else {
                return refuse("--vae", "the network reads latents of an autoencoder", "name it: --vae sd-vae-ft-ema");
            };
            let vae = published::vae(path)?;
            let is_sit =
                checkpoint.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().contains("sit"));
            let assumed = if is_sit { "sit" } else { "dit" };
            choices.backbone = options.backbone.clone().unwrap_or_else(|| {
                let other = if is_sit { "dit" } else { "sit" };
                console::report(&format!(
                    "             assumed \"{assumed}\" from its name; --backbone {other} otherwise"
                ));
                assumed.to_string()
            });
            notes.iter().for_each(|note| console::report(&format!("             {note}")));
            choices.image_size = options.image_size.unwrap_or(side * vae.factor);
            let (factor, mut sizes) = (vae.factor, sizes.clone());
            sizes.insert("input_size".to_string(), (choices.image_size / factor).into());
            let weights = weights(&sizes);
            Ok(Box::new(move |choices: &Choices| {
                Ok(recipes::own_classes(found, choices, &vae, (&sizes, weights), checkpoint))
            }))
        }
        Published::StableDiffusion { sizes, text, side } => {
            if found.captions.is_none() {
                return refuse(
                    "--data",
                    "the network reads captions; the images have none",
                    "write NAME.txt next to each",
                );
            }
            let vae = published::vae(options.vae.as_deref().unwrap_or(checkpoint))?;
            choices.image_size = options.image_size.unwrap_or(side * vae.factor);
            let mut sizes = sizes.clone();
            sizes.insert("sample_size".to_string(), (choices.image_size / vae.factor).into());
            Ok(Box::new(move |choices: &Choices| Ok(recipes::lora(found, choices, &vae, (&sizes, text), checkpoint))))
        }
    }
}

/// Estimates the weights of a transformer from its sizes: 12 width^2 per block, and 6 width^2 for its modulation.
fn weights(sizes: &Map<String, Value>) -> usize {
    let number = |key: &str| sizes.get(key).and_then(Value::as_u64).unwrap_or_default() as usize;
    18 * number("hidden_size").pow(2) * number("depth")
}

/// Fills the recipe, measures it, chooses the number of steps, and writes the document.
fn finish(
    options: &InitOptions,
    questions: Questions,
    recipe: &dyn Fn(&Choices) -> Result<Recipe>,
    mut choices: Choices,
    output: &Path,
) -> Result<PathBuf> {
    let name = output.display().to_string();
    let filled = |choices: &Choices| -> Result<(&'static str, String)> {
        let mut recipe = recipe(choices)?;
        for change in &options.set {
            overridden(&mut recipe, change)?;
        }
        Ok((recipe.name, text::document(&recipe.entries)))
    };
    let (_, draft) = filled(&choices)?;
    let speed = estimate::speed(&draft, &name, &Device::default())?;
    let minutes = match options.minutes {
        Some(minutes) => minutes,
        None => {
            let choice = |minutes: f64| (minutes, format!("{minutes} minutes"));
            questions.choose("How long may it train?", [10.0, 2.0, 30.0, 120.0, 480.0].map(choice).to_vec())?
        }
    };
    choices.steps = estimate::steps(minutes * 60.0, speed.step);
    let (recipe, text) = filled(&choices)?;
    // The document is checked as `check` does.
    let pipeline = document::from_text(&text, &[], &name)?;
    let schema = output.with_file_name("pipeline.schema.json");
    if !schema.exists() {
        let text = serde_json::to_string_pretty(Registry::linked().schema()).expect("a schema can be written");
        write_atomically(&schema, [text.as_bytes()])?;
    }
    write_atomically(output, [text.as_bytes()])?;
    let needs = Needs::of(&pipeline);
    let steps = pipeline.train.steps;
    console::report(&format!("recipe       {recipe}: {} parameters", thousands(needs.parameters)));
    console::report(&format!("wrote        {name}"));
    let Speed { step, image, is_measured } = speed;
    // Four grids during the training and one at its end, and the samples of the metrics.
    let rows = pipeline.backbone.accepts().num_classes().map_or(CAPTION_ROWS, |classes| classes.min(MOST_ROWS));
    let samples = 5 * rows * pipeline.train.sample_columns + pipeline.train.metric_samples;
    let sampled = samples as f64 * image;
    let how = if is_measured { "measured on this machine" } else { "estimated for this machine" };
    let (train, sample) = (estimate::duration(step * steps as f64), estimate::duration(sampled));
    console::report(&format!(
        "time         about {train} for {} steps ({how}), then {sample} to sample",
        thousands(steps)
    ));
    let run = RunFolder::default_path(output);
    console::report(&format!(
        "memory       about {}; disk about {} in {}",
        bytes(needs.training() + needs.frozen()),
        bytes(estimate::disk(&pipeline)),
        run.display()
    ));
    Ok(output.to_path_buf())
}

/// Applies `/POINTER=VALUE` to the entries of a recipe.
fn overridden(recipe: &mut Recipe, change: &str) -> Result<()> {
    let Some((pointer, new)) = change.split_once('=') else {
        return Err(Problem::new("--set", format!("{change} has no `=`")).accepts("--set /POINTER=VALUE").into());
    };
    let known: Vec<&str> = recipe.entries.iter().map(|(key, ..)| *key).collect();
    if !known.iter().any(|key| pointer == format!("/{key}") || pointer.starts_with(&format!("/{key}/"))) {
        let accepts = known.iter().map(|key| format!("/{key}")).collect::<Vec<_>>().join(", ");
        return Err(Problem::new("--set", format!("the document has no {pointer}")).accepts(accepts).into());
    }
    let entries = recipe.entries.iter().map(|(key, _, value)| ((*key).to_string(), value.clone()));
    let mut value = Value::Object(entries.collect());
    registry::set(&mut value, pointer, new)?;
    for (key, _, entry) in &mut recipe.entries {
        *entry = value[*key].take();
    }
    Ok(())
}

//! `forward` and `convert`: run and convert official checkpoints.

use crate::arguments::{ConvertOptions, ForwardOptions};
use crate::commands::convert_parts;
use crate::{Outcome, console, device, outputs};
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, Device, Tensor, TensorData};
use framework::checkpoint::Checkpoint;
use framework::checkpoint::container::Container;
use framework::checkpoint::file_kind::file_kind;
use framework::checkpoint::names;
use framework::checkpoint::official::{self, CheckpointSource};
use framework::checkpoint::open;
use framework::checkpoint::tensor_file;
use framework::error::{Error, Problem, Result};
use framework::network::backbone::{Backbone, Control};
use framework::network::condition::{Condition, ConditionShape};
use framework::nn::{from_positions, to_positions};
use framework::process::patches::Patches;
use framework::process::{Family, Input};
use run_folder::parts::Parts;
use run_folder::weights;

/// Runs the backbone or the tokenizer once.
pub fn forward(options: &ForwardOptions) -> Outcome {
    outputs::file("--output", &options.output, None)?;
    let checkpoint = match &options.checkpoint {
        Some(checkpoint) if !options.tokenizer => checkpoint,
        _ => return convert_parts::forward(options),
    };
    let device = device::named(options.device.as_deref())?;
    let backbone = Parts::read(&options.pipeline, &[])?.backbone()?;
    let (network, report) = weights::weights(&*backbone, 0, &CheckpointSource::of(checkpoint), &device)?;
    console::say(&report.to_string());
    let file = open::open(&options.input)?;
    let get = |name: &str| -> Result<Option<TensorData>> {
        let tensor = file.get(name).map(bridge::to_data).transpose();
        tensor.map_err(|e| Error::Run(format!("{}: `{name}`: {e}", options.input.display())))
    };
    let missing = |name: &str, what: &str| {
        Error::from(Problem::new("", format!("{} has no tensor `{name}`", options.input.display())).accepts(what))
    };
    let numbers =
        |data: TensorData| data.convert::<f64>().try_into_vec::<f64>().map_err(|e| Error::Run(format!("{e:?}")));
    let latent = backbone.latent_shape();
    let shaped = |name: &str, data: &TensorData, expected: &[usize]| {
        let shape = data.shape().to_vec();
        if shape.len() > 1 && shape[1..] == *expected {
            return Ok(shape[0]);
        }
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        Err(Error::from(
            Problem::new(options.input.display().to_string(), format!("`{name}` has shape {shape:?}"))
                .accepts(format!("[B, {}]", expected.join(", "))),
        ))
    };
    let (batch, input) = match backbone.process().family() {
        Family::Continuous => {
            let x = get("x")?.ok_or_else(|| missing("x", "x [B,C,H,W]"))?;
            let batch = shaped("x", &x, &[latent.channels, latent.grid[0], latent.grid[1]])?;
            let t = numbers(get("t")?.ok_or_else(|| missing("t", "t [B], in the checkpoint's own units"))?)?;
            if t.len() != batch {
                let what = format!("`t` contains {} times for {batch} samples", t.len());
                return Err(Problem::new(options.input.display().to_string(), what).accepts("t [B]").into());
            }
            let x = Tensor::<4>::from_data(x.convert_dtype(DType::F32), &device);
            let t = t.into_iter().map(|t| backbone.t_of_native(t)).collect();
            (batch, Input::Noisy { x_t: to_positions(x), t })
        }
        Family::NextToken => {
            let ids = get("ids")?.ok_or_else(|| missing("ids", "ids [B,L], the tokens in decoding order"))?;
            let batch = shaped("ids", &ids, &[latent.positions()])?;
            (batch, Input::Tokens { ids: Tensor::from_data(ids.convert_dtype(DType::I64), &device) })
        }
        Family::NextLevel => {
            let features = get("features")?.ok_or_else(|| {
                missing(
                    "features",
                    "features [B,L,C], the input features of each position; the first level may be omitted",
                )
            })?;
            let (positions, first) = (latent.positions(), latent.levels[0] * latent.levels[0]);
            let given = features.shape().to_vec().get(1).copied().unwrap_or_default();
            let expected = if given + first == positions { given } else { positions };
            let batch = shaped("features", &features, &[expected, latent.channels])?;
            let mut features = Tensor::<3>::from_data(features.convert_dtype(DType::F32), &device);
            if given < positions {
                let unread = Tensor::zeros([batch, first, latent.channels], &device);
                features = Tensor::cat(vec![unread, features], 1);
            }
            (batch, Input::Levels { features })
        }
        Family::Masked => {
            let x = get("x")?.ok_or_else(|| missing("x", "x [B,C,H,W]"))?;
            let batch = shaped("x", &x, &[latent.channels, latent.grid[0], latent.grid[1]])?;
            let t = numbers(get("t")?.ok_or_else(|| missing("t", "t [B,L], the head's times"))?)?;
            let t = t.into_iter().map(|t| backbone.t_of_native(t)).collect();
            let x = to_positions(Tensor::<4>::from_data(x.convert_dtype(DType::F32), &device));
            let patches = backbone.process().head().expect("a masked process has a head").patches;
            let tensor = |name: &str, what: &str| get(name)?.ok_or_else(|| missing(name, what));
            (batch, masked(patches, x, t, &tensor, &options.input.display().to_string())?)
        }
    };
    let condition = match backbone.accepts().condition {
        ConditionShape::Class { count } => {
            let y = get("y")?.ok_or_else(|| missing("y", "y [B], the class; num_classes = null"))?;
            let class = |y: f64| match y {
                y if y.fract() != 0.0 || !(0.0..=count as f64).contains(&y) => {
                    let problem = Problem::new(options.input.display().to_string(), format!("`y` contains {y}"));
                    Err(Error::from(problem.accepts(format!("classes 0 to {}, or {count} for null", count - 1))))
                }
                y => Ok(Some(y as usize).filter(|class| *class < count)),
            };
            Condition::Class(numbers(y)?.into_iter().map(class).collect::<Result<_>>()?)
        }
        ConditionShape::Tokens { vocabulary, .. } => {
            let tokens = get("tokens")?.ok_or_else(|| missing("tokens", "tokens [B,L], the text's token ids"))?;
            let length = tokens.shape().to_vec().get(1).copied().unwrap_or(1).max(1);
            let accepts = || format!("ids from 0 to {}", vocabulary.saturating_sub(1));
            let id = |id: f64| {
                if id.fract() == 0.0 && (0.0..vocabulary as f64).contains(&id) {
                    return Ok(id as usize);
                }
                let problem = Problem::new(options.input.display().to_string(), format!("`tokens` contains {id}"));
                Err(Error::from(problem.accepts(accepts())))
            };
            let ids = numbers(tokens)?.into_iter().map(id).collect::<Result<Vec<usize>>>()?;
            Condition::Tokens { ids: ids.chunks(length).map(<[usize]>::to_vec).collect(), null: vec![0; length] }
        }
        ConditionShape::Text { .. } => {
            let context = get("context")?.ok_or_else(|| missing("context", "context [B,L,D], the text's features"))?;
            let features = Tensor::<3>::from_data(context.convert_dtype(DType::F32), &device);
            let null = Tensor::zeros_like(&features.clone().narrow(0, 0, 1));
            Condition::Text { features, null, dropped: vec![false; batch] }
        }
        ConditionShape::None => Condition::None(batch),
    };
    let control = Control::guided(get("beta")?.map(numbers).transpose()?);
    if control.guidance.is_some() && !backbone.accepts().guidance_input {
        return Err(Error::from(Problem::new(
            format!("{} and /backbone{}", options.input.display(), backbone.accepts().guidance_field),
            "`beta` has no effect: the backbone reads no guidance number",
        )));
    }
    if condition.len() != batch || control.guidance.as_ref().is_some_and(|numbers| numbers.len() != batch) {
        return Err(Error::from(
            Problem::new(
                options.input.display().to_string(),
                format!("the number of conditions or guidance numbers differs from the number of samples, {batch}"),
            )
            .accepts("one per sample"),
        ));
    }
    let prediction = backbone.to_native(network.predict(&input, &condition, &control));
    let prediction = match input {
        Input::Noisy { .. } => from_positions(prediction, latent.grid).into_data(),
        _ => prediction.into_data(),
    };
    tensor_file::save_tensors(&[("prediction".to_string(), prediction)], &options.output)?;
    Ok(())
}

/// Builds a masked input in which the head predicts every token, hidden or not. `tensor` reads a tensor from the input
/// file; its second argument is the description for the error message.
fn masked(
    patches: Patches,
    x: Tensor<3>,
    t: Vec<f64>,
    tensor: &dyn Fn(&str, &str) -> Result<TensorData>,
    file: &str,
) -> Result<Input> {
    let x = patches.cut(x);
    let [batch, tokens, width] = x.dims();
    let mask = tensor("mask", "mask [B,L], 1 = hidden, with the same count per sample")?;
    let noise = tensor("noise", "noise [B,L,D], the head's noisy tokens")?;
    let wrong = |name: &str, accepts: String| {
        Error::from(Problem::new(file, format!("`{name}` has the wrong shape or content")).accepts(accepts))
    };
    if t.len() != batch * tokens {
        return Err(wrong("t", format!("{:?}, one time per token", [batch, tokens])));
    }
    if noise.shape().to_vec() != [batch, tokens, width] {
        return Err(wrong("noise", format!("{:?}", [batch, tokens, width])));
    }
    let hidden: Vec<bool> = mask.iter::<f64>().map(|hidden| hidden != 0.0).collect();
    let count = |mask: &[bool]| mask.iter().filter(|hidden| **hidden).count();
    let same = |mask: &[bool]| count(mask) == count(&hidden[..tokens]);
    if hidden.len() != batch * tokens || !hidden.chunks(tokens).all(same) {
        return Err(wrong("mask", format!("{:?}, with the same number of ones per sample", [batch, tokens])));
    }
    let places = (0..batch).flat_map(|_| 0..tokens).collect();
    let x_t = Tensor::from_data(noise.convert_dtype(DType::F32), &x.device());
    Ok(Input::Masked { x, hidden, places, x_t, t })
}

/// The value of `--to` for a native checkpoint.
const NATIVE: &str = "native";

/// Converts a checkpoint between its published formats and the native one.
pub fn convert(options: &ConvertOptions) -> Outcome {
    // Check input and output before any work.
    if options.input.exists() && !options.input.is_dir() {
        file_kind(&options.input)?;
    }
    outputs::file("OUTPUT", &options.output, None)?;
    let container = output_container(options)?;
    if options.tokenizer || options.conditioner {
        return convert_parts::convert(options);
    }
    let device = Device::flex();
    let parts = Parts::read(&options.pipeline, &[])?;
    let backbone = parts.backbone()?;
    let formats = backbone.formats();
    if let Some(to) = options.to.as_deref().filter(|to| *to != NATIVE) {
        names::format(&formats, Some(to))?;
    }
    let (network, report) = weights::weights_to_train(&*backbone, 0, &CheckpointSource::of(&options.input), &device)?;
    let from_native = report.format.is_empty();
    let to = options.to.as_deref().unwrap_or(if from_native { formats[0].format } else { NATIVE });
    if to == NATIVE {
        if container != Container::Safetensors {
            let what = format!("{}: a native checkpoint is safetensors", options.output.display());
            let fix = "end the file name with .safetensors, or choose a published format with --to";
            return Err(Problem::new("--to native", what).accepts(".safetensors").fix(fix).into());
        }
        let model = framework::nn::parameters::export(&network);
        Checkpoint { document: parts.document(), model, ..Checkpoint::default() }.save(&options.output)?;
    } else {
        official::save(&network, names::format(&formats, Some(to))?, &options.output)?;
    }
    console::report(&report.to_string());
    console::report(&options.output.display().to_string());
    Ok(())
}

/// Checks the output of `convert` before any work, and returns its container.
fn output_container(options: &ConvertOptions) -> Result<Container> {
    let output = &options.output;
    let container = Container::of(output)?;
    if output.exists() && !options.force {
        let problem = Problem::new("OUTPUT", format!("{} exists already", output.display()));
        return Err(problem.accepts("the name of a new file").fix("choose another name, or add --force").into());
    }
    Ok(container)
}

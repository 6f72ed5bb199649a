//! `forward` and `convert`: official checkpoints in and out.

use crate::arguments::{ConvertOptions, Format, ForwardOptions};
use crate::{Failure, Outcome, document, start};
use framework::backbone::{Backbone, Control};
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, Device, Tensor, TensorData};
use framework::checkpoint::{self, Checkpoint};
use framework::condition::Condition;
use framework::foreign;
use framework::masked::Patches;
use framework::process::Input;

/// Runs the backbone once.
pub fn forward(options: &ForwardOptions) -> Outcome {
    let device = document::device(options.device.as_deref())?;
    let pipeline = document::read(&options.pipeline, &[])?;
    let (network, report) = start::weights(&pipeline, &options.checkpoint, &device)?;
    eprintln!("{report}");
    let file = foreign::open(&options.input)?;
    let get = |name: &str| -> Result<Option<TensorData>, Failure> {
        let tensor = file.get(name).map(bridge::to_data).transpose();
        tensor.map_err(|e| Failure::Run(format!("error: {}: `{name}`: {e}", options.input.display())))
    };
    let missing = |name: &str, what: &str| {
        Failure::Input(format!("error: {} holds no `{name}`\n  accepts  {what}", options.input.display()))
    };
    let numbers = |data: TensorData| {
        data.convert::<f64>().try_into_vec::<f64>().map_err(|e| Failure::Run(format!("error: {e:?}")))
    };
    let x = get("x")?.ok_or_else(|| missing("x", "x [B,C,H,W]"))?;
    let t = numbers(get("t")?.ok_or_else(|| missing("t", "t [B], in the checkpoint's own units"))?)?;
    let shape = x.shape().to_vec();
    let latent = pipeline.latent_shape();
    let process = pipeline.process();
    let patches = process.head().map(|head| head.patches);
    let batch = t.len() / patches.map_or(1, |patches| patches.tokens());
    let expected = [batch, latent.channels, latent.grid[0], latent.grid[1]];
    if shape != expected {
        return Err(Failure::Input(format!(
            "error: `x` is {shape:?}\n  at       {}\n  accepts  {expected:?}",
            options.input.display()
        )));
    }
    let num_classes = pipeline.backbone.accepts().num_classes;
    let condition = match (get("y")?, num_classes) {
        (Some(y), Some(n)) => Condition::Class(
            numbers(y)?.into_iter().map(|class| Some(class as usize).filter(|class| *class < n)).collect(),
        ),
        (None, Some(_)) => return Err(missing("y", "y [B], the class; num_classes = null")),
        _ => Condition::None(batch),
    };
    let control = Control::guided(get("beta")?.map(numbers).transpose()?);
    if control.guidance.is_some() && !pipeline.backbone.accepts().guidance_input {
        return Err(Failure::Input(format!(
            "error: `beta` has no effect: the backbone takes no guidance number\n  at       {} and /backbone{}",
            options.input.display(),
            pipeline.backbone.accepts().guidance_field,
        )));
    }
    let x = Tensor::<4>::from_data(x.convert_dtype(DType::F32), &device);
    let t = t.into_iter().map(|t| pipeline.backbone.t_of_native(t)).collect();
    let prediction = match patches {
        Some(patches) => {
            let tensor = |name: &str, what: &str| get(name)?.ok_or_else(|| missing(name, what));
            let input = masked(patches, to_positions(x), t, &tensor)?;
            network.predict(&input, &condition, &control).into_data()
        }
        None => {
            let prediction = network.predict(&Input::Noisy { x_t: to_positions(x), t }, &condition, &control);
            from_positions(prediction, latent.grid).into_data()
        }
    };
    foreign::save_tensors(&[("prediction".to_string(), prediction)], &options.output)?;
    Ok(())
}

/// Masked tokens, of which the head predicts all. `tensor` reads one from the input file, or says what it lacks.
fn masked(
    patches: Patches,
    x: Tensor<3>,
    t: Vec<f64>,
    tensor: &dyn Fn(&str, &str) -> Result<TensorData, Failure>,
) -> Result<Input, Failure> {
    let x = patches.cut(x);
    let [batch, tokens, width] = x.dims();
    let mask = tensor("mask", "mask [B,L], 1 = hidden, as many of each sample")?;
    let noise = tensor("noise", "noise [B,L,D], the head's noisy tokens")?;
    let wrong = |name: &str, accepts: String| Failure::Input(format!("error: `{name}` is wrong\n  accepts  {accepts}"));
    if t.len() != batch * tokens {
        return Err(wrong("t", format!("{:?}, a time of each token", [batch, tokens])));
    }
    if noise.shape().to_vec() != [batch, tokens, width] {
        return Err(wrong("noise", format!("{:?}", [batch, tokens, width])));
    }
    let hidden: Vec<bool> = mask.iter::<f64>().map(|hidden| hidden != 0.0).collect();
    let count = |mask: &[bool]| mask.iter().filter(|hidden| **hidden).count();
    let same = |mask: &[bool]| count(mask) == count(&hidden[..tokens]);
    if hidden.len() != batch * tokens || !hidden.chunks(tokens).all(same) {
        return Err(wrong("mask", format!("{:?}, as many ones of each sample", [batch, tokens])));
    }
    let places = (0..batch).flat_map(|_| 0..tokens).collect();
    let x_t = Tensor::from_data(noise.convert_dtype(DType::F32), &x.device());
    Ok(Input::Masked { x, hidden, places, x_t, t })
}

/// `[B, C, H, W]` to `[B, H W, C]`.
fn to_positions(x: Tensor<4>) -> Tensor<3> {
    let [batch, channels, height, width] = x.dims();
    x.permute([0, 2, 3, 1]).reshape([batch, height * width, channels])
}

/// `[B, H W, C]` to `[B, C, H, W]`.
fn from_positions(x: Tensor<3>, grid: [usize; 2]) -> Tensor<4> {
    let [batch, _, channels] = x.dims();
    x.reshape([batch, grid[0], grid[1], channels]).permute([0, 3, 1, 2])
}

/// Converts between the official and the native format.
pub fn convert(options: &ConvertOptions) -> Outcome {
    let device = Device::flex();
    let pipeline = document::read(&options.pipeline, &[])?;
    let native = checkpoint::metadata(&options.input)?.is_some();
    let (network, report) = start::weights(&pipeline, &options.input, &device)?;
    let to = options.to.unwrap_or(if native { Format::Official } else { Format::Native });
    match to {
        Format::Official => foreign::save(&network, &pipeline.backbone.foreign_names(), &options.output)?,
        Format::Native => {
            let model = framework::weights::export(&network);
            Checkpoint { document: pipeline.document.clone(), model, ..Checkpoint::default() }.save(&options.output)?;
        }
    }
    println!("{report}");
    println!("{}", options.output.display());
    Ok(())
}

//! `forward` and `convert`: official checkpoints in and out.

use crate::arguments::{ConvertOptions, ForwardOptions};
use crate::{Failure, Outcome, document, start, tokenize};
use framework::backbone::{Backbone, Control};
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, Device, Tensor, TensorData};
use framework::checkpoint::Checkpoint;
use framework::condition::{Condition, ConditionKind};
use framework::foreign::{self, Source};
use framework::masked::Patches;
use framework::nn::{from_positions, to_positions};
use framework::process::{Family, Input};

/// Runs the backbone, or the tokenizer, once.
pub fn forward(options: &ForwardOptions) -> Outcome {
    let checkpoint = match &options.checkpoint {
        Some(checkpoint) if !options.tokenizer => checkpoint,
        _ => return tokenize::forward(options),
    };
    let device = document::device(options.device.as_deref())?;
    let pipeline = document::read(&options.pipeline, &[])?;
    let (network, report) = start::weights(&pipeline, &Source::of(checkpoint), &device)?;
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
    let latent = pipeline.latent_shape();
    let shaped = |name: &str, data: &TensorData, expected: &[usize]| {
        let shape = data.shape().to_vec();
        if shape[1..] == *expected {
            return Ok(shape[0]);
        }
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        Err(Failure::Input(format!(
            "error: `{name}` is {shape:?}\n  at       {}\n  accepts  [B, {}]",
            options.input.display(),
            expected.join(", ")
        )))
    };
    let (batch, input) = match pipeline.process().family() {
        Family::Continuous => {
            let x = get("x")?.ok_or_else(|| missing("x", "x [B,C,H,W]"))?;
            let batch = shaped("x", &x, &[latent.channels, latent.grid[0], latent.grid[1]])?;
            let t = numbers(get("t")?.ok_or_else(|| missing("t", "t [B], in the checkpoint's own units"))?)?;
            if t.len() != batch {
                let what = format!("error: `t` holds {} times for {batch} samples", t.len());
                return Err(Failure::Input(format!(
                    "{what}\n  at       {}\n  accepts  t [B]",
                    options.input.display()
                )));
            }
            let x = Tensor::<4>::from_data(x.convert_dtype(DType::F32), &device);
            let t = t.into_iter().map(|t| pipeline.backbone.t_of_native(t)).collect();
            (batch, Input::Noisy { x_t: to_positions(x), t })
        }
        Family::NextToken => {
            let ids = get("ids")?.ok_or_else(|| missing("ids", "ids [B,L], the tokens from the first on"))?;
            let batch = shaped("ids", &ids, &[latent.positions()])?;
            (batch, Input::Tokens { ids: Tensor::from_data(ids.convert_dtype(DType::I64), &device) })
        }
        Family::NextLevel => {
            let features = get("features")?.ok_or_else(|| {
                missing(
                    "features",
                    "features [B,L,C], what feeds each position; those of the first level may be left out",
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
            let t = t.into_iter().map(|t| pipeline.backbone.t_of_native(t)).collect();
            let x = to_positions(Tensor::<4>::from_data(x.convert_dtype(DType::F32), &device));
            let patches = pipeline.process().head().expect("a masked process has a head").patches;
            let tensor = |name: &str, what: &str| get(name)?.ok_or_else(|| missing(name, what));
            (batch, masked(patches, x, t, &tensor)?)
        }
    };
    let num_classes = pipeline.backbone.accepts().num_classes;
    let condition = match (get("y")?, num_classes) {
        (Some(y), Some(n)) => Condition::Class(
            numbers(y)?.into_iter().map(|class| Some(class as usize).filter(|class| *class < n)).collect(),
        ),
        (None, Some(_)) => return Err(missing("y", "y [B], the class; num_classes = null")),
        (None, None) if pipeline.backbone.accepts().condition == ConditionKind::Tokens => {
            let tokens = get("tokens")?.ok_or_else(|| missing("tokens", "tokens [B,L], the text's token ids"))?;
            let length = tokens.shape().to_vec().get(1).copied().unwrap_or(1).max(1);
            let ids: Vec<usize> = numbers(tokens)?.into_iter().map(|id| id.max(0.0) as usize).collect();
            let accepted = pipeline.backbone.accepts().text_width.unwrap_or_default();
            if let Some(id) = ids.iter().find(|id| **id >= accepted) {
                let what = format!("error: `tokens` holds {id}\n  at       {}", options.input.display());
                return Err(Failure::Input(format!("{what}\n  accepts  ids from 0 to {}", accepted.saturating_sub(1))));
            }
            Condition::Tokens { ids: ids.chunks(length).map(<[usize]>::to_vec).collect(), null: vec![0; length] }
        }
        (None, None) if pipeline.backbone.accepts().condition == ConditionKind::Text => {
            let context = get("context")?.ok_or_else(|| missing("context", "context [B,L,D], the text's features"))?;
            let features = Tensor::<3>::from_data(context.convert_dtype(DType::F32), &device);
            let null = Tensor::zeros_like(&features.clone().narrow(0, 0, 1));
            Condition::Text { features, null, dropped: vec![false; batch] }
        }
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
    if condition.len() != batch || control.guidance.as_ref().is_some_and(|numbers| numbers.len() != batch) {
        return Err(Failure::Input(format!(
            "error: conditions or guidance numbers are not as many as samples, {batch}\n  at       {}\n  accepts  one a sample",
            options.input.display()
        )));
    }
    let prediction = pipeline.backbone.to_native(network.predict(&input, &condition, &control));
    let prediction = match input {
        Input::Noisy { .. } => from_positions(prediction, latent.grid).into_data(),
        _ => prediction.into_data(),
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

/// What `--to` calls a checkpoint of ours.
const NATIVE: &str = "native";

/// Converts between the published formats and the native one.
pub fn convert(options: &ConvertOptions) -> Outcome {
    if options.tokenizer || options.conditioner {
        return tokenize::convert(options);
    }
    let device = Device::flex();
    let pipeline = document::read(&options.pipeline, &[])?;
    let (network, report) = start::weights(&pipeline, &Source::of(&options.input), &device)?;
    let formats = pipeline.backbone.formats();
    let from_native = report.format.is_empty();
    let to = options.to.as_deref().unwrap_or(if from_native { formats[0].format } else { NATIVE });
    if to == NATIVE {
        let model = framework::weights::export(&network);
        Checkpoint { document: pipeline.document.clone(), model, ..Checkpoint::default() }.save(&options.output)?;
    } else {
        foreign::save(&network, foreign::format(&formats, Some(to)).map_err(Failure::Input)?, &options.output)?;
    }
    println!("{report}");
    println!("{}", options.output.display());
    Ok(())
}

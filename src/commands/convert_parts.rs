//! `forward --tokenizer`, `convert --tokenizer` and `convert --conditioner`: their official files in and out.

use crate::arguments::{ConvertOptions, ForwardOptions};
use crate::{Failure, Outcome, document};
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, Device, Int, Tensor, TensorData};
use framework::error::Problems;
use framework::foreign;
use framework::nn::{from_positions, to_positions};
use framework::pipeline::Pipeline;
use framework::process::{Latent, LatentShape};
use framework::tokenizer::ImageShape;
use std::path::Path;

/// What `forward` reads.
struct Inputs<'a> {
    path: &'a Path,
    img: Option<TensorData>,
    latent: Option<TensorData>,
    indices: Option<TensorData>,
}

impl<'a> Inputs<'a> {
    fn read(path: &'a Path) -> Result<Self, Failure> {
        let file = foreign::open(path)?;
        let get = |name: &str| -> Result<Option<TensorData>, Failure> {
            let tensor = file.get(name).map(bridge::to_data).transpose();
            tensor.map_err(|e| Failure::Run(format!("error: {}: `{name}`: {e}", path.display())))
        };
        Ok(Self { path, img: get("img")?, latent: get("latent")?, indices: get("indices")? })
    }

    fn refuse(&self, what: &str, accepts: &str) -> Failure {
        Failure::Input(format!("error: {what}\n  at       {}\n  accepts  {accepts}", self.path.display()))
    }

    /// A tensor `[B, C, H, W]`.
    fn image(&self, name: &str, data: &TensorData, device: &Device) -> Result<Tensor<4>, Failure> {
        match data.shape().to_vec()[..] {
            [_, _, _, _] => Ok(Tensor::from_data(data.clone().convert_dtype(DType::F32), device)),
            ref other => Err(self.refuse(&format!("`{name}` is {other:?}"), &format!("{name} [B,C,H,W]"))),
        }
    }

    /// Ids `[B, L]`, each below the vocabulary. One dimension is taken for samples one after another.
    fn ids(&self, data: &TensorData, shape: &LatentShape, device: &Device) -> Result<Tensor<2, Int>, Failure> {
        let length = shape.positions();
        let Some(vocabulary) = shape.vocabulary else {
            return Err(
                self.refuse("`indices` are tokens, and the tokenizer makes numbers", "img, or latent [B,C,H,W]")
            );
        };
        let found = data.shape().to_vec();
        let batch = match found[..] {
            [all] if all % length == 0 => all / length,
            [batch, each] if each == length => batch,
            _ => {
                let accepts = format!("indices [B, {length}], as the document's images of {:?} have", shape.grid);
                return Err(self.refuse(&format!("`indices` is {found:?}"), &accepts));
            }
        };
        let ids = data.clone().convert::<i64>().try_into_vec::<i64>().map_err(|e| Failure::Run(format!("{e:?}")))?;
        match ids.iter().find(|id| !(0..vocabulary as i64).contains(id)) {
            Some(id) => {
                Err(self.refuse(&format!("`indices` holds {id}"), &format!("ids from 0 to {}", vocabulary - 1)))
            }
            None => Ok(Tensor::from_data(TensorData::new(ids, [batch, length]), device)),
        }
    }
}

/// Runs the tokenizer once: encodes `img`, or takes `latent` or `indices`, and decodes.
pub fn forward(options: &ForwardOptions) -> Outcome {
    let device = document::device(options.device.as_deref())?;
    let path = options.checkpoint.iter().map(|path| format!("/tokenizer/path={}", serde_json::json!(path)));
    let mut pipeline = document::read(&options.pipeline, &path.collect::<Vec<_>>())?;
    pipeline.tokenizer.load(&device)?;
    let inputs = Inputs::read(&options.input)?;
    let (latent, image, mut outputs) = latent(&pipeline, options, &inputs, &device)?;
    let decoded = pipeline.decode(latent, image)?;
    outputs.push(("decoded".to_string(), decoded.into_data()));
    foreign::save_tensors(&outputs, &options.output)?;
    Ok(())
}

/// A latent, the image it stands for, and what is written of it.
type Made = (Latent, ImageShape, Vec<(String, TensorData)>);

/// The latent to decode, made from an image or read.
fn latent(
    pipeline: &Pipeline,
    options: &ForwardOptions,
    inputs: &Inputs<'_>,
    device: &Device,
) -> Result<Made, Failure> {
    let tokenizer = &pipeline.tokenizer;
    let refused = |problems: Problems| {
        let name = options.pipeline.display().to_string();
        let all = problems.into_iter().map(|problem| problem.under("/tokenizer").display(&name).to_string());
        Failure::Input(all.collect::<Vec<_>>().join("\n"))
    };
    if let Some(img) = &inputs.img {
        let images = inputs.image("img", img, device)?;
        let [_, channels, height, width] = images.dims();
        let image = [channels, height, width];
        let shape = tokenizer.latent_shape(image).map_err(refused)?;
        let latent = pipeline.encode(images)?;
        let outputs = written(&latent, &shape);
        return Ok((latent, image, outputs));
    }
    if let Some(latent) = &inputs.latent {
        let x = inputs.image("latent", latent, device)?;
        let [_, channels, height, width] = x.dims();
        let image = tokenizer.image_shape(LatentShape::values([height, width], channels));
        let shape = tokenizer.latent_shape(image).map_err(refused)?;
        if shape != LatentShape::values([height, width], channels) {
            let accepts = match shape.vocabulary {
                Some(_) => "img, or indices [B,L]".to_string(),
                None => format!("latent [B, {}, H, W]", shape.channels),
            };
            return Err(inputs.refuse(&format!("`latent` is {:?}", x.dims()), &accepts));
        }
        return Ok((Latent::Values(to_positions(x)), image, Vec::new()));
    }
    let Some(indices) = &inputs.indices else {
        return Err(inputs
            .refuse("it holds none of `img`, `latent`, `indices`", "img [B,C,H,W] in [-1,1], or one of the others"));
    };
    let image = pipeline.image_shape();
    let shape = tokenizer.latent_shape(image).map_err(refused)?;
    Ok((Latent::Ids(inputs.ids(indices, &shape, device)?), image, Vec::new()))
}

/// A latent under the names of the reference code.
fn written(latent: &Latent, shape: &LatentShape) -> Vec<(String, TensorData)> {
    let indices = |ids: &Tensor<2, Int>| ("indices".to_string(), ids.clone().into_data().convert::<i64>());
    match latent {
        Latent::Values(x) => vec![("latent".to_string(), from_positions(x.clone(), shape.grid).into_data())],
        Latent::Ids(ids) => vec![indices(ids)],
        Latent::Levels { ids, features } => {
            // Those of the first level are never read.
            let first = shape.levels[0] * shape.levels[0];
            let rest = features.clone().narrow(1, first, shape.positions() - first);
            vec![indices(ids), ("var_input".to_string(), rest.into_data())]
        }
    }
}

/// Writes the weights of an official tokenizer or conditioner as safetensors, under the names of one of its formats.
pub fn convert(options: &ConvertOptions) -> Outcome {
    let pipeline = document::read(&options.pipeline, &[])?;
    let (part, to) = (if options.conditioner { "conditioner" } else { "tokenizer" }, options.to.as_deref());
    let report = match (&pipeline.conditioner, options.conditioner) {
        (Some(conditioner), true) => conditioner.convert(&options.input, &options.output, to)?,
        (None, true) => None,
        (_, false) => pipeline.tokenizer.convert(&options.input, &options.output, to)?,
    };
    match report {
        Some(report) => {
            println!("{report}");
            println!("{}", options.output.display());
            Ok(())
        }
        None => Err(Failure::Input(format!(
            "error: the {part} has no weights to convert\n  at       {}  /{part}\n  accepts  a {part} that is read from a file",
            options.pipeline.display()
        ))),
    }
}

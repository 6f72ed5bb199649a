//! `forward --tokenizer`, `convert --tokenizer` and `convert --conditioner`: run and convert official tokenizers and
//! conditioners.

use crate::arguments::{ConvertOptions, ForwardOptions};
use crate::{Outcome, console, device};
use framework::blame;
use framework::burn::store::bridge;
use framework::burn::tensor::{DType, Device, Int, Tensor, TensorData};
use framework::checkpoint::open;
use framework::checkpoint::tensor_file;
use framework::data::tokenizer::{ImageShape, Tokenizer};
use framework::error::{Error, Problem, Problems, Result};
use framework::nn::{from_positions, to_positions};
use framework::plugin::Kind;
use framework::process::{Latent, LatentShape};
use run_folder::parts::Parts;
use std::path::Path;

/// The input tensors of `forward --tokenizer`. `forward` uses the first one present, in this order.
struct Inputs<'a> {
    path: &'a Path,
    img: Option<TensorData>,
    latent: Option<TensorData>,
    indices: Option<TensorData>,
}

impl<'a> Inputs<'a> {
    fn read(path: &'a Path) -> Result<Self> {
        let file = open::open(path)?;
        let get = |name: &str| -> Result<Option<TensorData>> {
            let tensor = file.get(name).map(bridge::to_data).transpose();
            tensor.map_err(|e| Error::Run(format!("{}: `{name}`: {e}", path.display())))
        };
        Ok(Self { path, img: get("img")?, latent: get("latent")?, indices: get("indices")? })
    }

    fn refuse(&self, what: &str, accepts: &str) -> Error {
        Error::from(Problem::new(self.path.display().to_string(), what).accepts(accepts))
    }

    /// Reads a tensor `[B, C, H, W]`.
    fn image(&self, name: &str, data: &TensorData, device: &Device) -> Result<Tensor<4>> {
        match data.shape().to_vec()[..] {
            [_, _, _, _] => Ok(Tensor::from_data(data.clone().convert_dtype(DType::F32), device)),
            ref other => Err(self.refuse(&format!("`{name}` has shape {other:?}"), &format!("{name} [B,C,H,W]"))),
        }
    }

    /// Reads ids `[B, L]` and checks that each is below the vocabulary size. A one-dimensional tensor holds the ids of
    /// all samples, concatenated.
    fn ids(&self, data: &TensorData, shape: &LatentShape, device: &Device) -> Result<Tensor<2, Int>> {
        let length = shape.positions();
        let Some(vocabulary) = shape.vocabulary else {
            return Err(
                self.refuse("`indices` holds tokens, but the tokenizer is continuous", "img, or latent [B,C,H,W]")
            );
        };
        let found = data.shape().to_vec();
        let batch = match found[..] {
            [all] if all % length == 0 => all / length,
            [batch, each] if each == length => batch,
            _ => {
                let accepts = format!("indices [B, {length}], for the document's {:?} grid", shape.grid);
                return Err(self.refuse(&format!("`indices` has shape {found:?}"), &accepts));
            }
        };
        let ids = data.clone().convert::<i64>().try_into_vec::<i64>().map_err(|e| Error::Run(format!("{e:?}")))?;
        match ids.iter().find(|id| !(0..vocabulary as i64).contains(id)) {
            Some(id) => {
                Err(self.refuse(&format!("`indices` contains {id}"), &format!("ids from 0 to {}", vocabulary - 1)))
            }
            None => Ok(Tensor::from_data(TensorData::new(ids, [batch, length]), device)),
        }
    }
}

/// Runs the tokenizer once: encodes `img`, or reads `latent` or `indices`, then decodes.
pub fn forward(options: &ForwardOptions) -> Outcome {
    let device = device::named(options.device.as_deref())?;
    let path = options.checkpoint.as_deref().map(|path| {
        let text = path.to_str().ok_or_else(|| {
            Problem::new("--checkpoint", format!("the path {} is not UTF-8", path.display()))
                .accepts("with --tokenizer, a path that can be written in a document")
        })?;
        Ok::<String, Problem>(format!("/tokenizer/path={}", serde_json::json!(text)))
    });
    let path = path.transpose()?;
    let parts = Parts::read(&options.pipeline, path.as_slice())?;
    let mut tokenizer = parts.tokenizer()?;
    tokenizer.load(&device)?;
    let inputs = Inputs::read(&options.input)?;
    let (latent, image, mut outputs) = latent(&parts, &*tokenizer, options, &inputs, &device)?;
    let decoded = blame::caught(TOKENIZER, || tokenizer.decode(latent, image))?;
    outputs.push(("decoded".to_string(), decoded.into_data()));
    tensor_file::save_tensors(&outputs, &options.output)?;
    Ok(())
}

/// The name of the part in messages about panics.
const TOKENIZER: &str = "tokenizer";

/// A latent, the shape of its image, and the tensors to write.
type Made = (Latent, ImageShape, Vec<(String, TensorData)>);

/// Returns the latent to decode: the encoded `img`, or the given `latent` or `indices`.
fn latent(
    parts: &Parts,
    tokenizer: &dyn Tokenizer,
    options: &ForwardOptions,
    inputs: &Inputs<'_>,
    device: &Device,
) -> Result<Made> {
    let refused = |problems: Problems| {
        let problems = problems.into_iter().map(|problem| problem.under("/tokenizer")).collect();
        Error::input(problems, &options.pipeline.display().to_string())
    };
    if let Some(img) = &inputs.img {
        let images = inputs.image("img", img, device)?;
        let [_, channels, height, width] = images.dims();
        let image = [channels, height, width];
        let shape = tokenizer.latent_shape(image).map_err(refused)?;
        let latent = blame::caught(TOKENIZER, || tokenizer.encode(images))?;
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
            return Err(inputs.refuse(&format!("`latent` has shape {:?}", x.dims()), &accepts));
        }
        return Ok((Latent::Values(to_positions(x)), image, Vec::new()));
    }
    let Some(indices) = &inputs.indices else {
        return Err(inputs
            .refuse("the file has none of `img`, `latent`, `indices`", "img [B,C,H,W] in [-1,1], latent or indices"));
    };
    let image = image_of(parts, tokenizer, indices)?;
    let shape = tokenizer.latent_shape(image).map_err(refused)?;
    Ok((Latent::Ids(inputs.ids(indices, &shape, device)?), image, Vec::new()))
}

/// Returns the shape of the images whose tokens `indices` holds: the shape that the document's backbone models, or, in
/// a document without one, the square with as many tokens.
fn image_of(parts: &Parts, tokenizer: &dyn Tokenizer, indices: &TensorData) -> Result<ImageShape> {
    if parts.has(Kind::Backbone) {
        return Ok(tokenizer.image_shape(parts.backbone()?.latent_shape()));
    }
    let positions = indices.shape().to_vec().last().copied().unwrap_or(1);
    let square = |side: usize| tokenizer.image_shape(LatentShape::tokens([side; 2], 0));
    let fits = |side: &usize| tokenizer.latent_shape(square(*side)).is_ok_and(|shape| shape.positions() == positions);
    let largest = positions.isqrt();
    Ok(square((1..=largest).rev().find(fits).unwrap_or(largest)))
}

/// Returns the tensors of a latent under the names that the reference code uses.
fn written(latent: &Latent, shape: &LatentShape) -> Vec<(String, TensorData)> {
    let indices = |ids: &Tensor<2, Int>| ("indices".to_string(), ids.clone().into_data().convert::<i64>());
    match latent {
        Latent::Values(x) => vec![("latent".to_string(), from_positions(x.clone(), shape.grid).into_data())],
        Latent::Ids(ids) => vec![indices(ids)],
        Latent::Levels { ids, features } => {
            // The network never reads the features of the first level.
            let first = shape.levels[0] * shape.levels[0];
            let rest = features.clone().narrow(1, first, shape.positions() - first);
            vec![indices(ids), ("var_input".to_string(), rest.into_data())]
        }
    }
}

/// Writes the weights of an official tokenizer or conditioner as safetensors, with the names of one of its formats.
pub fn convert(options: &ConvertOptions) -> Outcome {
    let parts = Parts::read(&options.pipeline, &[])?;
    let (part, to) = (if options.conditioner { "conditioner" } else { "tokenizer" }, options.to.as_deref());
    let report = match options.conditioner {
        true => parts.conditioner()?.convert(&options.input, &options.output, to)?,
        false => parts.tokenizer()?.convert(&options.input, &options.output, to)?,
    };
    match report {
        Some(report) => {
            console::report(&report.to_string());
            console::report(&options.output.display().to_string());
            Ok(())
        }
        None => Err(Error::from(
            Problem::new(
                format!("{}  /{part}", options.pipeline.display()),
                format!("the {part} has no weights to convert"),
            )
            .accepts(format!("a {part} that loads its weights from a file")),
        )),
    }
}

//! The promises of a tokenizer.

use super::bench::values;
use super::entry::{fields, parse, round_trip};

use burn::tensor::{DType, Device, Tensor};
use framework::data::tokenizer::ImageShape;
use framework::plugin::{Kind, TokenizerPlugin};
use framework::process::Latent;
use framework::random::{Random, tensor};
use serde_json::Value;

/// Checks a tokenizer on images of the given shape. The files that the entry names must exist.
pub fn tokenizer(entry: &Value, image: ImageShape) -> Vec<String> {
    let mut failures = round_trip::<Box<dyn TokenizerPlugin>>(entry);
    let Some(mut tokenizer) = parse::<Box<dyn TokenizerPlugin>>(entry) else { return failures };
    let device = Device::flex();
    let shape = match tokenizer.latent_shape(image) {
        Ok(shape) => shape,
        Err(problems) => return vec![format!("images of shape {image:?} have a latent: {problems:?}")],
    };
    if let Err(error) = tokenizer.load(&device) {
        return vec![format!("the weights can be loaded: {error}")];
    }
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(what.to_string());
        }
    };
    must(tokenizer.image_shape(shape.clone()) == image, "`image_shape` is the inverse of `latent_shape`");
    let [channels, height, width] = image;
    let pixels = Random::new(6).uniform("image", 0, 0, 3 * image.iter().product::<usize>());
    let pixels: Vec<f64> = pixels.into_iter().map(|u| 2.0 * u - 1.0).collect();
    let images: Tensor<4> = tensor(&pixels, [3, channels, height, width], DType::F32, &device);
    // All values of a latent, sample by sample: ids and input features.
    let numbers = |latent: &Latent| match latent.clone() {
        Latent::Values(x) => vec![values(x)],
        Latent::Ids(ids) => vec![values(ids)],
        Latent::Levels { ids, features } => vec![values(ids), values(features)],
    };
    let latent = tokenizer.encode(images.clone());
    let sizes = match &latent {
        Latent::Values(x) => (None, x.dims()),
        Latent::Ids(ids) => (shape.vocabulary, [ids.dims()[0], ids.dims()[1], shape.channels]),
        Latent::Levels { features, .. } => (shape.vocabulary, features.dims()),
    };
    let stated = [3, shape.positions(), shape.channels];
    must(sizes == (shape.vocabulary, stated), "a latent has the shape that `latent_shape` states");
    must(numbers(&latent).concat().iter().all(|v| v.is_finite()), "latents are finite");
    if let Some(vocabulary) = shape.vocabulary {
        let ids = values(latent.clone().ids());
        must(ids.iter().all(|id| (0.0..vocabulary as f64).contains(id)), "tokens are below the vocabulary");
    }
    must(tokenizer.codec().is_some() != shape.levels.is_empty(), "a codec exists exactly if latents have levels");
    if let (Some(codec), Latent::Levels { ids, features }) = (tokenizer.codec(), &latent) {
        let mut firsts = 0;
        let level = |side: &usize| {
            firsts += side * side;
            ids.clone().narrow(1, firsts - side * side, side * side)
        };
        let before: Vec<_> = shape.levels[..shape.levels.len() - 1].iter().map(level).collect();
        let same = values(codec.features(&before, 3, &device)) == values(features.clone());
        must(same, "the codec and `encode` compute the same features");
    }
    let close = |a: &[Vec<f64>], b: &[Vec<f64>]| {
        a.iter().zip(b).all(|(a, b)| {
            let largest = b.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * largest)
        })
    };
    let first = numbers(&tokenizer.encode(images.clone().narrow(0, 0, 1)));
    let of_first: Vec<Vec<f64>> = numbers(&latent).iter().map(|all| all[..all.len() / 3].to_vec()).collect();
    must(close(&first, &of_first), "a latent does not depend on its batch");
    let decoded = tokenizer.decode(latent, image);
    must(decoded.dims() == images.dims(), "a latent decodes to an image of the original shape");
    must(values(decoded).iter().all(|v| v.is_finite()), "decoded images are finite");
    failures.extend(fields::<Box<dyn TokenizerPlugin>>(entry, Kind::Tokenizer, &|new| {
        let problems = new.check();
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut new = new.clone();
        let shape = match new.latent_shape(image) {
            Ok(shape) => shape,
            Err(problems) => return Ok(format!("{problems:?}")),
        };
        // A setting that makes the weights unloadable counts as having an effect.
        if let Err(error) = new.load(&device) {
            return Ok(error.to_string());
        }
        let latent = new.encode(images.clone());
        Ok(format!("{shape:?} {:?} {:?}", numbers(&latent), values(new.decode(latent, image))))
    }));
    failures
}

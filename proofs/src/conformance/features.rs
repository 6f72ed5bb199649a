//! The promises of a feature space.

use super::bench::values;
use super::entry::{fields, parse, round_trip};

use burn::tensor::{DType, Device, Tensor};
use framework::data::tokenizer::ImageShape;
use framework::error::Result;
use framework::evaluation::features::Extracted;
use framework::plugin::{FeaturesPlugin, Kind};
use framework::random::{Random, tensor};
use serde_json::Value;

/// Checks a feature space on images of the given shape. The files that the entry names must exist.
pub fn features(entry: &Value, image: ImageShape) -> Vec<String> {
    let mut failures = round_trip::<Box<dyn FeaturesPlugin>>(entry);
    let Some(features) = parse::<Box<dyn FeaturesPlugin>>(entry) else { return failures };
    let device = Device::flex();
    let problems = [features.check(), features.check_image(image)].concat();
    if !problems.is_empty() {
        return vec![format!("the entry accepts images of shape {image:?}: {problems:?}")];
    }
    let [channels, height, width] = image;
    let pixels = Random::new(7).uniform("image", 0, 0, 3 * image.iter().product::<usize>());
    let pixels: Vec<f64> = pixels.into_iter().map(|u| 2.0 * u - 1.0).collect();
    let images: Tensor<4> = tensor(&pixels, [3, channels, height, width], DType::F32, &device);
    let extract = |features: &dyn FeaturesPlugin, images: Tensor<4>| -> Result<Extracted> {
        features.load(&device)?.extract(images)
    };
    let all = match extract(&*features, images.clone()) {
        Ok(all) => all,
        Err(error) => return vec![format!("the features can be computed: {error}")],
    };
    let mut must = |holds: bool, what: &str| {
        if !holds {
            failures.push(what.to_string());
        }
    };
    let widths = features.widths(image);
    let dims = |part: &Option<Tensor<2>>| part.as_ref().map(Tensor::dims);
    let stated = |width: Option<usize>| width.map(|width| [3, width]);
    must(all.vectors.dims() == [3, widths.vector], "vectors have the width that `widths` states");
    must(dims(&all.spatial) == stated(widths.spatial), "spatial features have the width that `widths` states");
    must(dims(&all.logits) == stated(widths.classes), "there is one logit per class that `widths` states");
    let space = features.space();
    let snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    must(!space.is_empty() && space.chars().all(snake), "the name of the space is in lower snake case");
    must(features.batch_size() > 0, "a pass receives at least one image");

    let numbers = |extracted: &Extracted| -> Vec<Vec<f64>> {
        let parts = [Some(&extracted.vectors), extracted.spatial.as_ref(), extracted.logits.as_ref()];
        parts.into_iter().flatten().map(|part| values(part.clone())).collect()
    };
    let of_all = numbers(&all);
    must(of_all.concat().iter().all(|value| value.is_finite()), "features are finite");
    let rows = &of_all[0];
    must(rows[..widths.vector] != rows[widths.vector..2 * widths.vector], "different images have different features");
    match extract(&*features, images.clone().narrow(0, 1, 1)) {
        Ok(second) => {
            let same = numbers(&second).iter().zip(&of_all).all(|(one, all)| {
                let expected = &all[one.len()..2 * one.len()];
                let largest = expected.iter().fold(1e-6_f64, |m, v| m.max(v.abs()));
                one.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-4 * largest)
            });
            must(same, "the features of an image do not depend on its batch");
        }
        Err(error) => must(false, &format!("one image has features: {error}")),
    }
    failures.extend(fields::<Box<dyn FeaturesPlugin>>(entry, Kind::Features, &|new| {
        let problems = new.check();
        if !problems.is_empty() {
            return Err(problems);
        }
        // A setting that makes the weights unloadable counts as having an effect.
        Ok(match extract(&**new, images.clone()) {
            Ok(extracted) => format!("{:?}", numbers(&extracted)),
            Err(error) => error.to_string(),
        })
    }));
    failures
}

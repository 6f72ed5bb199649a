//! Whether pictures of coloured shapes match their captions, judged without a network.
//!
//!   count, size, color, shape: number of objects, set of sizes, colors or shapes equal the caption's
//!   relation: the two groups are placed as the caption says; only for captions with a relation
//!   right: every group, its count, and the relation match
//!
//! The crate `scenes` defines the captions, as for the dataset "shapes", and recognises the objects in a
//! picture.

use crate::neighbours::comparable;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problems, Result};
use framework::evaluation::collected::{CollectedReference, CollectedSamples};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::statistics::Statistics;
use framework::prelude::*;
use rayon::prelude::*;
use scenes::{Description, Kind, Reading, read};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Share of samples that match their caption exactly, and the share that matches each part of the caption.
///
/// Captions must come from the dataset "shapes". Pictures must be square, with 3 channels and at least 24
/// pixels. The metric also judges as many training images as there are samples. Their share shows how reliable
/// the recognition is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptionAccuracy {}

framework::register!(metric "caption_accuracy" => CaptionAccuracy);

/// Smallest side, in pixels, at which shapes can be distinguished.
const LEAST_SIDE: usize = 24;

impl Metric for CaptionAccuracy {
    fn needs_captions(&self) -> bool {
        true
    }

    fn check_image(&self, image: ImageShape) -> Problems {
        let [channels, height, width] = image;
        if channels == 3 && height == width && height >= LEAST_SIDE {
            return Problems::new();
        }
        let what =
            format!("metric \"caption_accuracy\" cannot read these images; samples are {channels}x{height}x{width}");
        let accepts = format!("square images of 3 channels, {LEAST_SIDE}x{LEAST_SIDE} pixels or more");
        vec![Problem::new("", what).accepts(accepts)]
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(CollectedReference::new("caption_accuracy"))
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect("caption_accuracy")?;
        let metric = self.clone();
        let compare = move |samples: &Images, real: &Images| metric.compare(samples, real);
        Ok(Box::new(CollectedSamples::new(reference.images()?, compare)))
    }
}

impl CaptionAccuracy {
    fn compare(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>> {
        comparable("caption_accuracy", samples, real, 1, 1)?;
        if let Some(problem) = self.check_image(samples.shape).first() {
            return Err(Error::Run(problem.what.clone()));
        }
        let of_samples = judged(samples, samples.len(), "samples")?;
        let of_real = judged(real, samples.len().min(real.len()), "real images")?;
        let share = |part: fn(&Judgement) -> bool| {
            of_samples.iter().filter(|judgement| part(judgement)).count() as f64 / of_samples.len() as f64
        };
        let measurement = |name: &str, value: f64, what: &str| {
            let meaning = format!("share of samples with {what}, higher is better");
            Measurement { name: name.into(), value, meaning }
        };
        let mut all = vec![
            measurement("caption_accuracy", share(|j| j.right), "every part of the caption right"),
            measurement("caption_count_accuracy", share(|j| j.count), "the number of objects in the caption"),
            measurement("caption_size_accuracy", share(|j| j.size), "the sizes in the caption"),
            measurement("caption_color_accuracy", share(|j| j.color), "the colours in the caption"),
            measurement("caption_shape_accuracy", share(|j| j.shape), "the shapes in the caption"),
        ];
        let relations: Vec<bool> = of_samples.iter().filter_map(|judgement| judgement.relation).collect();
        if !relations.is_empty() {
            let right = relations.iter().filter(|right| **right).count();
            let what = "the relation in the caption, among captions with a relation";
            all.push(measurement("caption_relation_accuracy", right as f64 / relations.len() as f64, what));
        }
        all.push(Measurement {
            name: "caption_accuracy_of_real".into(),
            value: of_real.iter().filter(|judgement| judgement.right).count() as f64 / of_real.len() as f64,
            meaning: "share of real images with every part of the caption right, the reference value".into(),
        });
        Ok(all)
    }
}

/// Which parts of its caption one picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Judgement {
    count: bool,
    size: bool,
    color: bool,
    shape: bool,
    /// `None` if the caption has no relation.
    relation: Option<bool>,
    right: bool,
}

impl Judgement {
    fn new(asked: &Description, shown: &Reading) -> Self {
        let kinds: Vec<Kind> = shown.objects.iter().map(|object| object.kind).collect();
        let count = asked.groups().map(|group| group.count).sum::<usize>() == kinds.len() + shown.strange;
        let relation =
            asked.second.map(|(relation, second)| shown.relation(asked.first.kind, second.kind) == Some(relation));
        Self {
            count,
            size: same(asked, &kinds, |kind| kind.size) && shown.strange == 0,
            color: same(asked, &kinds, |kind| kind.color),
            shape: same(asked, &kinds, |kind| kind.shape) && shown.strange == 0,
            relation,
            right: shown.description() == Some(asked.canonical()),
        }
    }
}

/// Returns whether caption and picture have the same set of values for one part of a kind.
fn same<T: Ord>(asked: &Description, shown: &[Kind], part: fn(&Kind) -> T) -> bool {
    let asked: BTreeSet<T> = asked.groups().map(|group| part(&group.kind)).collect();
    asked == shown.iter().map(part).collect()
}

/// Judges the first `count` images.
fn judged(images: &Images, count: usize, name: &str) -> Result<Vec<Judgement>> {
    if images.captions.len() != images.len() {
        let what = format!("{} of {} {name} have one", images.captions.len(), images.len());
        return Err(Error::Run(format!("metric \"caption_accuracy\" needs a caption for every image; {what}")));
    }
    let judge = |i: usize| {
        let caption = &images.captions[i];
        let asked: Description = caption.parse().map_err(|why| {
            Error::Run(format!(
                "metric \"caption_accuracy\" cannot read the caption \"{caption}\": {why}; it accepts captions of \
                 dataset \"shapes\""
            ))
        })?;
        Ok(Judgement::new(&asked, &read(images.row(i), images.shape[1])))
    };
    (0..count).into_par_iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::random::Random;
    use scenes::Scene;

    /// Renders a picture of `shown` with the caption `asked` for each pair.
    fn images(pairs: &[(&str, &str)]) -> Images {
        let mut images = Images::none([3, 32, 32]);
        for (i, (asked, shown)) in pairs.iter().enumerate() {
            let mut random = Random::new(5).stream("scene", i as u64, 0);
            images.values.extend(Scene::place(shown.parse().unwrap(), &mut random).render(32));
            images.captions.push((*asked).to_string());
        }
        images
    }

    fn values(samples: &Images) -> Vec<(String, f64)> {
        let right = images(&[("one small red circle", "one small red circle")]);
        let measured = CaptionAccuracy {}.measure(samples, &right).unwrap();
        measured.into_iter().map(|m| (m.name, m.value)).collect()
    }

    #[test]
    fn each_part_of_a_caption_is_judged_by_itself() {
        let asked = "two small red circles left of one large blue square";
        let samples = images(&[
            (asked, asked),
            (asked, "one large blue square right of two small red circles"),
            (asked, "two small red circles above one large blue square"),
            (asked, "three small red circles left of one large blue square"),
            (asked, "two small red circles left of one large green square"),
            (asked, "two large red circles left of one large blue square"),
            (asked, "two small red squares left of one large blue square"),
            (asked, "two small red circles"),
            ("one small cyan triangle", "one small cyan triangle"),
            ("one small cyan triangle", "two small cyan triangles"),
        ]);
        let expected = [
            ("caption_accuracy", 0.3),
            ("caption_count_accuracy", 0.7),
            ("caption_size_accuracy", 0.8),
            ("caption_color_accuracy", 0.8),
            ("caption_shape_accuracy", 0.8),
            ("caption_relation_accuracy", 3.0 / 8.0),
            ("caption_accuracy_of_real", 1.0),
        ];
        for ((name, value), (expected_name, expected)) in values(&samples).into_iter().zip(expected) {
            assert!(name == expected_name && (value - expected).abs() < 1e-12, "{name} {value} {expected}");
        }
    }

    #[test]
    fn captions_without_relations_have_none_to_judge() {
        let names = values(&images(&[("one small red circle", "one large red circle")]));
        assert!(names.iter().all(|(name, _)| name != "caption_relation_accuracy"), "{names:?}");
    }

    #[test]
    fn errors_say_what_is_needed() {
        let good = images(&[("one small red circle", "one small red circle")]);
        let message = |samples: &Images| CaptionAccuracy {}.measure(samples, &good).unwrap_err().to_string();
        let cat = Images { captions: vec!["a cat".into()], ..good.clone() };
        assert_eq!(
            message(&cat),
            "metric \"caption_accuracy\" cannot read the caption \"a cat\": found \"a\", expected one of one, two, \
             three; it accepts captions of dataset \"shapes\""
        );
        let mute = Images { captions: Vec::new(), ..good.clone() };
        assert!(message(&mute).contains("needs a caption for every image; 0 of 1 samples have one"));
        let wide = Images { shape: [3, 16, 64], ..good.clone() };
        assert!(message(&wide).contains("samples are 3x16x64"), "{}", message(&wide));
        for (image, problems) in [([3, 24, 24], 0), ([1, 32, 32], 1), ([3, 23, 23], 1), ([3, 32, 31], 1)] {
            assert_eq!(CaptionAccuracy {}.check_image(image).len(), problems, "{image:?}");
        }
    }
}

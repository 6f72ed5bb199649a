//! Whether pictures of coloured shapes show what their captions say, read back without a network.
//!
//!   number of objects, set of sizes, set of colors, set of shapes: those of the caption
//!   relation: the objects of the two kinds lie as the caption says, where it says a relation
//!   right: every group, its count, and the relation
//!
//! Grammar and reading are those of the crate `scenes`, and so of dataset "shapes".

use crate::neighbours::comparable;
use framework::error::{Error, Problems, Result};
use framework::metric::{Images, Measurement, Metric};
use framework::prelude::*;
use framework::tokenizer::ImageShape;
use rayon::prelude::*;
use scenes::{Description, Kind, Reading, read};
use std::collections::BTreeSet;

/// Share of samples that show exactly what their caption says, and the same for each part of a caption.
///
/// Captions are those of dataset "shapes"; pictures are square, of 3 channels, from 24 pixels on. The training images are
/// judged as well, as many as there are samples: the share of them that is right is that of the reading itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptionAccuracy {}

framework::register!(metric "caption_accuracy" => CaptionAccuracy);

/// Fewest pixels of a side at which shapes can be told apart.
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
            format!("metric \"caption_accuracy\" reads shapes and colours; samples are {channels}x{height}x{width}");
        let accepts = format!("square images of 3 channels, {LEAST_SIDE}x{LEAST_SIDE} pixels or more");
        vec![Problem::new("", what).accepts(accepts)]
    }

    fn measure(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>> {
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
            measurement("caption_accuracy", share(|j| j.right), "everything as the caption says"),
            measurement("caption_count_accuracy", share(|j| j.count), "as many objects as the caption says"),
            measurement("caption_size_accuracy", share(|j| j.size), "the sizes the caption says"),
            measurement("caption_color_accuracy", share(|j| j.color), "the colours the caption says"),
            measurement("caption_shape_accuracy", share(|j| j.shape), "the shapes the caption says"),
        ];
        let relations: Vec<bool> = of_samples.iter().filter_map(|judgement| judgement.relation).collect();
        if !relations.is_empty() {
            let right = relations.iter().filter(|right| **right).count();
            let what = "the relation the caption says, of those whose caption says one";
            all.push(measurement("caption_relation_accuracy", right as f64 / relations.len() as f64, what));
        }
        all.push(Measurement {
            name: "caption_accuracy_of_real".into(),
            value: of_real.iter().filter(|judgement| judgement.right).count() as f64 / of_real.len() as f64,
            meaning: "share of real images that are read as their caption says, the reference".into(),
        });
        Ok(all)
    }
}

/// What is right about one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Judgement {
    count: bool,
    size: bool,
    color: bool,
    shape: bool,
    /// `None` where the caption says no relation.
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

/// Whether both hold the same values of one part of their kinds.
fn same<T: Ord>(asked: &Description, shown: &[Kind], part: fn(&Kind) -> T) -> bool {
    let asked: BTreeSet<T> = asked.groups().map(|group| part(&group.kind)).collect();
    asked == shown.iter().map(part).collect()
}

/// The judgements of the first `count` images.
fn judged(images: &Images, count: usize, name: &str) -> Result<Vec<Judgement>> {
    if images.captions.len() != images.len() {
        let what = format!("{} of {} {name} have one", images.captions.len(), images.len());
        return Err(Error::Run(format!("metric \"caption_accuracy\" needs a caption for every image; {what}")));
    }
    let judge = |i: usize| {
        let caption = &images.captions[i];
        let asked: Description = caption.parse().map_err(|why| {
            Error::Run(format!(
                "metric \"caption_accuracy\" cannot read the caption \"{caption}\": {why}; it accepts captions as dataset \
                 \"shapes\" writes them"
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

    /// A picture of `shown` under the caption `asked`, for each pair.
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
            "metric \"caption_accuracy\" cannot read the caption \"a cat\": \"a\" stands where one of one, two, three \
             belongs; it accepts captions as dataset \"shapes\" writes them"
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

//! What metrics in a feature space share: their `features` entry, the check of a batch, and statistics that keep all
//! features.

use crate::neighbours::{finite, too_few};
use framework::burn::tensor::TensorData;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problem, Problems, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::Reference;
use framework::evaluation::space::{FeatureBatch, Rows, Space, Spaces};
use framework::evaluation::statistics::Statistics;
use framework::plugin::FeaturesPlugin;
use framework::serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Returns the default of a `features` field.
///
/// # Panics
/// If no crate that registers the feature space `pixels` is linked.
pub fn pixels() -> Box<dyn FeaturesPlugin> {
    framework::serde_json::from_value(json!({ "type": "pixels" })).expect("the feature space `pixels` is linked")
}

/// Returns the problems of a `features` field.
pub fn check(features: &dyn FeaturesPlugin) -> Problems {
    features.check().into_iter().map(|problem| problem.under("/features")).collect()
}

/// Returns the incompatibilities of a `features` field with images of this shape.
pub fn check_image(features: &dyn FeaturesPlugin, image: ImageShape) -> Problems {
    features.check_image(image).into_iter().map(|problem| problem.under("/features")).collect()
}

/// Returns the problem that a metric needs a part of the features that the space lacks.
pub fn lacks(metric: &str, features: &dyn FeaturesPlugin, part: &str) -> Problem {
    let what = format!("metric \"{metric}\" needs {part}; features \"{}\" have none", features.typetag_name());
    Problem::new("/features", what).accepts(format!("features with {part}, e.g. \"inception_v3\""))
}

/// A feature space that is loaded before a metric measures.
#[derive(Clone, Debug, Default)]
pub struct Loaded(Option<Arc<Space>>);

impl Loaded {
    /// Loads the space, or shares it with another metric.
    pub fn load(&mut self, features: &dyn FeaturesPlugin, spaces: &mut Spaces) -> Result<()> {
        self.0 = Some(spaces.load(features)?);
        Ok(())
    }

    /// Returns the features of a batch. `seen` images came before these; `name` is "sample" or "real image".
    pub fn of(&self, metric: &str, name: &str, images: &Images, seen: usize) -> Result<FeatureBatch> {
        let Some(space) = &self.0 else {
            return Err(Error::Run(format!("the features of metric \"{metric}\" are not loaded")));
        };
        finite(metric, name, images, seen)?;
        let features = space.of(images)?;
        let width = features.vectors.width.max(1);
        match features.vectors.values.iter().position(|value| !value.is_finite()) {
            None => Ok(features),
            Some(place) => {
                let (i, value) = (seen + place / width, features.vectors.values[place]);
                Err(Error::Run(format!("metric \"{metric}\": the features of {name} {i} contain {value}")))
            }
        }
    }
}

/// Which part of the features a metric keeps.
pub type Part = fn(&FeatureBatch) -> Option<Arc<Rows>>;

/// Features that are kept batch by batch. The batches are shared with other metrics that keep them.
#[derive(Default)]
pub struct Kept(Vec<Arc<Rows>>);

impl Kept {
    /// Adds a batch.
    pub fn push(&mut self, rows: Arc<Rows>) {
        self.0.push(rows);
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.0.iter().map(|rows| rows.len()).sum()
    }

    /// Returns the features of all images, image by image.
    pub fn rows(&self) -> Vec<&[f32]> {
        self.0.iter().flat_map(|rows| (0..rows.len()).map(|i| rows.row(i))).collect()
    }
}

/// The tensor of statistics that keep all features, `[count, D]`.
const FEATURES: &str = "features";

/// Returns the name of statistics that keep all features of a space. Every metric that compares them shares them.
pub fn kept_statistics(features: &dyn FeaturesPlugin) -> String {
    format!("features_{}", features.space())
}

/// Real images, whose features are kept.
pub struct KeptReference {
    metric: &'static str,
    name: String,
    space: Loaded,
    kept: Kept,
}

impl KeptReference {
    /// Starts empty, for the metric of that name.
    pub fn new(metric: &'static str, features: &dyn FeaturesPlugin, space: &Loaded) -> Self {
        Self { metric, name: kept_statistics(features), space: space.clone(), kept: Kept::default() }
    }
}

impl Reference for KeptReference {
    fn update(&mut self, images: &Images) -> Result<()> {
        let features = self.space.of(self.metric, "real image", images, self.kept.len())?;
        self.kept.push(features.vectors);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Statistics> {
        let count = self.kept.len();
        if count == 0 {
            return Err(too_few(self.metric, "real image", 1, 0));
        }
        let rows = self.kept.rows();
        let features = TensorData::new(rows.concat(), [count, rows[0].len()]);
        let tensors = BTreeMap::from([(FEATURES.to_string(), features)]);
        Ok(Statistics { metric: self.name, count, tensors, captions: Vec::new() })
    }
}

/// Returns the features of every image that [`KeptReference`] kept.
///
/// # Errors
/// If the statistics keep no features.
pub fn kept_rows(statistics: &Statistics) -> Result<Vec<&[f32]>> {
    let data = statistics.tensor(FEATURES)?;
    let wrong = |what: String| Error::Run(format!("the features of the statistics cannot be read: {what}"));
    let values = data.as_slice::<f32>().map_err(|e| wrong(format!("{e:?}")))?;
    match data.shape().to_vec()[..] {
        [_, width] if width > 0 => Ok(values.chunks_exact(width).collect()),
        ref shape => Err(wrong(format!("they have shape {shape:?}"))),
    }
}

/// Checks that samples and real images have features of one width.
///
/// # Errors
/// If they differ, for example because the images have different sizes.
pub fn same_width(metric: &str, samples: &[&[f32]], real: &[&[f32]]) -> Result<()> {
    match (samples.first(), real.first()) {
        (Some(sample), Some(image)) if sample.len() != image.len() => {
            let what = format!("a sample has {} dimensions and a real image {}", sample.len(), image.len());
            Err(Error::Run(format!("metric \"{metric}\" needs features of one width; {what}")))
        }
        _ => Ok(()),
    }
}

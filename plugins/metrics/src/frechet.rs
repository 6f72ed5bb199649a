//! Frechet distance between two Gaussians, fitted to samples and to real images in a chosen feature space.
//!
//!   d = |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))
//!
//! Covariances divide by count - 1.
//! Source: arXiv:1706.08500, eq. 6. With the features `inception_v3` the distance is the FID. Distances in different
//! feature spaces are not comparable, so the name of each measurement includes its space.

use crate::gaussian::{Gaussian, MOST_DIMENSIONS, Moments, Reservoir, data, matrix};
use crate::in_space::{self, Loaded, Part};
use crate::neighbours::too_few;
use faer::Mat;
use framework::burn::tensor::TensorData;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problems, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::space::{Rows, Spaces};
use framework::evaluation::statistics::Statistics;
use framework::plugin::FeaturesPlugin;
use framework::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Frechet distance between samples and real images, 0 or more; lower is better. In the space `inception_v3` it is the
/// FID.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Frechet {
    /// Feature space in which images are compared. There must be more samples, and more real images, than
    /// dimensions.
    pub features: Box<dyn FeaturesPlugin>,
    /// Number of principal directions of the real images to which the features are reduced, not whitened; at least 1
    /// and at most the number of dimensions of the space. null = all dimensions, at most 4,096. In a space of more
    /// than 4,096 dimensions, the directions are those of at most 4,096 real images, chosen at random.
    #[schemars(range(min = 1))]
    pub components: Option<usize>,
    #[serde(skip)]
    space: Loaded,
}

impl Default for Frechet {
    fn default() -> Self {
        Self { features: in_space::pixels(), components: None, space: Loaded::default() }
    }
}

framework::register!(metric "frechet" => Frechet, "arXiv:1706.08500");

impl Metric for Frechet {
    fn check(&self) -> Problems {
        let mut problems = in_space::check(&*self.features);
        if self.components == Some(0) {
            problems.push(Problem::new("/components", "`components` is 0").accepts("1 or more"));
        }
        problems
    }

    fn check_image(&self, image: ImageShape) -> Problems {
        let (mut problems, dimensions) =
            (in_space::check_image(&*self.features, image), self.features.widths(image).vector);
        match self.components {
            None if dimensions > MOST_DIMENSIONS => {
                let what = format!("the features have {dimensions} dimensions, too many for their covariance");
                let problem = Problem::new("/features", what).accepts(format!("at most {MOST_DIMENSIONS} dimensions"));
                problems.push(problem.fix("set `components` to 32, or choose other features"));
            }
            Some(components) if components > dimensions => {
                let what = format!("`components` = {components}, but the features have {dimensions} dimensions");
                problems.push(Problem::new("/components", what).accepts(format!("1 to {dimensions}")));
            }
            _ => {}
        }
        problems
    }

    fn least_samples(&self, image: ImageShape) -> usize {
        self.comparison().least(self.features.widths(image).vector)
    }

    fn load(&mut self, spaces: &mut Spaces) -> Result<()> {
        self.space.load(&*self.features, spaces)
    }

    fn statistics(&self) -> Option<String> {
        Some(self.name())
    }

    fn published(&self) -> &'static [(&'static str, &'static str)] {
        if self.components.is_some() { &[] } else { &[(MEAN, "mu"), (COVARIANCE, "sigma")] }
    }

    fn reference(&self) -> Box<dyn Reference> {
        self.comparison().reference()
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        self.comparison().start(&reference)
    }
}

/// Name of the mean in the statistics.
pub const MEAN: &str = "mean";
/// Name of the covariance in the statistics.
pub const COVARIANCE: &str = "covariance";
const DIRECTIONS: &str = "directions";

impl Frechet {
    /// Returns the name of the measurement, which includes the feature space.
    fn name(&self) -> String {
        match self.components {
            None => format!("frechet_{}", self.features.space()),
            Some(components) => format!("frechet_{}_pca_{components}", self.features.space()),
        }
    }

    fn comparison(&self) -> Comparison {
        let (space, components) = (self.space.clone(), self.components);
        Comparison {
            metric: "frechet",
            name: self.name(),
            space,
            part: |batch| Some(batch.vectors.clone()),
            components,
        }
    }
}

/// A Frechet distance between one part of the features of samples and of real images.
#[derive(Clone)]
pub struct Comparison {
    /// Name of the metric in messages.
    pub metric: &'static str,
    /// Name of the measurement and of the statistics.
    pub name: String,
    /// The feature space.
    pub space: Loaded,
    /// The compared part of its features.
    pub part: Part,
    /// See [`Frechet::components`].
    pub components: Option<usize>,
}

impl Comparison {
    /// Starts to accumulate real images.
    pub fn reference(self) -> Box<dyn Reference> {
        Box::new(Real { comparison: self, fit: None })
    }

    /// Starts to accumulate samples.
    ///
    /// # Errors
    /// If the statistics are of another metric or another setting.
    pub fn start(self, reference: &Statistics) -> Result<Box<dyn Accumulator>> {
        reference.expect(&self.name)?;
        let real =
            Gaussian { mean: matrix(reference.tensor(MEAN)?), covariance: matrix(reference.tensor(COVARIANCE)?) };
        let directions = match self.components {
            None => None,
            Some(_) => Some(matrix(reference.tensor(DIRECTIONS)?)),
        };
        Ok(Box::new(Samples { comparison: self, real, directions, moments: None }))
    }

    fn of(&self, name: &str, images: &Images, seen: usize) -> Result<Arc<Rows>> {
        let features = self.space.of(self.metric, name, images, seen)?;
        (self.part)(&features)
            .ok_or_else(|| Error::Run(format!("the features of metric \"{}\" have no such part", self.metric)))
    }

    /// Returns the smallest number of images for features of this number of dimensions.
    fn least(&self, dimensions: usize) -> usize {
        self.components.unwrap_or(dimensions) + 1
    }
}

/// What is kept of the real images.
enum Fit {
    /// The covariance of all of them.
    Covariance(Moments),
    /// Some of them, because a covariance would be too large.
    Gram(Reservoir),
}

/// The real images so far, in the feature space.
struct Real {
    comparison: Comparison,
    fit: Option<Fit>,
}

impl Real {
    /// Returns the number of images.
    fn count(&self) -> usize {
        match &self.fit {
            None => 0,
            Some(Fit::Covariance(moments)) => moments.count,
            Some(Fit::Gram(reservoir)) => reservoir.seen,
        }
    }
}

impl Reference for Real {
    fn update(&mut self, images: &Images) -> Result<()> {
        let vectors = self.comparison.of("real image", images, self.count())?;
        let fit = self.fit.get_or_insert_with(|| match self.comparison.components {
            Some(_) if vectors.width > MOST_DIMENSIONS => Fit::Gram(Reservoir::new(vectors.width)),
            _ => Fit::Covariance(Moments::new(vectors.width)),
        });
        match fit {
            Fit::Covariance(moments) => moments.add(&vectors.values),
            Fit::Gram(reservoir) => reservoir.add(&vectors.values),
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Statistics> {
        let (count, Self { comparison, fit }) = (self.count(), *self);
        let dimensions = match &fit {
            Some(Fit::Covariance(moments)) => moments.dimensions(),
            _ => 0,
        };
        let least = comparison.least(dimensions);
        let Some(fit) = fit.filter(|_| count >= least) else {
            return Err(too_few(comparison.metric, "real image", least, count));
        };
        let (directions, gaussian) = match (fit, comparison.components) {
            (Fit::Covariance(moments), None) => (None, moments.gaussian()),
            (Fit::Covariance(moments), Some(components)) => {
                if components > dimensions {
                    let what = format!("`components` = {components}, but the features have {dimensions} dimensions");
                    return Err(Error::Run(format!("metric \"{}\": {what}; use at most that many", comparison.metric)));
                }
                let gaussian = moments.gaussian();
                let directions = gaussian.principal_directions(components)?;
                let projected = gaussian.project(&directions);
                (Some(directions), projected)
            }
            (Fit::Gram(reservoir), components) => {
                let (directions, gaussian) = reservoir.principal(components.unwrap_or(1))?;
                (Some(directions), gaussian)
            }
        };
        let mut tensors = BTreeMap::new();
        tensors.extend(directions.map(|directions| (DIRECTIONS.to_string(), data(&directions))));
        let mean: Vec<f64> = gaussian.mean.col(0).iter().copied().collect();
        tensors.insert(MEAN.to_string(), TensorData::new(mean, [gaussian.dimensions()]));
        tensors.insert(COVARIANCE.to_string(), data(&gaussian.covariance));
        Ok(Statistics { metric: comparison.name, count, tensors, captions: Vec::new() })
    }
}

/// The samples so far, in the feature space.
struct Samples {
    comparison: Comparison,
    real: Gaussian,
    /// Columns to which the features are reduced; `None` = all dimensions.
    directions: Option<Mat<f64>>,
    moments: Option<Moments>,
}

impl Accumulator for Samples {
    fn update(&mut self, images: &Images) -> Result<()> {
        let seen = self.moments.as_ref().map_or(0, |moments| moments.count);
        let vectors = self.comparison.of("sample", images, seen)?;
        let wanted = self.directions.as_ref().map_or(self.real.dimensions(), Mat::nrows);
        if vectors.width != wanted {
            let what = format!("a sample has {} dimensions and a real image {wanted}", vectors.width);
            let metric = self.comparison.metric;
            return Err(Error::Run(format!("metric \"{metric}\" needs features of one width; {what}")));
        }
        match &self.directions {
            None => self.moments.get_or_insert_with(|| Moments::new(wanted)).add(&vectors.values),
            Some(directions) => {
                let columns = Mat::from_fn(wanted, vectors.len(), |i, j| f64::from(vectors.row(j)[i]));
                let projected = directions.transpose() * columns;
                self.moments.get_or_insert_with(|| Moments::new(directions.ncols())).add_columns(projected);
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
        let dimensions = self.real.dimensions();
        let (least, count) = (self.comparison.least(dimensions), self.moments.as_ref().map_or(0, |m| m.count));
        let Some(moments) = self.moments.filter(|moments| moments.count >= least) else {
            return Err(too_few(self.comparison.metric, "sample", least, count));
        };
        let meaning =
            format!("Frechet distance in {dimensions} dimensions, squared units of the features, lower is better");
        let value = moments.gaussian().distance(&self.real)?;
        Ok(vec![Measurement { name: self.comparison.name, value, meaning }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::random::Random;

    fn images(values: Vec<f32>, width: usize) -> Images {
        Images { values, ..Images::none([1, 1, width]) }
    }

    fn normal(seed: u64, count: usize, width: usize) -> Images {
        images(Random::new(seed).normal("image", 0, 0, count * width), width)
    }

    fn metric(components: Option<usize>) -> Frechet {
        let mut metric = Frechet { components, ..Frechet::default() };
        metric.load(&mut Spaces::new(&Device::flex())).unwrap();
        metric
    }

    fn value(components: Option<usize>, samples: &Images, real: &Images) -> f64 {
        metric(components).measure(samples, real).unwrap()[0].value
    }

    #[test]
    fn distance_by_hand_in_one_dimension() {
        // The means are 1 and 4, the variances (1 + 0 + 1) / 2 = 1 and (9 + 0 + 9) / 2 = 9: 3^2 + (1 - 3)^2.
        let samples = images(vec![0.0, 1.0, 2.0], 1);
        let real = images(vec![1.0, 4.0, 7.0], 1);
        assert!((value(None, &samples, &real) - 13.0).abs() < 1e-12);
    }

    #[test]
    fn saved_statistics_measure_the_same() {
        let (samples, real) = (normal(1, 40, 6), normal(2, 50, 6));
        for components in [None, Some(3)] {
            let metric = metric(components);
            let mut reference = metric.reference();
            reference.update(&real).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("statistics.safetensors");
            reference.finish().unwrap().save(&path).unwrap();
            let mut accumulator = metric.start(Arc::new(Statistics::load(&path).unwrap())).unwrap();
            accumulator.update(&samples).unwrap();
            let value = accumulator.finish().unwrap()[0].value;
            assert_eq!(value, metric.measure(&samples, &real).unwrap()[0].value);
            let other = Frechet { components: Some(2), ..Frechet::default() };
            assert!(other.start(Arc::new(Statistics::load(&path).unwrap())).is_err());
        }
    }

    #[test]
    fn all_principal_directions_keep_the_distance() {
        let (samples, real) = (normal(1, 40, 6), normal(2, 50, 6));
        assert!((value(Some(6), &samples, &real) - value(None, &samples, &real)).abs() < 1e-9);
    }

    #[test]
    fn principal_direction_is_that_of_largest_variance() {
        // Real images vary along (1, 1) only. Samples are shifted by (1, -1), which that direction cannot
        // measure.
        let real = images(vec![0.0, 0.0, 1.0, 1.0, 2.0, 2.0], 2);
        let samples = images(vec![1.0, -1.0, 2.0, 0.0, 3.0, 1.0], 2);
        assert!(value(Some(1), &samples, &real) < 1e-9);
        assert!((value(None, &samples, &real) - 2.0).abs() < 1e-6);
    }

    #[test]
    fn large_images_need_no_covariance_of_their_values() {
        // 12,288 values per image. Real images are multiples of one image, so one direction has all their variance.
        let base = Random::new(1).normal("image", 0, 0, 12_288);
        let scaled = |scale: f32| base.iter().map(move |value| scale * value).collect::<Vec<_>>();
        let real = images([0.0, 1.0, 2.0].map(scaled).concat(), 12_288);
        let samples = images([2.0, 3.0, 4.0].map(scaled).concat(), 12_288);
        let squares: f64 = base.iter().map(|v| f64::from(*v).powi(2)).sum();
        // The means differ by twice the base; the variances are equal.
        let got = value(Some(1), &samples, &real);
        assert!((got / (4.0 * squares) - 1.0).abs() < 1e-6, "{got} {squares}");
    }

    #[test]
    fn measurement_names_its_feature_space() {
        let (samples, real) = (normal(1, 10, 4), normal(2, 10, 4));
        let name = |components| metric(components).measure(&samples, &real).unwrap()[0].name.clone();
        assert_eq!(name(None), "frechet_pixels");
        assert_eq!(name(Some(2)), "frechet_pixels_pca_2");
    }

    #[test]
    fn errors_say_what_is_needed() {
        let message = |components, samples: &Images, real: &Images| {
            metric(components).measure(samples, real).unwrap_err().to_string()
        };
        let (few, many) = (normal(1, 4, 4), normal(2, 10, 4));
        let expected = "metric \"frechet\" needs at least 5 sample(s) and got 4";
        assert_eq!(message(None, &few, &many), expected);
        assert!(message(Some(5), &many, &many).contains("`components` = 5, but the features have 4 dimensions"));
        assert_eq!(metric(Some(0)).check().len(), 1);
        let problem = |components, image| metric(components).check_image(image).pop().unwrap().what;
        assert!(problem(None, [3, 64, 64]).contains("12288 dimensions, too many"));
        assert!(problem(Some(5), [1, 2, 2]).contains("have 4 dimensions"));
        assert!(metric(None).check_image([3, 32, 32]).is_empty());
        let unloaded = Frechet::default().measure(&many, &many).unwrap_err().to_string();
        assert_eq!(unloaded, "the features of metric \"frechet\" are not loaded");
    }

    #[test]
    fn documents_name_the_feature_space() {
        let read = |text: &str| framework::serde_json::from_str::<Frechet>(text);
        let default = read("{}").unwrap();
        assert_eq!((default.features.space(), default.components), ("pixels".to_string(), None));
        assert_eq!(read(r#"{"components": 16}"#).unwrap().components, Some(16));
        assert!(read(r#"{"features": {"type": "pixels", "components": 16}}"#).is_err());
    }
}

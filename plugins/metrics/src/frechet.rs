//! Frechet distance between two Gaussians, fitted to samples and to real images in a chosen feature space.
//!
//!   d = |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)),   tr (S1 S2)^(1/2) = tr (S1^(1/2) S2 S1^(1/2))^(1/2)
//!
//! Covariances divide by count - 1; all computations use f64.
//! Source: arXiv:1706.08500, eq. 6. The paper uses Inception features. Distances in different feature spaces are not
//! comparable, so the name of each measurement includes its space.

use crate::neighbours::{finite, too_few};
use framework::burn::tensor::TensorData;
use framework::error::{Error, Problems, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::statistics::Statistics;
use framework::prelude::*;
use nalgebra::{DMatrix, DVector, SymmetricEigen};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Frechet distance between samples and real images, 0 or more; lower is better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Frechet {
    /// Feature space in which images are compared. There must be more samples, and more real images, than
    /// dimensions.
    #[serde(default)]
    pub features: Features,
}

/// A feature space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Features {
    /// The values of the images.
    Pixels {},
    /// The principal directions of the real images, not whitened.
    Pca {
        /// Number of directions, at least 1 and at most the number of values per image.
        #[schemars(range(min = 1))]
        components: usize,
    },
}

impl Default for Features {
    fn default() -> Self {
        Self::Pixels {}
    }
}

framework::register!(metric "frechet" => Frechet, "arXiv:1706.08500");

impl Metric for Frechet {
    fn check(&self) -> Problems {
        match self.features {
            Features::Pca { components: 0 } => {
                vec![Problem::new("/features/components", "`components` is 0").accepts("1 or more")]
            }
            _ => Problems::new(),
        }
    }

    fn least_samples(&self, width: usize) -> usize {
        match self.features {
            Features::Pixels {} => width + 1,
            Features::Pca { components } => components + 1,
        }
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Real { metric: self.clone(), moments: None })
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect(&self.name())?;
        let real = Gaussian::from_statistics(&reference)?;
        let directions = match self.features {
            Features::Pixels {} => None,
            Features::Pca { .. } => Some(matrix(reference.tensor(DIRECTIONS)?)),
        };
        Ok(Box::new(Samples { metric: self.clone(), real, directions, width: None, moments: None }))
    }
}

/// Names of the tensors of the statistics.
const MEAN: &str = "mean";
const COVARIANCE: &str = "covariance";
const DIRECTIONS: &str = "directions";

impl Frechet {
    /// Returns the name of the measurement, which includes the feature space.
    fn name(&self) -> String {
        match self.features {
            Features::Pixels {} => "frechet_pixels".to_string(),
            Features::Pca { components } => format!("frechet_pca_{components}"),
        }
    }
}

/// The real images so far, in pixels.
struct Real {
    metric: Frechet,
    moments: Option<Moments>,
}

impl Reference for Real {
    fn update(&mut self, images: &Images) -> Result<()> {
        let seen = self.moments.as_ref().map_or(0, |moments| moments.count);
        finite("frechet", "real image", images, seen)?;
        let moments = self.moments.get_or_insert_with(|| Moments::new(images.width()));
        moments.add(&rows(images));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Statistics> {
        let Self { metric, moments } = *self;
        let width = moments.as_ref().map_or(0, |moments| moments.mean.len());
        let (least, count) = (metric.least_samples(width), moments.as_ref().map_or(0, |moments| moments.count));
        let Some(moments) = moments.filter(|moments| moments.count >= least) else {
            return Err(too_few("frechet", "real image", least, count));
        };
        let mut gaussian = moments.gaussian();
        let mut tensors = BTreeMap::new();
        if let Features::Pca { components } = metric.features {
            if components > width {
                let what = format!("`components` = {components}, but an image has {width} values");
                return Err(Error::Run(format!("metric \"frechet\": {what}; use at most that many")));
            }
            let directions = principal_directions(&gaussian.covariance, components);
            gaussian = Gaussian {
                mean: directions.tr_mul(&gaussian.mean),
                covariance: directions.tr_mul(&gaussian.covariance) * &directions,
            };
            tensors.insert(DIRECTIONS.to_string(), data(&directions));
        }
        tensors.insert(MEAN.to_string(), data(&DMatrix::from_columns(&[gaussian.mean])));
        tensors.insert(COVARIANCE.to_string(), data(&gaussian.covariance));
        Ok(Statistics { metric: metric.name(), count, tensors, captions: Vec::new() })
    }
}

/// The samples so far, in the feature space.
struct Samples {
    metric: Frechet,
    real: Gaussian,
    /// Columns of the feature space in pixels; `None` = pixels.
    directions: Option<DMatrix<f64>>,
    width: Option<usize>,
    moments: Option<Moments>,
}

impl Accumulator for Samples {
    fn update(&mut self, images: &Images) -> Result<()> {
        let seen = self.moments.as_ref().map_or(0, |moments| moments.count);
        finite("frechet", "sample", images, seen)?;
        self.width = Some(images.width());
        let wanted = self.directions.as_ref().map_or(self.real.mean.len(), DMatrix::nrows);
        if images.width() != wanted {
            let what = format!("a sample has {} values and a real image {wanted}", images.width());
            return Err(Error::Run(format!("metric \"frechet\" needs images of one size; {what}")));
        }
        let features = match &self.directions {
            None => rows(images),
            Some(directions) => rows(images) * directions,
        };
        self.moments.get_or_insert_with(|| Moments::new(features.ncols())).add(&features);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
        let width = self.width.unwrap_or(self.real.mean.len());
        let (least, count) = (self.metric.least_samples(width), self.moments.as_ref().map_or(0, |m| m.count));
        let Some(moments) = self.moments.filter(|moments| moments.count >= least) else {
            return Err(too_few("frechet", "sample", least, count));
        };
        let dimensions = self.real.mean.len();
        let meaning =
            format!("Frechet distance in {dimensions} dimensions, squared units of the data, lower is better");
        let value = moments.gaussian().distance(&self.real);
        Ok(vec![Measurement { name: self.metric.name(), value, meaning }])
    }
}

/// Converts a matrix to the row-major tensor of a statistics file.
fn data(matrix: &DMatrix<f64>) -> TensorData {
    TensorData::new(matrix.transpose().as_slice().to_vec(), [matrix.nrows(), matrix.ncols()])
}

/// Converts a row-major tensor to a matrix.
fn matrix(data: &TensorData) -> DMatrix<f64> {
    let values: Vec<f64> = data.iter::<f64>().collect();
    let columns = data.shape().to_vec().last().copied().unwrap_or(1).max(1);
    DMatrix::from_row_slice(values.len() / columns, columns, &values)
}

/// Mean and scatter of vectors, accumulated in batches.
#[derive(Clone, Debug)]
struct Moments {
    count: usize,
    mean: DVector<f64>,
    /// Sum of `(x - mean) (x - mean)^T`.
    scatter: DMatrix<f64>,
}

impl Moments {
    fn new(width: usize) -> Self {
        Self { count: 0, mean: DVector::zeros(width), scatter: DMatrix::zeros(width, width) }
    }

    /// Adds the rows of a matrix.
    ///
    /// Source: T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    /// variances", 1979.
    fn add(&mut self, rows: &DMatrix<f64>) {
        if rows.nrows() == 0 {
            return;
        }
        let batch_mean = rows.row_mean();
        let mut centred = rows.clone();
        for mut row in centred.row_iter_mut() {
            row -= &batch_mean;
        }
        let (before, added) = (self.count as f64, rows.nrows() as f64);
        let difference = batch_mean.transpose() - &self.mean;
        self.mean += &difference * (added / (before + added));
        self.scatter +=
            centred.tr_mul(&centred) + &difference * difference.transpose() * (before * added / (before + added));
        self.count += rows.nrows();
    }

    fn gaussian(&self) -> Gaussian {
        Gaussian { mean: self.mean.clone(), covariance: &self.scatter / (self.count as f64 - 1.0) }
    }
}

/// Converts the images to the rows of a matrix.
fn rows(images: &Images) -> DMatrix<f64> {
    DMatrix::from_row_iterator(images.len(), images.width(), images.values.iter().map(|value| f64::from(*value)))
}

/// Returns the `count` directions of largest variance, as columns.
fn principal_directions(covariance: &DMatrix<f64>, count: usize) -> DMatrix<f64> {
    let eigen = SymmetricEigen::new(covariance.clone());
    let mut order: Vec<usize> = (0..covariance.ncols()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    eigen.eigenvectors.select_columns(&order[..count])
}

/// A mean and a covariance.
#[derive(Clone, Debug)]
struct Gaussian {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
}

impl Gaussian {
    fn from_statistics(statistics: &Statistics) -> Result<Self> {
        let mean = matrix(statistics.tensor(MEAN)?);
        Ok(Self { mean: mean.column(0).into_owned(), covariance: matrix(statistics.tensor(COVARIANCE)?) })
    }

    fn distance(&self, other: &Self) -> f64 {
        let root = square_root(&self.covariance);
        let product = symmetric(&root * &other.covariance * &root);
        let trace_of_root: f64 = product.symmetric_eigenvalues().iter().map(|value| value.max(0.0).sqrt()).sum();
        let means = (&self.mean - &other.mean).norm_squared();
        let distance = means + self.covariance.trace() + other.covariance.trace() - 2.0 * trace_of_root;
        // Rounding can make a distance of zero slightly negative.
        distance.max(0.0)
    }
}

/// Computes the symmetric square root of a covariance. Eigenvalues that rounding made negative count as zero.
fn square_root(covariance: &DMatrix<f64>) -> DMatrix<f64> {
    let eigen = SymmetricEigen::new(covariance.clone());
    let roots = eigen.eigenvalues.map(|value| value.max(0.0).sqrt());
    &eigen.eigenvectors * DMatrix::from_diagonal(&roots) * eigen.eigenvectors.transpose()
}

fn symmetric(matrix: DMatrix<f64>) -> DMatrix<f64> {
    (&matrix + matrix.transpose()) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::random::Random;
    use proptest::prelude::*;
    use std::path::Path as FilePath;

    fn fit(rows: &DMatrix<f64>) -> Gaussian {
        let mut moments = Moments::new(rows.ncols());
        moments.add(rows);
        moments.gaussian()
    }

    fn images(values: Vec<f32>, width: usize) -> Images {
        Images { values, ..Images::none([1, 1, width]) }
    }

    fn normal(seed: u64, count: usize, width: usize) -> Images {
        images(Random::new(seed).normal("image", 0, 0, count * width), width)
    }

    fn value(features: Features, samples: &Images, real: &Images) -> f64 {
        Frechet { features }.measure(samples, real).unwrap()[0].value
    }

    #[test]
    fn distance_by_hand_in_one_dimension() {
        // The means are 1 and 4, the variances (1 + 0 + 1) / 2 = 1 and (9 + 0 + 9) / 2 = 9: 3^2 + (1 - 3)^2.
        let samples = images(vec![0.0, 1.0, 2.0], 1);
        let real = images(vec![1.0, 4.0, 7.0], 1);
        assert!((value(Features::Pixels {}, &samples, &real) - 13.0).abs() < 1e-12);
    }

    #[test]
    fn distance_matches_recorded_values() {
        let path = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/data/metrics.safetensors");
        let bytes = std::fs::read(&path).expect("the recorded file belongs to the repository");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str| -> (Vec<usize>, Vec<f64>) {
            let view = tensors.tensor(name).unwrap();
            let numbers = view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
            (view.shape().to_vec(), numbers)
        };
        let matrix = |name: &str| {
            let (shape, numbers) = read(name);
            DMatrix::from_row_slice(shape[0], shape[1], &numbers)
        };
        let (first, second) = (matrix("feat1"), matrix("feat2"));
        let (one, two) = (fit(&first), fit(&second));
        for (got, name) in [(&one.covariance, "sigma1"), (&two.covariance, "sigma2")] {
            assert!((got - matrix(name)).amax() < 1e-12, "{name}");
        }
        let close = |got: f64, name: &str, tolerance: f64| {
            let expected = read(name).1[0];
            assert!((got - expected).abs() <= tolerance * expected, "{name}: {got} {expected}");
        };
        close(one.distance(&two), "fid", 1e-6);
        let few = fit(&first.rows(0, 8).into_owned());
        close(few.distance(&two), "fid_rank_deficient", 1e-3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn distance_is_symmetric_and_zero_on_itself(seed in 0_u64..1000, count in 2_usize..20, width in 1_usize..8) {
            let gaussian = |seed| fit(&rows(&normal(seed, count, width)));
            let (one, two) = (gaussian(seed), gaussian(seed + 1000));
            let (there, back) = (one.distance(&two), two.distance(&one));
            // Rounding leaves a singular covariance with eigenvalues whose roots are about 1e-7.
            prop_assert!((there - back).abs() < 1e-5 * (1.0 + there), "{} {}", there, back);
            prop_assert!(one.distance(&one) < 1e-5);
        }

        #[test]
        fn distance_of_commuting_gaussians_has_its_closed_form(
            numbers in prop::collection::vec((-2.0_f64..2.0, -2.0_f64..2.0, 0.0_f64..3.0, 0.0_f64..3.0), 1..6),
        ) {
            // With standard deviations s1 and s2 on common axes, d = |mu1 - mu2|^2 + sum (s1 - s2)^2.
            let of = |f: fn(&(f64, f64, f64, f64)) -> f64| DVector::from_iterator(numbers.len(), numbers.iter().map(f));
            let axes = normal(7, numbers.len(), numbers.len());
            let axes = SymmetricEigen::new(symmetric(rows(&axes))).eigenvectors;
            let gaussian = |mean: DVector<f64>, deviation: DVector<f64>| Gaussian {
                mean: &axes * mean,
                covariance: symmetric(&axes * DMatrix::from_diagonal(&deviation.map(|s| s * s)) * axes.transpose()),
            };
            let (one, two) = (gaussian(of(|n| n.0), of(|n| n.2)), gaussian(of(|n| n.1), of(|n| n.3)));
            let expected: f64 = numbers.iter().map(|n| (n.0 - n.1).powi(2) + (n.2 - n.3).powi(2)).sum();
            prop_assert!((one.distance(&two) - expected).abs() < 1e-5, "{} {}", one.distance(&two), expected);
        }
    }

    #[test]
    fn batches_give_the_moments_of_the_whole() {
        let all = rows(&normal(3, 37, 5));
        let mut batched = Moments::new(5);
        for (start, count) in [(0, 1), (1, 20), (21, 0), (21, 16)] {
            batched.add(&all.rows(start, count).into_owned());
        }
        let (whole, batched) = (fit(&all), batched.gaussian());
        assert!((&whole.mean - &batched.mean).amax() < 1e-14);
        assert!((&whole.covariance - &batched.covariance).amax() < 1e-14);
    }

    #[test]
    fn saved_statistics_measure_the_same() {
        let (samples, real) = (normal(1, 40, 6), normal(2, 50, 6));
        for features in [Features::Pixels {}, Features::Pca { components: 3 }] {
            let metric = Frechet { features };
            let mut reference = metric.reference();
            reference.update(&real).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("statistics.safetensors");
            reference.finish().unwrap().save(&path).unwrap();
            let mut accumulator = metric.start(Arc::new(Statistics::load(&path).unwrap())).unwrap();
            accumulator.update(&samples).unwrap();
            let value = accumulator.finish().unwrap()[0].value;
            assert_eq!(value, metric.measure(&samples, &real).unwrap()[0].value);
            let other = Frechet { features: Features::Pca { components: 2 } };
            assert!(other.start(Arc::new(Statistics::load(&path).unwrap())).is_err());
        }
    }

    #[test]
    fn all_principal_directions_keep_the_distance() {
        let (samples, real) = (normal(1, 40, 6), normal(2, 50, 6));
        let all = value(Features::Pca { components: 6 }, &samples, &real);
        assert!((all - value(Features::Pixels {}, &samples, &real)).abs() < 1e-9);
    }

    #[test]
    fn principal_direction_is_that_of_largest_variance() {
        // Real images vary along (1, 1) only. Samples are shifted by (1, -1), which that direction cannot
        // measure.
        let real = images(vec![0.0, 0.0, 1.0, 1.0, 2.0, 2.0], 2);
        let samples = images(vec![1.0, -1.0, 2.0, 0.0, 3.0, 1.0], 2);
        assert!(value(Features::Pca { components: 1 }, &samples, &real) < 1e-9);
        assert!((value(Features::Pixels {}, &samples, &real) - 2.0).abs() < 1e-6);
    }

    #[test]
    fn measurement_names_its_feature_space() {
        let (samples, real) = (normal(1, 10, 4), normal(2, 10, 4));
        let name = |features| Frechet { features }.measure(&samples, &real).unwrap()[0].name.clone();
        assert_eq!(name(Features::Pixels {}), "frechet_pixels");
        assert_eq!(name(Features::Pca { components: 2 }), "frechet_pca_2");
    }

    #[test]
    fn errors_say_what_is_needed() {
        let message = |features, samples: &Images, real: &Images| {
            Frechet { features }.measure(samples, real).unwrap_err().to_string()
        };
        let (few, many) = (normal(1, 4, 4), normal(2, 10, 4));
        let expected = "metric \"frechet\" needs at least 5 sample(s) and got 4";
        assert_eq!(message(Features::Pixels {}, &few, &many), expected);
        assert!(message(Features::Pca { components: 5 }, &many, &many).contains("`components` = 5, but an image has"));
        assert_eq!(Frechet { features: Features::Pca { components: 0 } }.check().len(), 1);
    }

    #[test]
    fn documents_name_the_feature_space() {
        let read = |text: &str| serde_json::from_str::<Frechet>(text);
        assert_eq!(read("{}").unwrap().features, Features::Pixels {});
        let pca = read(r#"{"features": {"type": "pca", "components": 16}}"#).unwrap();
        assert_eq!(pca.features, Features::Pca { components: 16 });
        assert!(read(r#"{"features": {"type": "pixels", "components": 16}}"#).is_err());
    }
}

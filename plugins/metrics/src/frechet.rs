//! Frechet distance between Gaussians fitted to samples and to real images, in a stated feature space.
//!
//!   d = |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)),   tr (S1 S2)^(1/2) = tr (S1^(1/2) S2 S1^(1/2))^(1/2)
//!
//! Covariances divide by count - 1; everything is f64.
//! Source: arXiv:1706.08500, eq. 6. That paper's features are Inception's; distances in other spaces are other
//! numbers, so each measurement carries the name of its space.

use crate::neighbours::comparable;
use framework::error::{Error, Problems, Result};
use framework::metric::{Images, Measurement, Metric};
use framework::prelude::*;
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Frechet distance between samples and real images, 0 or more; lower is better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Frechet {
    /// The space that images are compared in. More samples and more real images than it has dimensions are needed.
    #[serde(default)]
    pub features: Features,
}

/// A feature space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Features {
    /// The numbers of the images themselves.
    Pixels {},
    /// The directions of largest variance of the real images, not whitened.
    Pca {
        /// Directions kept, at least 1 and at most the numbers of an image.
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

    fn measure(&self, samples: &Images, real: &Images) -> Result<Vec<Measurement>> {
        comparable("frechet", samples, real, self.least_samples(samples.width()), self.least_samples(real.width()))?;
        let (samples, real) = (rows(samples), rows(real));
        let (name, samples, real) = match self.features {
            Features::Pixels {} => ("frechet_pixels".to_string(), samples, real),
            Features::Pca { components } => {
                if components > real.ncols() {
                    let what = format!("`components` = {components} and an image is {} numbers", real.ncols());
                    return Err(Error::Run(format!("metric \"frechet\": {what}; at most as many are possible")));
                }
                let directions = principal_directions(&real, components);
                (format!("frechet_pca_{components}"), samples * &directions, real * &directions)
            }
        };
        let meaning =
            format!("Frechet distance in {} dimensions, squared units of the data, lower is better", real.ncols());
        Ok(vec![Measurement { name, value: Gaussian::fit(&samples).distance(&Gaussian::fit(&real)), meaning }])
    }
}

/// The images as rows of a matrix.
fn rows(images: &Images) -> DMatrix<f64> {
    DMatrix::from_row_iterator(images.len(), images.width(), images.values.iter().map(|value| f64::from(*value)))
}

/// The `count` directions of largest variance of the rows, as columns.
fn principal_directions(rows: &DMatrix<f64>, count: usize) -> DMatrix<f64> {
    let eigen = SymmetricEigen::new(Gaussian::fit(rows).covariance);
    let mut order: Vec<usize> = (0..rows.ncols()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    eigen.eigenvectors.select_columns(&order[..count])
}

/// Mean and covariance of rows.
#[derive(Clone, Debug)]
struct Gaussian {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
}

impl Gaussian {
    fn fit(rows: &DMatrix<f64>) -> Self {
        let mean = rows.row_mean();
        let mut centred = rows.clone();
        for mut row in centred.row_iter_mut() {
            row -= &mean;
        }
        let covariance = centred.tr_mul(&centred) / (rows.nrows() as f64 - 1.0);
        Self { mean: mean.transpose(), covariance }
    }

    fn distance(&self, other: &Self) -> f64 {
        let root = square_root(&self.covariance);
        let product = symmetric(&root * &other.covariance * &root);
        let trace_of_root: f64 = product.symmetric_eigenvalues().iter().map(|value| value.max(0.0).sqrt()).sum();
        let means = (&self.mean - &other.mean).norm_squared();
        let distance = means + self.covariance.trace() + other.covariance.trace() - 2.0 * trace_of_root;
        // Rounding may leave a distance of zero just below it.
        distance.max(0.0)
    }
}

/// The symmetric square root of a covariance; eigenvalues that rounding made negative count as zero.
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
        // Means 1 and 4, variances (1 + 0 + 1) / 2 = 1 and (9 + 0 + 9) / 2 = 9: 3^2 + (1 - 3)^2.
        let samples = images(vec![0.0, 1.0, 2.0], 1);
        let real = images(vec![1.0, 4.0, 7.0], 1);
        assert!((value(Features::Pixels {}, &samples, &real) - 13.0).abs() < 1e-12);
    }

    #[test]
    fn distance_matches_recorded_values() {
        let path = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/goldens/metrics.safetensors");
        let Ok(bytes) = std::fs::read(&path) else {
            eprintln!("skipped: {} is absent", path.display());
            return;
        };
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
        let (one, two) = (Gaussian::fit(&first), Gaussian::fit(&second));
        for (got, name) in [(&one.covariance, "sigma1"), (&two.covariance, "sigma2")] {
            assert!((got - matrix(name)).amax() < 1e-12, "{name}");
        }
        let close = |got: f64, name: &str, tolerance: f64| {
            let expected = read(name).1[0];
            assert!((got - expected).abs() <= tolerance * expected, "{name}: {got} {expected}");
        };
        close(one.distance(&two), "fid", 1e-6);
        let few = Gaussian::fit(&first.rows(0, 8).into_owned());
        close(few.distance(&two), "fid_rank_deficient", 1e-3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn distance_is_symmetric_and_zero_on_itself(seed in 0_u64..1000, count in 2_usize..20, width in 1_usize..8) {
            let gaussian = |seed| Gaussian::fit(&rows(&normal(seed, count, width)));
            let (one, two) = (gaussian(seed), gaussian(seed + 1000));
            let (there, back) = (one.distance(&two), two.distance(&one));
            // A singular covariance has eigenvalues of rounding size, whose roots are about 1e-7.
            prop_assert!((there - back).abs() < 1e-5 * (1.0 + there), "{} {}", there, back);
            prop_assert!(one.distance(&one) < 1e-5);
        }

        #[test]
        fn distance_of_commuting_gaussians_has_its_closed_form(
            numbers in prop::collection::vec((-2.0_f64..2.0, -2.0_f64..2.0, 0.0_f64..3.0, 0.0_f64..3.0), 1..6),
        ) {
            // |mu1 - mu2|^2 + sum (s1 - s2)^2 for standard deviations s1, s2 on common axes.
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
    fn all_principal_directions_keep_the_distance() {
        let (samples, real) = (normal(1, 40, 6), normal(2, 50, 6));
        let all = value(Features::Pca { components: 6 }, &samples, &real);
        assert!((all - value(Features::Pixels {}, &samples, &real)).abs() < 1e-9);
    }

    #[test]
    fn principal_direction_is_that_of_largest_variance() {
        // Real images spread along (1, 1) only; samples are off it by (1, -1), which the one direction cannot see.
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
        assert!(message(Features::Pca { components: 5 }, &many, &many).contains("`components` = 5 and an image is 4"));
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

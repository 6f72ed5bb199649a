//! Gaussians fitted to feature vectors: streaming moments, the Frechet distance, and principal directions.
//!
//! All computations use f64. No matrix is larger than the feature dimension or the number of vectors, whichever is
//! smaller.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Side, get_global_parallelism};
use framework::burn::tensor::TensorData;
use framework::error::{Error, Result};
use framework::random::Random;

/// Largest number of dimensions whose covariance is formed: 128 MiB.
pub const MOST_DIMENSIONS: usize = 4096;
/// Number of values per block of a sum over many dimensions.
const BLOCK: usize = 1 << 22;

/// Mean and scatter of vectors, accumulated in batches.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Number of vectors.
    pub count: usize,
    mean: Mat<f64>,
    /// Sum of `(x - mean) (x - mean)^T`.
    scatter: Mat<f64>,
}

impl Moments {
    /// Starts without vectors.
    pub fn new(width: usize) -> Self {
        Self { count: 0, mean: Mat::zeros(width, 1), scatter: Mat::zeros(width, width) }
    }

    /// Returns the number of dimensions.
    pub fn dimensions(&self) -> usize {
        self.mean.nrows()
    }

    /// Adds vectors, `[count, width]` row-major.
    pub fn add(&mut self, values: &[f32]) {
        let (width, count) = (self.mean.nrows(), values.len() / self.mean.nrows().max(1));
        // The columns of this matrix are the vectors.
        self.add_columns(Mat::from_fn(width, count, |i, j| f64::from(values[j * width + i])));
    }

    /// Adds the columns of a matrix.
    ///
    /// Source: T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    /// variances", 1979.
    pub fn add_columns(&mut self, mut columns: Mat<f64>) {
        let (before, added) = (self.count as f64, columns.ncols() as f64);
        if columns.ncols() == 0 {
            return;
        }
        let width = columns.nrows();
        let batch_mean = Mat::from_fn(width, 1, |i, _| columns.row(i).iter().sum::<f64>() / added);
        for j in 0..columns.ncols() {
            for i in 0..width {
                columns[(i, j)] -= batch_mean[(i, 0)];
            }
        }
        let difference = &batch_mean - &self.mean;
        self.mean += &difference * faer::Scale(added / (before + added));
        let parallel = get_global_parallelism();
        matmul(&mut self.scatter, Accum::Add, &columns, columns.transpose(), 1.0, parallel);
        let weight = before * added / (before + added);
        matmul(&mut self.scatter, Accum::Add, &difference, difference.transpose(), weight, parallel);
        self.count += columns.ncols();
    }

    /// Returns the Gaussian with this mean and covariance. The covariance divides by count - 1.
    pub fn gaussian(&self) -> Gaussian {
        let covariance = &self.scatter * faer::Scale(1.0 / (self.count as f64 - 1.0));
        Gaussian { mean: self.mean.clone(), covariance }
    }
}

/// A mean and a covariance.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// Mean, `[D, 1]`.
    pub mean: Mat<f64>,
    /// Covariance, `[D, D]`.
    pub covariance: Mat<f64>,
}

impl Gaussian {
    /// Returns the number of dimensions.
    pub fn dimensions(&self) -> usize {
        self.mean.nrows()
    }

    /// Computes the squared Frechet distance
    /// `|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, with `tr (S1 S2)^(1/2) = tr (S1^(1/2) S2 S1^(1/2))^(1/2)`.
    ///
    /// # Errors
    /// If an eigenvalue computation does not converge.
    pub fn distance(&self, other: &Self) -> Result<f64> {
        let root = square_root(&self.covariance)?;
        let product = symmetric(&(&root * &other.covariance * &root));
        let values = product.self_adjoint_eigenvalues(Side::Lower).map_err(diverged)?;
        let trace_of_root: f64 = values.iter().map(|value| value.max(0.0).sqrt()).sum();
        let means = (&self.mean - &other.mean).squared_norm_l2();
        let distance = means + trace(&self.covariance) + trace(&other.covariance) - 2.0 * trace_of_root;
        // Rounding can make a distance of zero slightly negative.
        Ok(distance.max(0.0))
    }

    /// Returns the Gaussian of the projections on the columns of `directions`.
    pub fn project(&self, directions: &Mat<f64>) -> Self {
        Self {
            mean: directions.transpose() * &self.mean,
            covariance: directions.transpose() * &self.covariance * directions,
        }
    }

    /// Returns the `count` directions of largest variance, as columns.
    ///
    /// # Errors
    /// If the eigenvalue computation does not converge.
    pub fn principal_directions(&self, count: usize) -> Result<Mat<f64>> {
        let (vectors, _) = largest(&self.covariance, count)?;
        Ok(vectors)
    }
}

fn diverged(error: impl std::fmt::Debug) -> Error {
    Error::Run(format!("the eigenvalues of a covariance cannot be computed: {error:?}"))
}

fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum()
}

fn symmetric(matrix: &Mat<f64>) -> Mat<f64> {
    (matrix + matrix.transpose()) * faer::Scale(0.5)
}

/// Computes the symmetric square root of a covariance. Eigenvalues that rounding made negative count as zero.
fn square_root(covariance: &Mat<f64>) -> Result<Mat<f64>> {
    let eigen = covariance.self_adjoint_eigen(Side::Lower).map_err(diverged)?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| vectors[(i, j)] * values[j].max(0.0).sqrt());
    Ok(&scaled * vectors.transpose())
}

/// Returns the eigenvectors of the `count` largest eigenvalues, as columns, and these eigenvalues, largest first.
fn largest(matrix: &Mat<f64>, count: usize) -> Result<(Mat<f64>, Vec<f64>)> {
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(diverged)?;
    // The eigenvalues ascend.
    let (vectors, values, last) = (eigen.U(), eigen.S().column_vector(), matrix.nrows() - 1);
    let chosen = Mat::from_fn(matrix.nrows(), count, |i, j| vectors[(i, last - j)]);
    Ok((chosen, (0..count).map(|j| values[last - j]).collect()))
}

/// Vectors of many dimensions, chosen at random from a stream (reservoir sampling). Their principal directions are
/// computed from the Gram matrix `[count, count]`, so no covariance is formed.
pub struct Reservoir {
    width: usize,
    most: usize,
    /// Number of vectors of the stream so far.
    pub seen: usize,
    values: Vec<f32>,
}

impl Reservoir {
    /// Number of values that are kept at most: 1 GiB in f32.
    const MOST_VALUES: usize = 1 << 28;

    /// Starts without vectors.
    pub fn new(width: usize) -> Self {
        let most = (Self::MOST_VALUES / width).clamp(1, MOST_DIMENSIONS);
        Self { width, most, seen: 0, values: Vec::new() }
    }

    /// Returns the number of vectors that are kept.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Adds vectors, `[count, width]` row-major. Every vector of the stream is kept with the same probability, which a
    /// fixed seed decides.
    ///
    /// Source: J. Vitter, "Random sampling with a reservoir", 1985, algorithm R.
    pub fn add(&mut self, values: &[f32]) {
        for vector in values.chunks_exact(self.width) {
            if self.len() < self.most {
                self.values.extend_from_slice(vector);
            } else {
                let place = Random::new(0).uniform("reservoir", self.seen as u64, 0, 1)[0] * (self.seen + 1) as f64;
                if let Some(kept) = self.values.chunks_exact_mut(self.width).nth(place as usize) {
                    kept.copy_from_slice(vector);
                }
            }
            self.seen += 1;
        }
    }

    /// Returns the `count` directions of largest variance as columns, and the Gaussian of the projections on them.
    ///
    /// # Errors
    /// If the vectors vary along fewer directions, or the eigenvalue computation does not converge.
    pub fn principal(&self, count: usize) -> Result<(Mat<f64>, Gaussian)> {
        let (vectors, width) = (self.len(), self.width);
        let at = |i: usize, j: usize| f64::from(self.values[i * width + j]);
        let means: Vec<f64> =
            (0..width).map(|j| (0..vectors).map(|i| at(i, j)).sum::<f64>() / vectors as f64).collect();
        let block = (BLOCK / vectors).max(1);
        let blocks: Vec<_> = (0..width).step_by(block).map(|start| start..(start + block).min(width)).collect();
        let centred = |range: &std::ops::Range<usize>| {
            Mat::from_fn(vectors, range.len(), |i, j| at(i, range.start + j) - means[range.start + j])
        };
        let mut gram = Mat::<f64>::zeros(vectors, vectors);
        for range in &blocks {
            let part = centred(range);
            matmul(&mut gram, Accum::Add, &part, part.transpose(), 1.0, get_global_parallelism());
        }
        // If gram u = l u, then X^T u / sqrt(l) is a unit eigenvector of X^T X.
        let (left, values) = largest(&gram, count)?;
        let varied = values.iter().filter(|value| **value > 1e-10 * values[0].max(f64::MIN_POSITIVE)).count();
        if varied < count {
            let what = format!("the {vectors} real images vary along {varied} directions only, fewer than {count}");
            return Err(Error::Run(format!("metric \"frechet\": {what}; set `components` to at most {varied}")));
        }
        let scaled = Mat::from_fn(vectors, count, |i, j| left[(i, j)] / values[j].sqrt());
        let mut directions = Mat::<f64>::zeros(width, count);
        for range in &blocks {
            let part = centred(range);
            let rows = directions.as_mut().subrows_mut(range.start, range.len());
            matmul(rows, Accum::Replace, part.transpose(), &scaled, 1.0, get_global_parallelism());
        }
        let mean = Mat::from_fn(width, 1, |i, _| means[i]);
        let degrees = vectors as f64 - 1.0;
        let covariance = Mat::from_fn(count, count, |i, j| if i == j { values[i] / degrees } else { 0.0 });
        Ok((directions.clone(), Gaussian { mean: directions.transpose() * mean, covariance }))
    }
}

/// Converts a matrix to the row-major tensor of a statistics file.
pub fn data(matrix: &Mat<f64>) -> TensorData {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let values: Vec<f64> = (0..rows).flat_map(|i| (0..columns).map(move |j| matrix[(i, j)])).collect();
    TensorData::new(values, [rows, columns])
}

/// Converts a row-major tensor to a matrix.
pub fn matrix(data: &TensorData) -> Mat<f64> {
    let values: Vec<f64> = data.iter::<f64>().collect();
    let columns = data.shape().to_vec().get(1).copied().unwrap_or(1).max(1);
    MatRef::from_row_major_slice(&values, values.len() / columns, columns).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path as FilePath;

    fn fit(columns: Mat<f64>) -> Gaussian {
        let mut moments = Moments::new(columns.nrows());
        moments.add_columns(columns);
        moments.gaussian()
    }

    /// Standard normal vectors, as columns.
    fn normal(seed: u64, count: usize, width: usize) -> Mat<f64> {
        let values = Random::new(seed).normal("image", 0, 0, count * width);
        Mat::from_fn(width, count, |i, j| f64::from(values[j * width + i]))
    }

    fn largest_difference(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
        (a - b).norm_max()
    }

    #[test]
    fn distance_matches_recorded_values() {
        let path = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/data/metrics.safetensors");
        let bytes = std::fs::read(&path).expect("the recorded file belongs to the repository");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str| -> Mat<f64> {
            let view = tensors.tensor(name).unwrap();
            let values: Vec<f64> =
                view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
            matrix(&TensorData::new(values, view.shape().to_vec()))
        };
        let (first, second) = (read("feat1"), read("feat2"));
        let (one, two) = (fit(first.transpose().to_owned()), fit(second.transpose().to_owned()));
        for (got, name) in [(&one.covariance, "sigma1"), (&two.covariance, "sigma2")] {
            assert!(largest_difference(got, &read(name)) < 1e-12, "{name}");
        }
        let close = |got: f64, name: &str, tolerance: f64| {
            let expected = read(name)[(0, 0)];
            assert!((got - expected).abs() <= tolerance * expected, "{name}: {got} {expected}");
        };
        close(one.distance(&two).unwrap(), "fid", 1e-6);
        let few = fit(first.subrows(0, 8).transpose().to_owned());
        close(few.distance(&two).unwrap(), "fid_rank_deficient", 1e-3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn distance_is_symmetric_and_zero_on_itself(seed in 0_u64..1000, count in 2_usize..20, width in 1_usize..8) {
            let gaussian = |seed| fit(normal(seed, count, width));
            let (one, two) = (gaussian(seed), gaussian(seed + 1000));
            let (there, back) = (one.distance(&two).unwrap(), two.distance(&one).unwrap());
            // Rounding leaves a singular covariance with eigenvalues whose roots are about 1e-7.
            prop_assert!((there - back).abs() < 1e-5 * (1.0 + there), "{} {}", there, back);
            prop_assert!(one.distance(&one).unwrap() < 1e-5);
        }

        #[test]
        fn distance_of_commuting_gaussians_has_its_closed_form(
            numbers in prop::collection::vec((-2.0_f64..2.0, -2.0_f64..2.0, 0.0_f64..3.0, 0.0_f64..3.0), 1..6),
        ) {
            // With standard deviations s1 and s2 on common axes, d = |mu1 - mu2|^2 + sum (s1 - s2)^2.
            let size = numbers.len();
            let (axes, _) = largest(&symmetric(&normal(7, size, size)), size).unwrap();
            let gaussian = |mean: fn(&(f64, f64, f64, f64)) -> f64, deviation: fn(&(f64, f64, f64, f64)) -> f64| {
                let diagonal =
                    Mat::from_fn(size, size, |i, j| if i == j { deviation(&numbers[i]).powi(2) } else { 0.0 });
                Gaussian {
                    mean: &axes * Mat::from_fn(size, 1, |i, _| mean(&numbers[i])),
                    covariance: symmetric(&(&axes * diagonal * axes.transpose())),
                }
            };
            let (one, two) = (gaussian(|n| n.0, |n| n.2), gaussian(|n| n.1, |n| n.3));
            let expected: f64 = numbers.iter().map(|n| (n.0 - n.1).powi(2) + (n.2 - n.3).powi(2)).sum();
            let got = one.distance(&two).unwrap();
            prop_assert!((got - expected).abs() < 1e-5, "{} {}", got, expected);
        }
    }

    #[test]
    fn batches_give_the_moments_of_the_whole() {
        let all = normal(3, 37, 5);
        let mut batched = Moments::new(5);
        for (start, count) in [(0, 1), (1, 20), (21, 0), (21, 16)] {
            batched.add_columns(all.subcols(start, count).to_owned());
        }
        let (whole, batched) = (fit(all), batched.gaussian());
        assert!(largest_difference(&whole.mean, &batched.mean) < 1e-14);
        assert!(largest_difference(&whole.covariance, &batched.covariance) < 1e-14);
    }

    #[test]
    fn the_gram_matrix_gives_the_directions_of_the_covariance() {
        let (count, width) = (9, 6);
        let values: Vec<f32> = Random::new(4).normal("image", 0, 0, count * width);
        let (mut moments, mut reservoir) = (Moments::new(width), Reservoir::new(width));
        moments.add(&values);
        reservoir.add(&values);
        let gaussian = moments.gaussian();
        let directions = gaussian.principal_directions(3).unwrap();
        let (of_gram, projected) = reservoir.principal(3).unwrap();
        // An eigenvector has no sign, so compare the projections on the spanned space.
        let space = |directions: &Mat<f64>| directions * directions.transpose();
        assert!(largest_difference(&space(&directions), &space(&of_gram)) < 1e-12);
        let expected = gaussian.project(&of_gram);
        assert!(largest_difference(&projected.mean, &expected.mean) < 1e-12);
        assert!(largest_difference(&projected.covariance, &expected.covariance) < 1e-12);
        // Nine equal vectors vary along no direction.
        let mut equal = Reservoir::new(width);
        equal.add(&[1.0; 9 * 6]);
        assert!(equal.principal(1).unwrap_err().to_string().contains("vary along 0 directions only"));
    }

    #[test]
    fn a_full_reservoir_keeps_vectors_of_the_whole_stream() {
        let mut reservoir = Reservoir { most: 50, ..Reservoir::new(1) };
        let stream: Vec<f32> = (0..5000).map(|v| v as f32).collect();
        reservoir.add(&stream);
        assert_eq!((reservoir.len(), reservoir.seen), (50, 5000));
        let mean = reservoir.values.iter().sum::<f32>() / 50.0;
        // The mean of 50 of 0..5000 has a standard deviation of 204.
        assert!((mean - 2500.0).abs() < 800.0, "{mean}");
    }
}

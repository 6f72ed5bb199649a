//! Randomness as a pure function of (seed, purpose, index, step).
//!
//! No generator outlives a step. A resumed run therefore uses the same random numbers as an uninterrupted
//! one, a sample does not depend on its batch, and every backend sees the same values.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

/// A seed, from which independent random streams are derived by name and index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    seed: u64,
}

impl Random {
    /// Creates the streams of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Creates the streams whose seed is a hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = Sha256::digest(bytes);
        Self { seed: u64::from_le_bytes(hash[..8].try_into().expect("eight bytes")) }
    }

    /// Returns the generator for one purpose, index and step. The same arguments always give the same
    /// numbers.
    pub fn stream(&self, purpose: &str, index: u64, step: u64) -> ChaCha8Rng {
        let key = Sha256::new()
            .chain_update(self.seed.to_le_bytes())
            .chain_update((purpose.len() as u64).to_le_bytes())
            .chain_update(purpose)
            .chain_update(index.to_le_bytes())
            .chain_update(step.to_le_bytes())
            .finalize();
        ChaCha8Rng::from_seed(key.into())
    }

    /// Returns `n` random numbers, uniform in [0, 1).
    pub fn uniform(&self, purpose: &str, index: u64, step: u64, n: usize) -> Vec<f64> {
        let mut stream = self.stream(purpose, index, step);
        (0..n).map(|_| stream.random::<f64>()).collect()
    }

    /// Returns `n` standard normal random numbers.
    pub fn normal(&self, purpose: &str, index: u64, step: u64, n: usize) -> Vec<f32> {
        let mut stream = self.stream(purpose, index, step);
        (0..n).map(|_| StandardNormal.sample(&mut stream)).collect()
    }
}

/// Creates a float tensor from host values, in `dtype`, on `device`.
pub fn tensor<const D: usize>(values: &[f64], shape: [usize; D], dtype: DType, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape).convert_dtype(dtype), (device, dtype))
}

/// Creates a tensor that broadcasts against `like` from one value per sample, or one per position (row-major
/// `[B, position]`). Its shape is `[B, 1, ..]` or `[B, position, 1, ..]`; it has the dtype and device of
/// `like`.
pub fn per_sample<const D: usize>(values: &[f64], like: &Tensor<D>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[0] = like.dims()[0];
    if D > 1 {
        shape[1] = values.len() / shape[0];
    }
    tensor(values, shape, like.dtype(), &like.device().inner())
}

/// Returns the indices that sort `keys` in ascending order. For random keys, this is a random permutation.
pub fn order_of(keys: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
    order
}

/// Returns a random permutation of `0..n` that depends on the arguments alone.
pub fn permutation(random: &Random, purpose: &str, index: u64, n: usize) -> Vec<usize> {
    let mut stream = random.stream(purpose, index, 0);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, stream.random_range(0..=i));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_functions_of_their_name() {
        let random = Random::new(7);
        assert_eq!(random.normal("eps", 3, 9, 5), random.normal("eps", 3, 9, 5));
        assert_ne!(random.normal("eps", 3, 9, 5), random.normal("eps", 4, 9, 5));
        assert_ne!(random.normal("eps", 3, 9, 5), random.normal("t", 3, 9, 5));
        assert_ne!(random.uniform("t", 0, 0, 4), Random::new(8).uniform("t", 0, 0, 4));
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let x = Random::new(1).normal("eps", 0, 0, 200_000);
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        // Tolerance: four standard errors.
        assert!(mean.abs() < 4.0 / (x.len() as f64).sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 4.0 * (2.0 / x.len() as f64).sqrt(), "{variance}");
    }

    #[test]
    fn permutation_holds_every_index_once() {
        let mut order = permutation(&Random::new(3), "order", 1, 100);
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}

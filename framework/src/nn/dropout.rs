//! Dropout and drop path, with masks that are functions of the seed, the pass and the layer.

use crate::random::{Random, per_sample};
use burn::tensor::{Tensor, TensorData};
use rand::RngExt;
use rayon::prelude::*;

/// The masks of one training pass. The default drops nothing, as in sampling and in passes without gradient.
///
/// A mask depends on the seed of the run, the index of the pass, the layer and the position of the sample in its batch
/// alone. A resumed run therefore repeats it, whatever the number of workers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dropout(Option<(Random, u64)>);

impl Dropout {
    /// Creates the masks of pass `pass` of a run.
    pub fn training(random: Random, pass: u64) -> Self {
        Self(Some((random, pass)))
    }

    /// Sets each element to 0 with probability `p`, and multiplies the others by `1 / (1 - p)`. `layer` names the layer
    /// within the network. Shapes: `[B, ..]` to the same.
    ///
    /// Source: arXiv:1207.0580.
    pub fn elements<const D: usize>(&self, x: Tensor<D>, p: f64, layer: &str) -> Tensor<D> {
        let Some((random, pass)) = self.0.filter(|_| p > 0.0) else { return x };
        let (shape, keep) = (x.dims(), (1.0 / (1.0 - p)) as f32);
        let per_sample = shape[1..].iter().product::<usize>().max(1);
        let mut mask = vec![0.0_f32; shape[0] * per_sample];
        mask.par_chunks_mut(per_sample).enumerate().for_each(|(sample, mask)| {
            let mut stream = random.stream(layer, sample as u64, pass);
            mask.iter_mut().for_each(|element| {
                *element = if f64::from(stream.random::<f32>()) < p { 0.0 } else { keep };
            });
        });
        let mask = TensorData::new(mask, shape).convert_dtype(x.dtype());
        let mask = Tensor::from_data(mask, (&x.device().inner(), x.dtype()));
        x * mask
    }

    /// Sets the whole branch `x` of a sample to 0 with probability `p`, and multiplies the other samples by
    /// `1 / (1 - p)`: drop path, or stochastic depth. Shapes: `[B, ..]` to the same.
    ///
    /// Source: arXiv:1603.09382.
    pub fn path<const D: usize>(&self, x: Tensor<D>, p: f64, layer: &str) -> Tensor<D> {
        let Some((random, pass)) = self.0.filter(|_| p > 0.0) else { return x };
        let kept = |sample: usize| random.uniform(layer, sample as u64, pass, 1)[0] >= p;
        let factor = |sample: usize| if kept(sample) { 1.0 / (1.0 - p) } else { 0.0 };
        let factors: Vec<f64> = (0..x.dims()[0]).map(factor).collect();
        let factors = per_sample(&factors, &x);
        x * factors
    }
}

/// Returns the drop-path rate of layer `index` of `depth`: it rises linearly from 0 to `rate`.
pub fn path_rate(rate: f64, index: usize, depth: usize) -> f64 {
    if depth < 2 { rate } else { rate * index as f64 / (depth - 1) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::tensor;
    use burn::tensor::{DType, Device};

    fn values(x: Tensor<3>) -> Vec<f64> {
        x.into_data().try_into_vec::<f64>().unwrap()
    }

    fn ones(batch: usize) -> Tensor<3> {
        tensor(&vec![1.0; batch * 200 * 4], [batch, 200, 4], DType::F64, &Device::flex())
    }

    #[test]
    fn masks_are_functions_of_seed_pass_and_layer() {
        let of = |seed: u64, pass: u64, layer: &str| {
            values(Dropout::training(Random::new(seed), pass).elements(ones(2), 0.3, layer))
        };
        assert_eq!(of(1, 5, "a"), of(1, 5, "a"));
        for other in [of(2, 5, "a"), of(1, 6, "a"), of(1, 5, "b")] {
            assert_ne!(other, of(1, 5, "a"));
        }
        let [first, second] = [0, 1].map(|sample| of(1, 5, "a")[sample * 800..][..800].to_vec());
        assert_ne!(first, second, "two samples have the same mask");
        // The first sample of a larger batch has the same mask.
        let larger = values(Dropout::training(Random::new(1), 5).elements(ones(3), 0.3, "a"));
        assert_eq!(larger[..1600], of(1, 5, "a"));
    }

    #[test]
    fn the_share_is_p_and_the_mean_stays() {
        let x = values(Dropout::training(Random::new(3), 0).elements(ones(20), 0.25, "a"));
        let dropped = x.iter().filter(|v| **v == 0.0).count() as f64 / x.len() as f64;
        // Four standard errors of a share of 16,000 elements.
        assert!((dropped - 0.25).abs() < 4.0 * (0.25_f64 * 0.75 / x.len() as f64).sqrt(), "{dropped}");
        assert!(x.iter().all(|v| *v == 0.0 || (v - 1.0 / 0.75).abs() < 1e-6));
    }

    #[test]
    fn drop_path_drops_whole_samples() {
        let x = values(Dropout::training(Random::new(3), 0).path(ones(400), 0.5, "a"));
        let samples: Vec<&[f64]> = x.chunks(800).collect();
        assert!(samples.iter().all(|sample| sample.iter().all(|v| *v == sample[0])));
        let dropped = samples.iter().filter(|sample| sample[0] == 0.0).count();
        // 400 throws of a coin: 200 -+ four standard deviations.
        assert!((160..=240).contains(&dropped), "{dropped}");
    }

    #[test]
    fn without_masks_or_at_rate_zero_nothing_changes() {
        let x = values(ones(1));
        assert_eq!(values(Dropout::default().elements(ones(1), 0.5, "a")), x);
        assert_eq!(values(Dropout::training(Random::new(1), 0).path(ones(1), 0.0, "a")), x);
    }

    #[test]
    fn the_path_rate_rises_linearly() {
        assert_eq!([0, 1, 2].map(|i| path_rate(0.2, i, 3)), [0.0, 0.1, 0.2]);
        assert_eq!(path_rate(0.2, 0, 1), 0.2);
    }
}

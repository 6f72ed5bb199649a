//! Log-probabilities of tokens from logits, without a table of all log-probabilities.

use super::math::{Number, maximum, room, sum, vectorized};
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;
use std::sync::Arc;

/// `x[id] - log(sum(exp(x)))` of every row. Input: logits `[.., V]`; output `[.., 1]`.
#[derive(Clone, Debug)]
pub(crate) struct LogProbability {
    /// One a row, below `V`.
    pub ids: Arc<[usize]>,
}

impl Fused<1> for LogProbability {
    /// The logits, and the logarithm of each row's sum.
    type Saved = [FlexTensor; 2];

    fn forward<T: Number>(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, Self::Saved) {
        let x = dense::<T>(x);
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        let width = std::mem::replace(&mut shape[last], 1);
        let values = numbers::<T>(&x);
        assert_eq!(values.len(), self.ids.len() * width, "one id for each row of logits");
        let normalizer = |x: &[T]| {
            vectorized(
                #[inline(always)]
                || {
                    let highest = maximum(x);
                    highest + sum(x.len(), |k| (x[k] - highest).exp()).ln()
                },
            )
        };
        let normalizers: Vec<T> = values.par_chunks_exact(width).map(normalizer).collect();
        let rows = values.chunks_exact(width).zip(&normalizers).zip(self.ids.iter());
        let y: Vec<T> = rows.map(|((x, normalizer), id)| x[*id] - *normalizer).collect();
        let normalizers = tensor(normalizers, Shape::new([self.ids.len()]));
        (tensor(y, shape), [x, normalizers])
    }

    fn backward<T: Number>(&self, saved: Self::Saved, grad: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let [x, normalizers] = saved;
        let (grad, shape) = (dense::<T>(grad), x.shape());
        let width = shape[shape.num_dims() - 1];
        let [x, normalizers, grad] = [&x, &normalizers, &grad].map(numbers::<T>);
        let mut of_x = room::<T>(x.len());
        let rows = of_x.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width)).enumerate();
        rows.for_each(|(row, (of_x, x))| {
            let (normalizer, grad) = (normalizers[row], grad[row]);
            vectorized(
                #[inline(always)]
                || {
                    for k in 0..width {
                        of_x[k] = -grad * (x[k] - normalizer).exp();
                    }
                },
            );
            of_x[self.ids[row]] += grad;
        });
        [Some(tensor(of_x, shape))]
    }
}

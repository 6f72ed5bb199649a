//! Log-probabilities of the given tokens, without a table of the log-probabilities of all tokens.

use super::math::{Number, maximum, room, sum, vectorized};
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;
use std::sync::Arc;

/// Computes `x[id] - log(sum(exp(x)))` of every row. Input: logits `[.., V]`; output `[.., 1]`.
#[derive(Clone, Debug)]
pub(crate) struct LogProbability {
    /// One token id per row, below `V`.
    pub ids: Arc<[usize]>,
}

impl Fused<1> for LogProbability {
    /// The maximum logit of each row, and the sum of `exp(x - maximum)`. They are stored separately: where the
    /// logits are large, the single value `maximum + log(sum)` would lose digits of every probability.
    type Saved = FlexTensor;

    fn forward<T: Number>(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, FlexTensor) {
        let x = dense::<T>(x);
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        let width = std::mem::replace(&mut shape[last], 1);
        let values = numbers::<T>(&x);
        assert_eq!(values.len(), self.ids.len() * width, "one token id per row of logits");
        let normalizer = |x: &[T]| {
            vectorized(
                #[inline(always)]
                || {
                    let highest = maximum(x);
                    [highest, sum(x.len(), |k| (x[k] - highest).exp())]
                },
            )
        };
        let normalizers: Vec<[T; 2]> = values.par_chunks_exact(width).map(normalizer).collect();
        let rows = values.chunks_exact(width).zip(&normalizers).zip(self.ids.iter());
        let y: Vec<T> = rows.map(|((x, [highest, total]), id)| x[*id] - *highest - total.ln()).collect();
        let normalizers = tensor(normalizers.into_flattened(), Shape::new([self.ids.len(), 2]));
        (tensor(y, shape), normalizers)
    }

    fn backward<T: Number>(
        &self,
        [x]: [FlexTensor; 1],
        normalizers: FlexTensor,
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let (x, grad) = (dense::<T>(x), dense::<T>(grad));
        let shape = x.shape();
        let width = shape[shape.num_dims() - 1];
        let [x, normalizers, grad] = [&x, &normalizers, &grad].map(numbers::<T>);
        let mut of_x = room::<T>(x.len());
        let rows = of_x.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width)).enumerate();
        rows.for_each(|(row, (of_x, x))| {
            let ([highest, total], grad) = ([normalizers[2 * row], normalizers[2 * row + 1]], grad[row]);
            let factor = -grad / total;
            vectorized(
                #[inline(always)]
                || {
                    for k in 0..width {
                        of_x[k] = factor * (x[k] - highest).exp();
                    }
                },
            );
            of_x[self.ids[row]] += grad;
        });
        [Some(tensor(of_x, shape))]
    }
}

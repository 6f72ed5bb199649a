//! The linear layer: rows times a weight matrix, with an optional bias.

use super::math::{Number, chunks, room, total, vectorized};
use super::matrix::{Matrix, MatrixMut, Rounding, multiply};
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

/// Scalar multiplications from which on all threads share a matrix product.
const WIDE: usize = 1 << 21;
/// Rows per partial sum of the bias gradient. The constant fixes the order of summation.
const ROWS: usize = 64;

/// Computes `x W + b`. Inputs: `x` `[.., in]`, `weight` `[in, out]`, and optionally `bias` `[out]`.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    pub rounding: Rounding,
}

impl<const N: usize> Fused<N> for Affine {
    type Saved = ();

    fn forward<T: Number>(&self, inputs: [FlexTensor; N]) -> (FlexTensor, ()) {
        let inputs = inputs.map(dense::<T>);
        let [x, weight] = [0, 1].map(|i| numbers::<T>(&inputs[i]));
        let [depth, width] = [0, 1].map(|i| inputs[1].shape()[i]);
        let mut shape = inputs[0].shape();
        let last = shape.num_dims() - 1;
        assert_eq!(shape[last], depth, "width of `x` and first dimension of the weight");
        shape[last] = width;
        let rows = x.len() / depth;
        let mut y = room::<T>(rows * width);
        let bias = inputs.get(2).map(numbers::<T>);
        if let Some(bias) = bias {
            chunks(&mut y, ROWS * width, |_, y| y.chunks_exact_mut(width).for_each(|y| y.copy_from_slice(bias)));
        }
        let out = MatrixMut { values: &mut y, row: width };
        let product = (Matrix::rows(x, depth), Matrix::rows(weight, width));
        multiply(
            [rows, depth, width],
            product.0,
            product.1,
            out,
            (bias.is_some(), T::of(1.0)),
            rows * depth * width >= WIDE,
            self.rounding,
        );
        (tensor(y, shape), ())
    }

    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; N],
        (): (),
        grad: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let (inputs, grad) = (inputs.map(dense::<T>), dense::<T>(grad));
        let shapes = [0, 1].map(|i| inputs[i].shape());
        let [depth, width] = [0, 1].map(|i| shapes[1][i]);
        let [x, weight, grad] = [&inputs[0], &inputs[1], &grad].map(numbers::<T>);
        let rows = x.len() / depth;
        let wide = rows * depth * width >= WIDE;
        let alone = (false, T::of(1.0));
        let mut grads = [const { None }; N];
        if wanted[0] {
            let mut of_x = room::<T>(x.len());
            let out = MatrixMut { values: &mut of_x, row: depth };
            let weight = Matrix::rows(weight, width).transposed();
            multiply([rows, width, depth], Matrix::rows(grad, width), weight, out, alone, wide, self.rounding);
            grads[0] = Some(tensor(of_x, shapes[0].clone()));
        }
        if wanted[1] {
            let mut of_weight = room::<T>(weight.len());
            let out = MatrixMut { values: &mut of_weight, row: width };
            let x = Matrix::rows(x, depth).transposed();
            multiply([depth, rows, width], x, Matrix::rows(grad, width), out, alone, wide, self.rounding);
            grads[1] = Some(tensor(of_weight, shapes[1].clone()));
        }
        if wanted.get(2) == Some(&true) {
            let part = |grad: &[T]| {
                vectorized(
                    #[inline(always)]
                    || {
                        let mut sum = vec![T::of(0.0); width];
                        for grad in grad.chunks_exact(width) {
                            for k in 0..width {
                                sum[k] += grad[k];
                            }
                        }
                        sum
                    },
                )
            };
            let parts: Vec<Vec<T>> = match wide {
                true => grad.par_chunks(ROWS * width).map(part).collect(),
                false => grad.chunks(ROWS * width).map(part).collect(),
            };
            grads[2] = Some(tensor(total(parts), [width].into()));
        }
        grads
    }
}

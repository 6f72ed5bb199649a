//! Normalisation of queries and keys to unit length, packed with their values.

use super::math::{GRAIN, Number, chunks, room, sum, total, vectorized};
use super::{Fused, dense, numbers, tensor, width_of_head};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;

/// Divides the queries and keys of every head by their length, or by [`SHORTEST`] if that is larger; multiplies
/// the queries by the factor of their head; copies the values. Inputs: `[.., 3 heads d]`, factors `[heads]`.
#[derive(Clone, Debug)]
pub(crate) struct UnitHeads;

/// Lower bound of the divisor: a shorter vector does not reach unit length.
pub(crate) const SHORTEST: f64 = 1e-12;

/// Returns `[1 / max(length, SHORTEST), slope]`. `slope` is 1 where the divisor depends on the vector, and 0
/// where [`SHORTEST`] replaces the length.
#[inline(always)]
fn inverse_length<T: Number>(x: &[T]) -> [T; 2] {
    let length = sum(x.len(), |k| x[k] * x[k]).sqrt();
    let [zero, one, shortest] = [0.0, 1.0, SHORTEST].map(T::of);
    if length > shortest { [one / length, one] } else { [one / shortest, zero] }
}

/// Returns the number of rows per work item. It depends on the shape alone, because the gradients of the
/// factors are summed per work item in a fixed order.
fn rows(width: usize) -> usize {
    (GRAIN / width).max(1)
}

/// Returns the combined width of queries and keys, and the width of a head.
fn widths(width: usize, heads: usize) -> [usize; 2] {
    let head = width_of_head(width, heads);
    [2 * heads * head, head]
}

impl Fused<2> for UnitHeads {
    type Saved = ();

    fn forward<T: Number>(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, ()) {
        let inputs = inputs.map(dense::<T>);
        let [x, factors] = inputs.each_ref().map(numbers::<T>);
        let shape = inputs[0].shape();
        let width = shape[shape.num_dims() - 1];
        let [unit, head] = widths(width, factors.len());
        let mut y = room::<T>(x.len());
        chunks(&mut y, rows(width) * width, |i, y| {
            let x = &x[i * rows(width) * width..][..y.len()];
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let heads = y[..unit].chunks_exact_mut(head).zip(x[..unit].chunks_exact(head));
                        for (h, (y, x)) in heads.enumerate() {
                            let factor = inverse_length(x)[0] * factors.get(h).copied().unwrap_or(T::of(1.0));
                            for k in 0..head {
                                y[k] = x[k] * factor;
                            }
                        }
                        y[unit..].copy_from_slice(&x[unit..]);
                    }
                },
            );
        });
        (tensor(y, shape), ())
    }

    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; 2],
        (): (),
        grad: FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let (inputs, grad) = (inputs.map(dense::<T>), dense::<T>(grad));
        let ([x, factors], grad) = (inputs.each_ref().map(numbers::<T>), numbers::<T>(&grad));
        let shape = inputs[0].shape();
        let width = shape[shape.num_dims() - 1];
        let [unit, head] = widths(width, factors.len());
        let mut of_x = room::<T>(x.len());
        let parts = chunks(&mut of_x, rows(width) * width, |i, of_x| {
            let place = i * rows(width) * width;
            let (x, grad) = (&x[place..][..of_x.len()], &grad[place..][..of_x.len()]);
            vectorized(
                #[inline(always)]
                || {
                    let mut of_factors = vec![T::of(0.0); factors.len()];
                    let all = x.chunks_exact(width).zip(grad.chunks_exact(width));
                    for (of_x, (x, grad)) in of_x.chunks_exact_mut(width).zip(all) {
                        let heads = x[..unit].chunks_exact(head).zip(grad[..unit].chunks_exact(head));
                        for (h, (of_x, (x, grad))) in of_x[..unit].chunks_exact_mut(head).zip(heads).enumerate() {
                            let [inverse, moves] = inverse_length(x);
                            let along = sum(head, |k| grad[k] * x[k]) * inverse;
                            let mut factor = inverse;
                            if let Some(of_head) = factors.get(h) {
                                factor *= *of_head;
                                of_factors[h] += along;
                            }
                            let turned = along * inverse * moves;
                            for k in 0..head {
                                of_x[k] = factor * (grad[k] - x[k] * turned);
                            }
                        }
                        of_x[unit..].copy_from_slice(&grad[unit..]);
                    }
                    of_factors
                },
            )
        });
        let of_factors = wanted[1].then(|| tensor(total(parts), inputs[1].shape()));
        [wanted[0].then(|| tensor(of_x, shape)), of_factors]
    }
}

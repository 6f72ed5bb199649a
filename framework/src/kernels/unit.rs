//! Queries and keys of unit length, beside their values.

use super::math::{GRAIN, Number, chunks, room, sum, total, vectorized};
use super::{Fused, dense, numbers, tensor, width_of_head};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;

/// Divides every head's queries and keys by their length, which counts as [`SHORTEST`] at the least, multiplies the
/// queries by their head's factor, and leaves the values as they are. Inputs: `[.., 3 heads d]`, factors `[heads]`.
#[derive(Clone, Debug)]
pub(crate) struct UnitHeads;

/// A vector shorter than this stays shorter than one.
pub(crate) const SHORTEST: f64 = 1e-12;

/// `[1 / length, how much of it moves with the vector]`: the latter 1, or 0 where the length is at its floor.
#[inline(always)]
fn inverse_length<T: Number>(x: &[T]) -> [T; 2] {
    let length = sum(x.len(), |k| x[k] * x[k]).sqrt();
    let [zero, one, shortest] = [0.0, 1.0, SHORTEST].map(T::of);
    if length > shortest { [one / length, one] } else { [one / shortest, zero] }
}

/// Rows of width `width` that one thread takes at a time; follows from the shape alone, as gradients of the factors are added
/// up by it.
fn rows(width: usize) -> usize {
    (GRAIN / width).max(1)
}

/// Width of the queries and keys, and of a head, in rows of three parts.
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

//! Rotary position embedding of queries and keys that are packed with their values.

use super::math::{GRAIN, Number, chunks, room, vectorized};
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;

/// Rotates the pairs `(2 i, 2 i + 1)` of every query and key head; copies the values. Input:
/// `[B, L, 3 heads d]`. `cos` and `sin` are `[L, d]`. `sin` includes the sign of its term: negative at `2 i`,
/// positive at `2 i + 1`.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub cos: FlexTensor,
    pub sin: FlexTensor,
}

impl Turn {
    /// Returns `x` rotated. `back` applies the transpose of the rotation: each element of a pair uses the sine
    /// of the other.
    fn turned<T: Number>(&self, x: FlexTensor, back: bool) -> FlexTensor {
        let x = dense::<T>(x);
        let shape = x.shape();
        let [length, width] = [shape[1], shape[2]];
        let [cos, sin] = [&self.cos, &self.sin].map(numbers::<T>);
        let head = self.cos.shape()[1];
        assert_eq!([&self.cos, &self.sin].map(TensorMetadata::shape), [[length, head]; 2].map(Shape::new), "tables");
        assert!(
            head.is_multiple_of(2) && width.is_multiple_of(3 * head),
            "cannot split rows of width {width} into queries, keys and values with heads of even width {head}"
        );
        let x = numbers::<T>(&x);
        let rows = (GRAIN / width).max(1);
        let mut y = room::<T>(x.len());
        chunks(&mut y, rows * width, |i, y| {
            let x = &x[i * rows * width..][..y.len()];
            vectorized(
                #[inline(always)]
                || {
                    for (j, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                        let place = (i * rows + j) % length * head;
                        let (cos, sin) = (&cos[place..][..head], &sin[place..][..head]);
                        let turned = width / 3 * 2;
                        for (y, x) in y[..turned].chunks_exact_mut(head).zip(x[..turned].chunks_exact(head)) {
                            let table = cos.as_chunks::<2>().0.iter().zip(sin.as_chunks::<2>().0);
                            let pairs = y.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0);
                            for ((y, x), (cos, sin)) in pairs.zip(table) {
                                let sin = if back { [sin[1], sin[0]] } else { *sin };
                                *y = [x[0] * cos[0] + x[1] * sin[0], x[1] * cos[1] + x[0] * sin[1]];
                            }
                        }
                        y[turned..].copy_from_slice(&x[turned..]);
                    }
                },
            )
        });
        tensor(y, shape)
    }
}

impl Fused<1> for Turn {
    type Saved = ();
    const NEEDED: [bool; 1] = [false];

    fn forward<T: Number>(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, ()) {
        (self.turned::<T>(x, false), ())
    }

    fn backward<T: Number>(
        &self,
        _: [FlexTensor; 1],
        (): (),
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        [Some(self.turned::<T>(grad, true))]
    }
}

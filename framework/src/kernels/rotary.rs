//! Rotation of queries and keys that lie beside their values.

use super::math::{GRAIN, Number, chunks, room, vectorized};
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;

/// Turns the pairs `(2 i, 2 i + 1)` of every head of the queries and keys, and leaves the values as they are. Input:
/// `[B, L, 3 heads d]`. `cos` and `sin` are `[L, d]`; the sine's sign is that of its term.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub cos: FlexTensor,
    pub sin: FlexTensor,
}

impl Turn {
    /// `x` turned, or turned `back`: the rotation's transpose, which takes the other sine of each pair.
    fn turned<T: Number>(&self, x: FlexTensor, back: bool) -> FlexTensor {
        let x = dense::<T>(x);
        let shape = x.shape();
        let [length, width] = [shape[1], shape[2]];
        let [cos, sin] = [&self.cos, &self.sin].map(numbers::<T>);
        let head = self.cos.shape()[1];
        assert_eq!([&self.cos, &self.sin].map(TensorMetadata::shape), [[length, head]; 2].map(Shape::new), "the table");
        assert!(head.is_multiple_of(2) && width.is_multiple_of(3 * head), "rows of {width}, heads of {head}");
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

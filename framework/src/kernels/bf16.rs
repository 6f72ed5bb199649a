//! bf16 support of the kernels: they compute in f32 and round their results. Sums are then as precise as in
//! f32, and a processor without bf16 arithmetic runs at the speed of f32.

use super::math::{GRAIN, Number, chunks, room, vectorized};
use super::{Fused, dense, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::Bytes;
use burn::tensor::DType;
use half::bf16;
use rayon::prelude::*;

/// Converts a bf16 tensor to f32; returns a tensor of another type unchanged.
pub(super) fn widened(x: FlexTensor) -> FlexTensor {
    if x.dtype() != DType::BF16 {
        return x;
    }
    let x = x.to_contiguous();
    let numbers = x.as_slice::<bf16>().expect("`to_contiguous` returned a row-major tensor");
    let mut wide = room::<f32>(numbers.len());
    chunks(&mut wide, GRAIN, |i, wide| {
        vectorized(
            #[inline(always)]
            || {
                for (wide, x) in wide.iter_mut().zip(&numbers[i * GRAIN..]) {
                    *wide = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            },
        )
    });
    tensor(wide, x.shape())
}

/// Rounds an f32 tensor to the nearest bf16, ties to even, if `dtype` is bf16; returns it unchanged otherwise.
pub(super) fn narrowed(x: FlexTensor, dtype: DType) -> FlexTensor {
    if dtype != DType::BF16 {
        return x;
    }
    let x = dense::<f32>(x);
    let numbers = super::numbers::<f32>(&x);
    let mut narrow = vec![bf16::ZERO; numbers.len()];
    narrow.par_chunks_mut(GRAIN).zip(numbers.par_chunks(GRAIN)).for_each(|(narrow, x)| {
        vectorized(
            #[inline(always)]
            || {
                for (narrow, x) in narrow.iter_mut().zip(x) {
                    *narrow = rounded(*x);
                }
            },
        )
    });
    FlexTensor::new(Bytes::from_elems(narrow), Layout::contiguous(x.shape()), DType::BF16)
}

/// Rounds to the nearest bf16, ties to even. It has no branch, so that the compiler vectorizes a loop over it.
#[inline(always)]
fn rounded(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // NaN must not round to infinity.
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { nearest } as u16)
}

/// Rounds f32 to bf16. The gradient stays f32.
#[derive(Clone, Debug)]
pub(crate) struct Narrow;

impl Fused<1> for Narrow {
    type Saved = ();
    const NEEDED: [bool; 1] = [false];

    fn forward<T: Number>(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, ()) {
        (narrowed(x, DType::BF16), ())
    }

    fn backward<T: Number>(
        &self,
        _: [FlexTensor; 1],
        (): (),
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        [Some(grad)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Shape;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_is_that_of_the_half_crate(bits: u32) {
            let x = f32::from_bits(bits);
            prop_assert_eq!(rounded(x).to_bits(), bf16::from_f32(x).to_bits());
        }
    }

    #[test]
    fn numbers_of_bf16_come_back_as_they_were() {
        let values: Vec<f32> = (0..100).map(|i| bf16::from_f32((i as f32 * 0.7).sin()).to_f32()).collect();
        let narrow = narrowed(tensor(values.clone(), Shape::new([4, 25])), DType::BF16);
        assert_eq!(narrow.dtype(), DType::BF16);
        assert_eq!(super::super::numbers::<f32>(&widened(narrow)), values);
    }
}

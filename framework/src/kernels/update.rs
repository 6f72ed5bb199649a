//! Operations of a training step on all weights of a network: AdamW, the running average and the norm of the
//! gradient. Each is a single pass over memory on all threads, without autodiff.

use super::math::{GRAIN, Number, sum, vectorized};
use super::{common, dense, numbers, plain, whole};
use burn::backend::flex::FlexTensor;
use burn::backend::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind};
use burn::tensor::DType;
use rayon::prelude::*;

/// One step of AdamW, with precomputed bias corrections.
///
///   m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   x <- (1 - decay) x - rate m / (root sqrt(v) + epsilon)
///
/// Source: arXiv:1711.05101 algorithm 2: `rate` is lr / (1 - b1^t), `root` 1 / sqrt(1 - b2^t).
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamwStep {
    pub betas: [f64; 2],
    pub epsilon: f64,
    pub rate: f64,
    pub root: f64,
    pub decay: f64,
}

/// Returns the data type and the CPU tensors, or the inputs unchanged if there is no kernel for them.
#[allow(clippy::result_large_err)] // The caller uses the returned inputs at once.
fn opened<const N: usize>(inputs: [DispatchTensor; N]) -> Result<(DType, [FlexTensor; N]), [DispatchTensor; N]> {
    match common(&inputs).filter(|dtype| *dtype != DType::BF16) {
        Some(dtype) => Ok((dtype, inputs.map(|input| plain(input.kind)))),
        None => Err(inputs),
    }
}

fn untracked(x: FlexTensor) -> DispatchTensor {
    let kind = DispatchTensorKind::Flex(BackendTensor::Float(x));
    DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled }
}

/// Computes the parameter and both moments after a step. Inputs: parameter, gradient, first and second moment.
/// A tensor that has no other owner is updated in place.
///
/// # Errors
/// Returns the inputs if there is no kernel for them.
#[allow(clippy::result_large_err)] // The caller uses the returned inputs at once.
pub(crate) fn adamw(step: AdamwStep, inputs: [DispatchTensor; 4]) -> Result<[DispatchTensor; 3], [DispatchTensor; 4]> {
    let (dtype, inputs) = opened(inputs)?;
    Ok(match dtype {
        DType::F64 => step.run::<f64>(inputs),
        _ => step.run::<f32>(inputs),
    })
}

impl AdamwStep {
    fn run<T: Number>(self, [x, grad, m, v]: [FlexTensor; 4]) -> [DispatchTensor; 3] {
        let grad = dense::<T>(grad);
        let [mut x, mut m, mut v] = [x, m, v].map(whole::<T>);
        let ([b1, b2], [c1, c2]) = (self.betas.map(T::of), self.betas.map(|beta| T::of(1.0 - beta)));
        let [epsilon, rate, root, keep] = [self.epsilon, self.rate, self.root, 1.0 - self.decay].map(T::of);
        let inputs = x.storage_mut::<T>().par_chunks_mut(GRAIN).zip(numbers::<T>(&grad).par_chunks(GRAIN));
        let moments = m.storage_mut::<T>().par_chunks_mut(GRAIN).zip(v.storage_mut::<T>().par_chunks_mut(GRAIN));
        inputs.zip(moments).for_each(|((x, grad), (m, v))| {
            vectorized(
                #[inline(always)]
                || {
                    for (((x, grad), m), v) in x.iter_mut().zip(grad).zip(m).zip(v) {
                        *m = b1 * *m + c1 * *grad;
                        *v = b2 * *v + c2 * *grad * *grad;
                        *x = keep * *x - rate * *m / (root * v.sqrt() + epsilon);
                    }
                },
            )
        });
        [x, m, v].map(untracked)
    }
}

/// Computes `decay average + (1 - decay) x` of `[average, x]`, in place if the average has no other owner.
///
/// # Errors
/// Returns the inputs if there is no kernel for them.
#[allow(clippy::result_large_err)] // The caller uses the returned inputs at once.
pub(crate) fn lerp(inputs: [DispatchTensor; 2], decay: f64) -> Result<DispatchTensor, [DispatchTensor; 2]> {
    fn run<T: Number>([average, x]: [FlexTensor; 2], decay: f64) -> DispatchTensor {
        let (mut average, x) = (whole::<T>(average), dense::<T>(x));
        let (keep, take) = (T::of(decay), T::of(1.0 - decay));
        let pieces = average.storage_mut::<T>().par_chunks_mut(GRAIN).zip(numbers::<T>(&x).par_chunks(GRAIN));
        pieces.for_each(|(average, x)| {
            vectorized(
                #[inline(always)]
                || average.iter_mut().zip(x).for_each(|(average, x)| *average = keep * *average + take * *x),
            )
        });
        untracked(average)
    }
    let (dtype, inputs) = opened(inputs)?;
    Ok(match dtype {
        DType::F64 => run::<f64>(inputs, decay),
        _ => run::<f32>(inputs, decay),
    })
}

/// Returns the sum of the squares of all elements, or `None` if there is no kernel.
pub(crate) fn square_sum(x: DispatchTensor) -> Option<f64> {
    fn run<T: Number>(x: FlexTensor) -> f64 {
        let x = dense::<T>(x);
        let piece = |x: &[T]| {
            vectorized(
                #[inline(always)]
                move || sum(x.len(), |i| x[i] * x[i]),
            )
        };
        // Add the partial sums in order, in f64.
        let pieces: Vec<T> = numbers::<T>(&x).par_chunks(GRAIN).map(piece).collect();
        pieces.into_iter().map(|piece| piece.to_f64()).sum()
    }
    let (dtype, [x]) = opened([x]).ok()?;
    Some(match dtype {
        DType::F64 => run::<f64>(x),
        _ => run::<f32>(x),
    })
}

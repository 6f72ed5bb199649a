//! Passes with less precision than f32 that keep f32 weights. In bf16, every parameter is cast when it is read.
//! In f32, the factors of matrix products may be rounded.

use crate::kernels::{self, Narrow, Rounding, handle};
use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::tensor::{DType, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::Cell;

/// The precision of f32 matrix products in a pass without autodiff.
///
/// Source: the settings of `torch.set_float32_matmul_precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MatmulPrecision {
    /// Products in f32.
    #[default]
    Highest,
    /// Factors rounded to 16 bits where the processor multiplies such values faster, otherwise as in `highest`.
    /// AMX uses bf16. AVX512-FP16 uses f16, in which sums of up to 64 products are computed; factors or sums
    /// beyond 65,504 overflow to infinity.
    Medium,
}

thread_local! {
    static OF_THIS_THREAD: Cell<MatmulPrecision> = const { Cell::new(MatmulPrecision::Highest) };
}

impl MatmulPrecision {
    /// Returns the precision of passes on this thread.
    pub fn of_this_thread() -> Self {
        OF_THIS_THREAD.get()
    }

    /// Runs `pass` with this precision. Passes inside that use autodiff stay in f32. The precision is
    /// thread-local: code that distributes a pass over threads must copy [`MatmulPrecision::of_this_thread`] to
    /// each of them.
    pub fn within<R>(self, pass: impl FnOnce() -> R) -> R {
        /// Restores the precision, also after a panic.
        struct Restore(MatmulPrecision);
        impl Drop for Restore {
            fn drop(&mut self) {
                OF_THIS_THREAD.set(self.0);
            }
        }
        let _restore = Restore(OF_THIS_THREAD.replace(self));
        pass()
    }
}

/// Returns the rounding of factors in products with `x`.
pub(crate) fn rounding<const D: usize>(x: &Tensor<D>) -> Rounding {
    let medium = MatmulPrecision::of_this_thread() == MatmulPrecision::Medium;
    // f16 is limited to passes without autodiff, because gradients may be too small for f16.
    if medium && x.dtype() == DType::F32 && !x.device().is_autodiff() {
        Rounding::Half
    } else {
        Rounding::of(x.dtype())
    }
}

/// A cast of a parameter to bf16 when it is read. The stored parameter stays f32 and receives the gradient.
#[derive(Module, Debug)]
pub struct CastToBf16 {}

impl Reparameterization for CastToBf16 {
    const NAME: &'static str = "bf16";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let fused = (base.dtype() == DType::F32).then(|| kernels::narrow(Narrow, [handle(&base)])).flatten();
        fused.map(Tensor::from_dispatch).unwrap_or_else(|| base.cast(DType::BF16))
    }
}

/// Applies [`CastToBf16`] to every parameter of a module.
pub struct CastAll;

impl Reparameterizer for CastAll {
    type Reparam = CastToBf16;

    fn reparameterize<const D: usize>(
        &mut self,
        _: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<CastToBf16>) {
        (param, Some(CastToBf16 {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::affine;
    use crate::random::{Random, tensor};
    use burn::tensor::Device;
    use std::panic::catch_unwind;

    #[test]
    fn only_passes_without_the_tape_are_rounded_and_only_within() {
        let device = Device::flex();
        let normal = |name, shape: [usize; 2]| -> Tensor<2> {
            let values = Random::new(0).normal(name, 0, 0, shape.iter().product());
            tensor(&values.into_iter().map(f64::from).collect::<Vec<_>>(), shape, DType::F32, &device)
        };
        let (x, weight) = (normal("x", [64, 96]), normal("weight", [96, 80]));
        let values = |x: Tensor<2>| x.into_data().try_into_vec::<f32>().unwrap();
        let plain = || values(affine(x.clone(), weight.clone(), None));
        let exact = plain();
        let medium = MatmulPrecision::Medium.within(plain);
        // Each factor has 11 bits, and 64 products are summed in f16.
        assert!(medium.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 0.01 * 96.0_f32.sqrt()));
        #[cfg(target_arch = "x86_64")]
        assert!(medium != exact || !is_x86_feature_detected!("avx512fp16"), "not rounded although f16 is faster");
        assert!(plain() == exact, "rounded after the pass");
        catch_unwind(|| MatmulPrecision::Medium.within(|| panic!("the pass fails"))).unwrap_err();
        assert!(plain() == exact, "rounded after a panic");
        let tracked =
            || values(affine(Tensor::from_inner(x.clone()), Tensor::from_inner(weight.clone()), None).inner());
        assert!(MatmulPrecision::Medium.within(tracked) == exact, "rounded with autodiff");
    }
}

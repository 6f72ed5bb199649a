//! bf16 compute with f32 weights: every parameter is cast where it is read.

use crate::kernels::{self, Narrow, handle};
use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::tensor::{DType, Tensor};

/// Reads a parameter as bf16; the stored one stays f32 and receives the gradient.
#[derive(Module, Debug)]
pub struct CastToBf16 {}

impl Reparameterization for CastToBf16 {
    const NAME: &'static str = "bf16";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let fused = (base.dtype() == DType::F32).then(|| kernels::narrow(Narrow, [handle(&base)])).flatten();
        fused.map(Tensor::from_dispatch).unwrap_or_else(|| base.cast(DType::BF16))
    }
}

/// [`CastToBf16`] for every parameter of a module.
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

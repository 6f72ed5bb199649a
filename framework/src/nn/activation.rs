//! Activation functions.

use super::composed;
use crate::kernels::{self, Activate, Activation, Gate, GatePair, handle};
use burn::tensor::Tensor;

/// Applies an activation function to every element.
pub fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    kernels::activate(Activate(activation), [handle(&x)])
        .map(Tensor::from_dispatch)
        .unwrap_or_else(|| composed::activate(x, activation))
}

/// Computes `a activation(b)` of the halves `[a, b]` of the last dimension. Shapes: `[.., 2 D]` to `[.., D]`.
///
/// Source: arXiv:2002.05202 eq. 5 (GEGLU), where a single linear layer computes both halves.
pub fn gate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    kernels::gate(Gate(activation), [handle(&x)])
        .map(Tensor::from_dispatch)
        .unwrap_or_else(|| composed::gate(x, activation))
}

/// Computes `activation(a) b` of two tensors of equal shape.
///
/// Source: arXiv:2002.05202 eq. 5 (SwiGLU).
pub fn gate_pair<const D: usize>(a: Tensor<D>, b: Tensor<D>, activation: Activation) -> Tensor<D> {
    kernels::gate_pair(GatePair(activation), [handle(&a), handle(&b)])
        .map(Tensor::from_dispatch)
        .unwrap_or_else(|| composed::activate(a, activation) * b)
}

/// Computes `x sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Activation::Silu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::tensor;
    use burn::tensor::{DType, Device};

    #[test]
    fn gelu_tanh_is_its_formula() {
        for x in [-3.0, -0.5, 0.0, 0.7, 2.5_f64] {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let expected = 0.5 * x * (1.0 + u.tanh());
            let x = tensor::<1>(&[x], [1], DType::F64, &Device::flex());
            let got = activate(x, Activation::GeluTanh).into_scalar::<f64>();
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
    }
}

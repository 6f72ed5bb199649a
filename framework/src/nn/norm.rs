use super::composed;
use super::parameters::parameter;
use crate::kernels::{self, GatedAdd, Normalize, handle};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// Computes layer normalisation over the last dimension, without affine parameters.
///
/// Source: arXiv:1607.06450. Statistics are computed in f32 or f64 for every data type.
pub fn layer_norm<const D: usize>(x: Tensor<D>, epsilon: f64) -> Tensor<D> {
    let kernel = Normalize { epsilon, centred: true, offset: 0.0 };
    kernels::normalize(kernel, [handle(&x)])
        .map(Tensor::from_dispatch)
        .unwrap_or_else(|| composed::normalize(x, epsilon, true))
}

/// Computes [`layer_norm`]`(x) (1 + scale) + shift`. Shapes: `x` `[G, .., D]`; `shift` and `scale` `[G, D]`.
/// Each index of the first dimension, usually a sample, has its own shift and scale.
///
/// Source: arXiv:2212.09748 sec. 3.2 (adaLN).
pub fn adaptive_layer_norm<const D: usize>(
    x: Tensor<D>,
    epsilon: f64,
    shift: Tensor<2>,
    scale: Tensor<2>,
) -> Tensor<D> {
    let kernel = Normalize { epsilon, centred: true, offset: 1.0 };
    kernels::normalize_affine(kernel, [handle(&x), handle(&scale), handle(&shift)])
        .map(Tensor::from_dispatch)
        .unwrap_or_else(|| composed::adaptive_layer_norm(x, epsilon, shift, scale))
}

/// Computes `x + gate y`. Shapes: `x` and `y` `[G, .., D]`, `gate` `[G, D]`, as in [`adaptive_layer_norm`].
///
/// Source: arXiv:2212.09748 sec. 3.2 (adaLN-zero).
pub fn gated_add<const D: usize>(x: Tensor<D>, y: Tensor<D>, gate: Tensor<2>) -> Tensor<D> {
    kernels::gated_add(GatedAdd, [handle(&x), handle(&y), handle(&gate)])
        .map(Tensor::from_dispatch)
        .unwrap_or_else(|| composed::gated_add(x, y, gate))
}

/// Layer normalisation with a weight and a bias per channel: [`layer_norm`]`(x) weight + bias`.
///
/// Source: arXiv:1607.06450.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[D]`, initially one.
    pub weight: Param<Tensor<1>>,
    /// `[D]`, initially zero.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
}

impl LayerNorm {
    /// Creates the layer. `epsilon` is added to the variance. The parameters are not allocated yet.
    pub fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: parameter([width], device), bias: parameter([width], device), epsilon }
    }

    /// Normalises the last dimension. Shapes: `[.., D]` to the same.
    pub fn forward<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        let [weight, bias] = [self.weight.val().unsqueeze::<2>(), self.bias.val().unsqueeze()];
        let kernel = Normalize { epsilon: self.epsilon, centred: true, offset: 0.0 };
        kernels::normalize_affine(kernel, [handle(&x), handle(&weight), handle(&bias)])
            .map(Tensor::from_dispatch)
            .unwrap_or_else(|| composed::layer_norm(x, self.epsilon, weight, bias))
    }
}

/// RMS normalisation: `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension.
///
/// Source: arXiv:1910.07467 eq. 4. Statistics are computed in f32 or f64 for every data type.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[D]`, initially one.
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
}

impl RmsNorm {
    /// Creates the layer. `epsilon` is added to the mean square. The parameter is not allocated yet.
    pub fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: parameter([width], device), epsilon }
    }

    /// Normalises the last dimension. Shapes: `[.., D]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let weight = self.weight.val().unsqueeze::<2>();
        let kernel = Normalize { epsilon: self.epsilon, centred: false, offset: 0.0 };
        kernels::normalize_scaled(kernel, [handle(&x), handle(&weight)])
            .map(Tensor::from_dispatch)
            .unwrap_or_else(|| composed::rms_norm(x, self.epsilon, weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::tensor;
    use burn::tensor::DType;

    #[test]
    fn layer_norm_has_mean_zero_and_variance_one() {
        let x = tensor::<2>(&[1.0, 2.0, 4.0, 9.0], [1, 4], DType::F64, &Device::flex());
        let y = layer_norm(x, 0.0).into_data().try_to_vec::<f64>().unwrap();
        assert!(y.iter().sum::<f64>().abs() < 1e-12);
        assert!((y.iter().map(|v| v * v).sum::<f64>() / 4.0 - 1.0).abs() < 1e-12);
    }
}

use super::{layer_norm, parameter, widen};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// Layer normalisation with a factor and a shift of each channel: [`layer_norm`]`(x) weight + bias`.
///
/// Source: arXiv:1607.06450.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[D]`, one at the start.
    pub weight: Param<Tensor<1>>,
    /// `[D]`, zero at the start.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
}

impl LayerNorm {
    /// `epsilon` is added to the variance.
    pub fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: parameter([width], device), bias: parameter([width], device), epsilon }
    }

    /// Shapes: `[.., D]` to the same.
    pub fn forward<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        layer_norm(x, self.epsilon) * self.weight.val().unsqueeze() + self.bias.val().unsqueeze()
    }
}

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension.
///
/// Source: arXiv:1910.07467 eq. 4. Statistics in f32 or wider, whatever the data type.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[D]`, one at the start.
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
}

impl RmsNorm {
    /// `epsilon` is added to the mean square.
    pub fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: parameter([width], device), epsilon }
    }

    /// Shapes: `[.., D]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let dtype = x.dtype();
        let x = widen(x);
        let square = (x.clone() * x.clone()).mean_dim(2);
        (x / (square + self.epsilon).sqrt()).cast(dtype) * self.weight.val().unsqueeze::<3>()
    }
}

//! Layer normalisation with trained factor and shift, `layer_norm(x) weight + bias`. Source: arXiv:1607.06450.

use super::{layer_norm, parameter};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// Layer normalisation with a factor and a shift of each channel: [`layer_norm`]`(x) weight + bias`.
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

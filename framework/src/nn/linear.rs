use super::{gelu_tanh, parameter};
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, activation, module::linear};

/// `x W + b`. `weight` is `[in, out]`, `bias` `[out]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// With a bias.
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self { weight: parameter([inputs, outputs], device), bias: Some(parameter([outputs], device)) }
    }

    /// Without a bias.
    pub fn without_bias(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self { weight: parameter([inputs, outputs], device), bias: None }
    }

    /// The data type it computes in.
    pub fn dtype(&self) -> DType {
        self.weight.val().dtype()
    }

    /// Shapes: `[.., in]` to `[.., out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }
}

/// The two forms of gelu.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gelu {
    /// [`gelu_tanh`].
    #[default]
    Tanh,
    /// `x / 2 (1 + erf(x / sqrt(2)))`.
    Exact,
}

/// `fc2(gelu(fc1(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// To the hidden width.
    pub fc1: Linear,
    /// And back.
    pub fc2: Linear,
    #[module(skip)]
    gelu: Gelu,
}

impl Mlp {
    /// Width in and out, and hidden width.
    pub fn new(width: usize, hidden: usize, device: &Device) -> Self {
        Self { fc1: Linear::new(width, hidden, device), fc2: Linear::new(hidden, width, device), gelu: Gelu::Tanh }
    }

    /// The same with the other form of gelu.
    pub fn with_gelu(self, gelu: Gelu) -> Self {
        Self { gelu, ..self }
    }

    /// Shapes: `[B, L, D]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.fc1.forward(x);
        self.fc2.forward(match self.gelu {
            Gelu::Tanh => gelu_tanh(x),
            Gelu::Exact => activation::gelu(x),
        })
    }
}

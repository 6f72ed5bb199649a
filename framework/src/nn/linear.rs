use super::activation::{activate, gate_pair};
use super::parameters::parameter;
use crate::kernels::Activation;
use crate::kernels::{self, Affine, handle};
use crate::nn::precision::rounding;
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, module::linear};

/// A linear layer, `x W + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Creates a layer with a bias. Its parameters are not allocated yet.
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self { weight: parameter([inputs, outputs], device), bias: Some(parameter([outputs], device)) }
    }

    /// Creates a layer without a bias. Its parameters are not allocated yet.
    pub fn without_bias(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self { weight: parameter([inputs, outputs], device), bias: None }
    }

    /// Returns the data type of the weight, in which the layer computes.
    pub fn dtype(&self) -> DType {
        self.weight.val().dtype()
    }

    /// Computes `x W + b`. Shapes: `[.., in]` to `[.., out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        affine(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }
}

/// Computes `x W + b`. Shapes: `x` `[.., in]`, `weight` `[in, out]`, `bias` `[out]`, to `[.., out]`.
pub fn affine<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let kernel = Affine { rounding: rounding(&x) };
    let fused = match &bias {
        Some(bias) => kernels::affine(kernel, [handle(&x), handle(&weight), handle(bias)]),
        None => kernels::linear(kernel, [handle(&x), handle(&weight)]),
    };
    fused.map(Tensor::from_dispatch).unwrap_or_else(|| linear(x, weight, bias))
}

/// A table of vectors, one per row.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[rows, D]`.
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// Creates the table. Its parameter is not allocated yet.
    pub fn new(rows: usize, width: usize, device: &Device) -> Self {
        Self { weight: parameter([rows, width], device) }
    }

    /// Looks up the rows of `ids`. Shapes: `ids` `[B, L]` to `[B, L, D]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = ids.dims();
        let weight = self.weight.val();
        let width = weight.dims()[1];
        weight.select(0, ids.reshape([batch * length])).reshape([batch, length, width])
    }

    /// Looks up `rows`. Shapes: `rows` `[B]` to `[B, D]`.
    pub fn rows(&self, rows: &[i64]) -> Tensor<2> {
        let weight = self.weight.val();
        let rows = Tensor::<1, Int>::from_data(rows, &weight.device().inner());
        weight.select(0, rows)
    }
}

/// A gated MLP without biases, `w2(silu(w1(x)) w3(x))`.
///
/// Source: arXiv:2002.05202 eq. 6 (SwiGLU).
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// To the hidden width; followed by silu.
    pub w1: Linear,
    /// Back to the input width.
    pub w2: Linear,
    /// To the hidden width; multiplied by the gate.
    pub w3: Linear,
}

impl GatedMlp {
    /// Creates the layer; `width` is the input and output width. Its parameters are not allocated yet.
    pub fn new(width: usize, hidden: usize, device: &Device) -> Self {
        let to = || Linear::without_bias(width, hidden, device);
        Self { w1: to(), w2: Linear::without_bias(hidden, width, device), w3: to() }
    }

    /// Applies the layer. Shapes: `[B, L, D]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.w2.forward(gate_pair(self.w1.forward(x.clone()), self.w3.forward(x), Activation::Silu))
    }
}

/// An MLP with one hidden layer, `fc2(activation(fc1(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// To the hidden width.
    pub fc1: Linear,
    /// Back to the input width.
    pub fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// Creates the layer with the tanh form of gelu; `width` is the input and output width. Its parameters are
    /// not allocated yet.
    pub fn new(width: usize, hidden: usize, device: &Device) -> Self {
        Self {
            fc1: Linear::new(width, hidden, device),
            fc2: Linear::new(hidden, width, device),
            activation: Activation::GeluTanh,
        }
    }

    /// Replaces the activation function.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Applies the layer. Shapes: `[B, L, D]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.forward_with(x, |hidden| hidden)
    }

    /// Applies the layer, with a function such as dropout on the hidden values. Shapes: `[B, L, D]` to the same.
    pub fn forward_with(&self, x: Tensor<3>, hidden: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        self.fc2.forward(hidden(activate(self.fc1.forward(x), self.activation)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Random, tensor};

    #[test]
    fn one_row_is_the_same_alone_and_among_others() {
        let normal = |name: &str, n: usize| -> Vec<f64> {
            Random::new(0).normal(name, 0, 0, n).into_iter().map(f64::from).collect()
        };
        let device = Device::flex();
        let (inputs, outputs) = (1024, 2048);
        let mut layer = Linear::new(inputs, outputs, &device);
        let weight = tensor(&normal("w", inputs * outputs), [inputs, outputs], DType::F64, &device);
        layer.weight = Param::from_tensor(weight);
        layer.bias = Some(Param::from_tensor(tensor(&normal("b", outputs), [outputs], DType::F64, &device)));
        let x = tensor::<3>(&normal("x", 2 * inputs), [2, 1, inputs], DType::F64, &device);
        let both = layer.forward(x.clone()).narrow(0, 1, 1);
        let alone = layer.forward(x.narrow(0, 1, 1));
        assert_eq!(alone.dims(), [1, 1, outputs]);
        let apart = (both - alone).abs().max().into_scalar::<f64>();
        assert!(apart < 1e-11, "{apart:e}");
    }
}

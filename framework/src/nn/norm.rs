use super::{parameter, widen};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension.
///
/// Source: arXiv:1910.07467 eq. 4. Statistics in f32 or wider, whatever the data type.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[D]`.
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
}

impl RmsNorm {
    /// Allocates nothing.
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

//! Layers that backbones share. A faster kernel behind one of them serves every backbone.
//!
//! Parameters are allocated lazily: [`crate::weights::initialize`] or a checkpoint gives them their numbers.
//! Layers compute in the data type of their effective weights and keep normalisation statistics in f32.

mod attention;
pub mod autoencoder;
mod conv;
mod embedding;
mod linear;
mod norm;
mod rotary;
mod text;

pub use attention::{Attention, AttentionConfig, Span, attend, heads, merge_heads};
pub use conv::{
    Conv2d, GroupNorm, GroupNormConfig, Resampling, from_positions, resize, to_positions, upsample_nearest,
};
pub use embedding::{PatchEmbed, TimestepEmbedder, from_patches, guidance_sinusoid, sincos_2d, sinusoid, to_patches};
pub use linear::{Embedding, GatedMlp, Gelu, Linear, Mlp};
pub use norm::{LayerNorm, RmsNorm};
pub use rotary::{Place, Rotary};
pub use text::{TextAttention, TextEncoder, TextEncoderConfig, TextLayer};

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, activation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How embeddings are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingInit {
    /// N(0, 0.02), as published: right for wide networks and hundreds of thousands of steps.
    #[default]
    Published,
    /// Tables of unit variance and Xavier layers: a narrow network learns its condition in hundreds of steps.
    UnitVariance,
}

/// A parameter of the given shape that holds nothing until it is given numbers.
pub fn parameter<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, require_grad| Tensor::zeros(shape, device).set_require_grad(require_grad),
        device.clone(),
        device.is_autodiff(),
        shape.into(),
    )
}

/// Rows of a table `[R, D]`, in the order asked for; a row may be asked for more than once.
pub fn rows(table: Tensor<2>, rows: impl IntoIterator<Item = usize>) -> Tensor<2> {
    let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
    let rows = Tensor::<1, Int>::from_data(rows.as_slice(), &table.device().inner());
    table.select(0, rows)
}

/// The tokens of `x` at `places`. Shapes: `x` `[B, L, D]`, `places` row-major `[B, n]`, to `[B, n, D]`.
pub fn gather(x: Tensor<3>, places: &[usize]) -> Tensor<3> {
    let [batch, length, width] = x.dims();
    let count = places.len() / batch;
    let of_batch = places.iter().enumerate().map(|(i, place)| i / count * length + place);
    rows(x.reshape([batch * length, width]), of_batch).reshape([batch, count, width])
}

/// Layer normalisation without affine parameters over the last dimension.
///
/// Source: arXiv:1607.06450. Statistics in f32 or wider, whatever the data type.
pub fn layer_norm<const D: usize>(x: Tensor<D>, epsilon: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let x = widen(x);
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = (centred.clone() * centred.clone()).mean_dim(D - 1);
    (centred / (variance + epsilon).sqrt()).cast(dtype)
}

/// f32 for half-width types; f32 and f64 as they are.
fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}

/// `x (1 + scale) + shift`, with one scale and shift a sample. Shapes: `x` `[B, L, D]`, others `[B, D]`.
///
/// Source: arXiv:2212.09748 sec. 3.2 (adaLN).
pub fn modulate(x: Tensor<3>, shift: Tensor<2>, scale: Tensor<2>) -> Tensor<3> {
    x * (scale.unsqueeze_dim::<3>(1) + 1.0) + shift.unsqueeze_dim(1)
}

/// The tanh form of gelu, `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
///
/// Written as `x sigmoid(2 u)`, which is the same function in fewer passes over memory.
/// Source: arXiv:1606.08415 sec. 2.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    const LINEAR: f64 = 1.595_769_121_605_730_7; // 2 sqrt(2 / pi)
    let u = (x.clone() * x.clone() * (LINEAR * 0.044_715) + LINEAR) * x.clone();
    x * activation::sigmoid(u)
}

/// `x sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::tensor;

    #[test]
    fn gelu_tanh_is_its_formula() {
        for x in [-3.0, -0.5, 0.0, 0.7, 2.5_f64] {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let expected = 0.5 * x * (1.0 + u.tanh());
            let got = gelu_tanh(tensor::<1>(&[x], [1], DType::F64, &Device::flex())).into_scalar::<f64>();
            assert!((got - expected).abs() < 1e-12, "{x}: {got} {expected}");
        }
    }

    #[test]
    fn layer_norm_has_mean_zero_and_variance_one() {
        let x = tensor::<2>(&[1.0, 2.0, 4.0, 9.0], [1, 4], DType::F64, &Device::flex());
        let y = layer_norm(x, 0.0).into_data().try_to_vec::<f64>().unwrap();
        assert!(y.iter().sum::<f64>().abs() < 1e-12);
        assert!((y.iter().map(|v| v * v).sum::<f64>() / 4.0 - 1.0).abs() < 1e-12);
    }
}

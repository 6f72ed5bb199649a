//! Layers that backbones share. A faster kernel behind one of them serves every backbone.
//!
//! Parameters are allocated lazily: [`crate::weights::initialize`] or a checkpoint gives them their numbers.
//! Layers compute in the data type of their effective weights and keep normalisation statistics in f32. On the CPU what
//! memory bounds runs in fused kernels (`crate::kernels`); elsewhere in the same functions composed of tensor operations
//! (`composed`).

mod activation;
mod attention;
pub mod autoencoder;
pub(crate) mod composed;
mod conv;
mod embedding;
mod linear;
mod norm;
mod rotary;
mod text;

pub use activation::{Activation, activate, gate, gate_pair, silu};
pub use attention::{Attention, AttentionConfig, Span, attend, attend_packed, heads, merge_heads, unit_heads};
pub use conv::{
    Conv2d, GroupNorm, GroupNormConfig, Resampling, from_positions, resize, to_positions, upsample_nearest,
};
pub use embedding::{PatchEmbed, TimestepEmbedder, from_patches, guidance_sinusoid, sincos_2d, sinusoid, to_patches};
pub use linear::{Embedding, GatedMlp, Linear, Mlp, affine};
pub use norm::{LayerNorm, RmsNorm, adaptive_layer_norm, gated_add, layer_norm};
pub use rotary::{Place, Rotary};
pub use text::{TextAttention, TextEncoder, TextEncoderConfig, TextLayer};

use burn::module::{Param, ParamId};
use burn::tensor::kind::Basic;
use burn::tensor::{Device, Int, Tensor};
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

/// Rows of a table `[R, ..]`, in the order asked for; a row may be asked for more than once.
pub fn rows<const D: usize, K: Basic>(table: Tensor<D, K>, rows: impl IntoIterator<Item = usize>) -> Tensor<D, K> {
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

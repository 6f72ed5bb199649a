//! Attention as functions: on separate queries, keys and values, or on packed ones.

use super::composed::{self, Span};
use crate::kernels::{self, Attend, AttendPacked, UnitHeads, handle};
use crate::nn::precision::rounding;
use burn::backend::flex::FlexTensor;
use burn::tensor::{Bool, Tensor};

/// Computes `softmax(q k^T scale) v`. Shapes: `q` `[B, heads, L, d]`, `k` and `v` `[B, heads, K, d]`; `mask`
/// `[B, heads, L, K]`, true = hidden. The default of `scale` is `1 / sqrt(d)`.
///
/// Source: arXiv:1706.03762 eq. 1.
pub fn attend([q, k, v]: [Tensor<4>; 3], span: Span, mask: Option<Tensor<4, Bool>>, scale: Option<f64>) -> Tensor<4> {
    let scale = scale.unwrap_or_else(|| 1.0 / (q.dims()[3] as f64).sqrt());
    let fused = hidden(mask.as_ref()).and_then(|mask| {
        let kernel = Attend { scale, causal: span == Span::Causal, mask, rounding: rounding(&q) };
        kernels::attend(kernel, [handle(&q), handle(&k), handle(&v)])
    });
    fused.map(Tensor::from_dispatch).unwrap_or_else(|| composed::attend([q, k, v], span, mask, scale))
}

/// Computes [`attend`] on packed queries, keys and values. Shapes: `qkv` `[B, L, 3 D]`, `mask`
/// `[B, heads, L, L]`, to `[B, L, D]`.
pub fn attend_packed(
    qkv: Tensor<3>,
    num_heads: usize,
    span: Span,
    mask: Option<Tensor<4, Bool>>,
    scale: Option<f64>,
) -> Tensor<3> {
    let width = qkv.dims()[2] / 3;
    let scale = scale.unwrap_or_else(|| 1.0 / ((width / num_heads) as f64).sqrt());
    let fused = hidden(mask.as_ref()).and_then(|mask| {
        let attend = Attend { scale, causal: span == Span::Causal, mask, rounding: rounding(&qkv) };
        kernels::attend_packed(AttendPacked { attend, heads: num_heads }, [handle(&qkv)])
    });
    fused.map(Tensor::from_dispatch).unwrap_or_else(|| {
        let part = |i: usize| heads(qkv.clone().narrow(2, i * width, width), num_heads);
        merge_heads(composed::attend([part(0), part(1), part(2)], span, mask, scale))
    })
}

/// Normalises queries and keys to unit length, then multiplies the queries of each head by its factor. The
/// values do not change. A vector shorter than 1e-12 is divided by 1e-12. Shapes: `qkv` `[B, L, 3 D]`,
/// `factors` `[heads]`, to `[B, L, 3 D]`.
///
/// Source: arXiv:2010.04245 sec. 2.3, with a learned factor per head.
pub fn unit_heads(qkv: Tensor<3>, factors: Tensor<1>) -> Tensor<3> {
    kernels::unit_heads(UnitHeads, [handle(&qkv), handle(&factors)])
        .map(Tensor::from_dispatch)
        .unwrap_or_else(|| composed::unit_heads(qkv, factors))
}

/// Converts an optional mask for the kernels. Returns `None` if kernels do not support it.
fn hidden(mask: Option<&Tensor<4, Bool>>) -> Option<Option<FlexTensor>> {
    match mask {
        Some(mask) => kernels::bytes(mask).map(Some),
        None => Some(None),
    }
}

/// Splits heads. Shapes: `[B, L, D]` to `[B, heads, L, D / heads]`.
pub fn heads(x: Tensor<3>, num_heads: usize) -> Tensor<4> {
    let [batch, length, width] = x.dims();
    x.reshape([batch, length, num_heads, width / num_heads]).swap_dims(1, 2)
}

/// Merges heads. Shapes: `[B, heads, L, d]` to `[B, L, heads d]`.
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, num_heads, length, width] = x.dims();
    x.swap_dims(1, 2).reshape([batch, length, num_heads * width])
}

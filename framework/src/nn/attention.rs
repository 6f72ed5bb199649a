use super::{Linear, composed};
use crate::backbone::Perturbation;
use crate::kernels::{self, Attend, AttendPacked, UnitHeads, handle};
use crate::precision::rounding;
use burn::backend::flex::FlexTensor;
use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};

/// Sizes of a self-attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    /// Width in and out.
    pub width: usize,
    /// Number of heads; divides the width.
    pub num_heads: usize,
}

/// Multi-head self-attention with one fused query-key-value projection.
///
/// Source: arXiv:1706.03762 sec. 3.2.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[D, 3 D]`: queries, keys, values.
    pub qkv: Linear,
    /// `[D, D]`.
    pub proj: Linear,
    #[module(skip)]
    num_heads: usize,
}

impl Attention {
    /// Allocates nothing.
    pub fn new(config: AttentionConfig, device: &Device) -> Self {
        let AttentionConfig { width, num_heads } = config;
        Self { qkv: Linear::new(width, 3 * width, device), proj: Linear::new(width, width, device), num_heads }
    }

    /// Shapes: `x` `[B, L, D]`; `mask` `[B, heads, L, L]`, true = hidden. `perturb` holds the changes
    /// that concern block `block`.
    pub fn forward(
        &self,
        x: Tensor<3>,
        mask: Option<Tensor<4, Bool>>,
        perturb: &[Perturbation],
        block: usize,
    ) -> Tensor<3> {
        let width = x.dims()[2];
        let qkv = self.qkv.forward(x);
        let identity =
            perturb.iter().any(|p| matches!(p, Perturbation::IdentityAttention(blocks) if blocks.contains(&block)));
        let mixed = if identity {
            // The attention map is the identity: each token keeps its own value (arXiv:2403.17377 eq. 9).
            qkv.narrow(2, 2 * width, width)
        } else {
            attend_packed(qkv, self.num_heads, Span::All, mask, None)
        };
        self.proj.forward(mixed)
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All of them.
    All,
    /// Those up to its own place; the last query stands at the last key.
    Causal,
}

/// `softmax(q k^T scale) v`. Shapes: `q` `[B, heads, L, d]`, `k` and `v` `[B, heads, K, d]`; `mask` `[B, heads, L, K]`,
/// true = hidden. `scale` is `1 / sqrt(d)` unless it is given.
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

/// [`attend`] on queries, keys and values that lie side by side. Shapes: `qkv` `[B, L, 3 D]`, `mask` `[B, heads, L, L]`, to
/// `[B, L, D]`.
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

/// Queries and keys of unit length, each head's queries then times its factor; values stay as they are. Vectors shorter than
/// 1e-12 are divided by that. Shapes: `qkv` `[B, L, 3 D]`, `factors` `[heads]`, to `[B, L, 3 D]`.
///
/// Source: arXiv:2010.04245 sec. 2.3, with a learned factor for each head.
pub fn unit_heads(qkv: Tensor<3>, factors: Tensor<1>) -> Tensor<3> {
    kernels::unit_heads(UnitHeads, [handle(&qkv), handle(&factors)])
        .map(Tensor::from_dispatch)
        .unwrap_or_else(|| composed::unit_heads(qkv, factors))
}

/// A mask as kernels take it; `None` if they cannot.
fn hidden(mask: Option<&Tensor<4, Bool>>) -> Option<Option<FlexTensor>> {
    match mask {
        Some(mask) => kernels::bytes(mask).map(Some),
        None => Some(None),
    }
}

/// `[B, L, D]` to `[B, heads, L, D / heads]`.
pub fn heads(x: Tensor<3>, num_heads: usize) -> Tensor<4> {
    let [batch, length, width] = x.dims();
    x.reshape([batch, length, num_heads, width / num_heads]).swap_dims(1, 2)
}

/// `[B, heads, L, d]` to `[B, L, heads d]`.
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, num_heads, length, width] = x.dims();
    x.swap_dims(1, 2).reshape([batch, length, num_heads * width])
}

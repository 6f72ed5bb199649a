use super::{Linear, composed};
use crate::backbone::Perturbation;
use crate::kernels::{self, Attend, handle};
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
        let part = |i: usize| heads(qkv.clone().narrow(2, i * width, width), self.num_heads);
        let identity =
            perturb.iter().any(|p| matches!(p, Perturbation::IdentityAttention(blocks) if blocks.contains(&block)));
        let mixed = if identity {
            // The attention map is the identity: each token keeps its own value (arXiv:2403.17377 eq. 9).
            part(2)
        } else {
            attend([part(0), part(1), part(2)], Span::All, mask, None)
        };
        self.proj.forward(merge_heads(mixed))
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
    let hidden = mask.as_ref().map(kernels::bytes);
    let fused = if let Some(None) = hidden {
        None
    } else {
        let kernel = Attend { scale, causal: span == Span::Causal, mask: hidden.flatten() };
        kernels::attend(kernel, [handle(&q), handle(&k), handle(&v)]).map(Tensor::from_dispatch)
    };
    fused.unwrap_or_else(|| composed::attend([q, k, v], span, mask, scale))
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

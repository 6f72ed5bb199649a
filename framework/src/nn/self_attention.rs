//! Self-attention as a layer.

use super::hooks::{AttentionSite, Hooked, Packed};
use super::linear::Linear;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// Sizes of a self-attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    /// Input and output width.
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
    /// Creates the layer. Its parameters are not allocated yet.
    pub fn new(config: AttentionConfig, device: &Device) -> Self {
        let AttentionConfig { width, num_heads } = config;
        Self { qkv: Linear::new(width, 3 * width, device), proj: Linear::new(width, width, device), num_heads }
    }

    /// Applies self-attention at `site`. Shapes: `x` `[B, L, D]` to the same.
    pub fn forward(&self, x: Tensor<3>, hooks: &Hooked, site: AttentionSite) -> Tensor<3> {
        self.proj.forward(hooks.attend_packed(site, self.qkv.forward(x), Packed::all(self.num_heads)))
    }
}

//! The text encoder of CLIP, which maps token ids to features.
//!
//!   x = E[ids] + P;   each layer: x + attention(n1(x)), causal;  x + fc2(quick_gelu(fc1(n2(x))));   norm at the end
//!
//! Source: arXiv:2103.00020 sec. 2.4 and the released code.

use super::attention::{attend, heads, merge_heads};
use super::composed::Span;
use super::linear::{Embedding, Linear, Mlp};
use super::norm::LayerNorm;
use crate::kernels::Activation;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

/// The epsilon of every layer norm.
const EPSILON: f64 = 1e-5;

/// Sizes of a text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextEncoderConfig {
    /// Number of distinct tokens.
    pub vocab_size: usize,
    /// Maximum length of a text, in tokens.
    pub length: usize,
    /// Width of the features.
    pub width: usize,
    /// Hidden width of the MLP.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of attention heads per layer; divides the width.
    pub num_heads: usize,
}

/// Self-attention with separate projections of queries, keys and values.
#[derive(Module, Debug)]
pub struct TextAttention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Output projection.
    pub out_proj: Linear,
    #[module(skip)]
    num_heads: usize,
}

/// One transformer layer.
#[derive(Module, Debug)]
pub struct TextLayer {
    /// Before the attention.
    pub layer_norm1: LayerNorm,
    /// Causal self-attention.
    pub self_attn: TextAttention,
    /// Before the MLP.
    pub layer_norm2: LayerNorm,
    /// Applied to each token separately.
    pub mlp: Mlp,
}

/// The text encoder. The fields have the names of the official checkpoints.
#[derive(Module, Debug)]
pub struct TextEncoder {
    /// `[vocabulary, D]`.
    pub token_embedding: Embedding,
    /// `[length, D]`.
    pub position_embedding: Embedding,
    /// The layers, in order.
    pub layers: Vec<TextLayer>,
    /// After the last layer.
    pub final_layer_norm: LayerNorm,
}

impl TextAttention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let part = |linear: &Linear| heads(linear.forward(x.clone()), self.num_heads);
        let parts = [part(&self.q_proj), part(&self.k_proj), part(&self.v_proj)];
        self.out_proj.forward(merge_heads(attend(parts, Span::Causal, None, None)))
    }
}

impl TextEncoder {
    /// Creates the encoder. Its parameters are not allocated yet.
    pub fn new(config: &TextEncoderConfig, device: &Device) -> Self {
        let TextEncoderConfig { vocab_size, length, width, hidden, layers, num_heads } = *config;
        let linear = || Linear::new(width, width, device);
        let norm = || LayerNorm::new(width, EPSILON, device);
        let attention =
            || TextAttention { q_proj: linear(), k_proj: linear(), v_proj: linear(), out_proj: linear(), num_heads };
        let layer = |_| TextLayer {
            layer_norm1: norm(),
            self_attn: attention(),
            layer_norm2: norm(),
            mlp: Mlp::new(width, hidden, device).with_activation(Activation::GeluQuick),
        };
        Self {
            token_embedding: Embedding::new(vocab_size, width, device),
            position_embedding: Embedding::new(length, width, device),
            layers: (0..layers).map(layer).collect(),
            final_layer_norm: norm(),
        }
    }

    /// Computes the features of every token, padding included. Shapes: `ids` `[B, L]` to `[B, L, D]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let length = ids.dims()[1];
        let positions = self.position_embedding.weight.val().narrow(0, 0, length).unsqueeze_dim(0);
        let mut x = self.token_embedding.forward(ids) + positions;
        for layer in &self.layers {
            x = x.clone() + layer.self_attn.forward(layer.layer_norm1.forward(x));
            x = x.clone() + layer.mlp.forward(layer.layer_norm2.forward(x));
        }
        self.final_layer_norm.forward(x)
    }
}

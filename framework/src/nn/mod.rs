//! Layers that backbones share, so that a faster kernel for a layer serves every backbone.
//! A layer can change here without touching a backbone, as long as its parameters keep their paths.
//!
//! Parameters are allocated lazily: [`parameters::initialize`] or a checkpoint sets their values. Layers
//! compute in the data type of their effective weights, and compute normalisation statistics in f32. On the
//! CPU, memory-bound operations run in fused kernels (`crate::kernels`). On other backends, tensor operations
//! compute the same functions (`composed`).

mod activation;
mod attention;
pub mod autoencoder;
pub(crate) mod composed;
mod conv;
pub mod dropout;
mod embedding;
mod folding;
pub mod hooks;
mod linear;
mod norm;
pub mod parameters;
pub mod precision;
pub mod readings;
mod rotary;
mod select;
mod self_attention;
mod text;

pub use crate::kernels::{Activation, GroupNormConfig};
pub use activation::{activate, gate, gate_pair, silu};
pub use attention::{attend, attend_packed, heads, merge_heads, unit_heads};
pub use composed::Span;
pub use conv::{Conv2d, GroupNorm, Resampling, from_positions, resize, to_positions, upsample_nearest};
pub use embedding::{
    EmbeddingInit, PatchEmbed, TimestepEmbedder, from_patches, guidance_sinusoid, sincos_2d, sinusoid, to_patches,
};
pub use folding::{fold_embedding, fold_projection};
pub use linear::{Embedding, GatedMlp, Linear, Mlp, affine};
pub use norm::{LayerNorm, RmsNorm, adaptive_layer_norm, gated_add, layer_norm};
pub use parameters::parameter;
pub use rotary::{Place, Rotary};
pub use select::{gather, rows};
pub use self_attention::{Attention, AttentionConfig};
pub use text::{TextAttention, TextEncoder, TextEncoderConfig, TextLayer};

//! Hooks, by which a guidance rule or an objective reads or changes values inside a forward pass.
//!
//! A network passes a [`Hooked`] to its blocks. Without hooks it is empty, and every layer runs its fused
//! kernel.

use super::attention::{attend, attend_packed, heads, merge_heads};
use super::composed::{self, Span};
use burn::tensor::{Bool, Tensor};
use std::fmt::Debug;
use std::sync::Arc;

/// The sequence that the queries of an attention layer attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attends {
    /// The same sequence: self-attention.
    Itself,
    /// The features of a text: cross-attention.
    Text,
}

/// An attention layer of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttentionSite {
    /// Index of the block, in the order in which blocks run.
    pub block: usize,
    /// The sequence that its queries attend to.
    pub attends: Attends,
}

impl AttentionSite {
    /// The self-attention of block `block`.
    pub fn own(block: usize) -> Self {
        Self { block, attends: Attends::Itself }
    }

    /// The attention of block `block` to a text.
    pub fn text(block: usize) -> Self {
        Self { block, attends: Attends::Text }
    }
}

/// One call of an attention layer, before it runs.
#[derive(Clone, Debug)]
pub struct AttentionCall {
    /// Queries, `[B, heads, L, d]`.
    pub queries: Tensor<4>,
    /// Keys, `[B, heads, K, d]`.
    pub keys: Tensor<4>,
    /// Values, `[B, heads, K, d]`.
    pub values: Tensor<4>,
    /// The factor of the products of queries and keys.
    pub scale: f64,
    /// The keys that a query sees.
    pub span: Span,
    /// Keys hidden from queries, `[B, heads, L, K]`, true = hidden.
    pub mask: Option<Tensor<4, Bool>>,
}

impl AttentionCall {
    /// Computes the attention map, `[B, heads, L, K]`: `softmax(q k^T scale)`.
    pub fn map(&self) -> Tensor<4> {
        composed::attention_map([self.queries.clone(), self.keys.clone()], self.span, self.mask.clone(), self.scale)
    }

    /// Computes the unchanged result of the layer, `[B, heads, L, d]`.
    pub fn output(&self) -> Tensor<4> {
        let qkv = [self.queries.clone(), self.keys.clone(), self.values.clone()];
        attend(qkv, self.span, self.mask.clone(), Some(self.scale))
    }
}

/// The treatment of the tokens that enter a block.
#[derive(Clone, Debug)]
pub enum BlockInput {
    /// The block runs on these tokens, `[B, L, D]`.
    Run(Tensor<3>),
    /// The block is skipped; these tokens leave it.
    Skip(Tensor<3>),
}

/// Reads or changes a forward pass. The default of every method does not change the pass.
///
/// A pass with hooks runs on the whole batch at once, in the thread of the caller, so that hooks may record
/// values.
pub trait Hooks: Debug + Send + Sync {
    /// Returns whether [`Hooks::attention`] replaces or records this layer. Other layers run their fused kernel.
    fn reads_attention(&self, site: AttentionSite) -> bool {
        let _ = site;
        false
    }

    /// Returns the result of an attention layer, `[B, heads, L, d]`.
    fn attention(&self, site: AttentionSite, call: &AttentionCall) -> Tensor<4> {
        let _ = site;
        call.output()
    }

    /// Returns whether block `block` runs on the tokens that enter it, `[B, L, D]`, or is skipped.
    fn block_input(&self, block: usize, tokens: Tensor<3>) -> BlockInput {
        let _ = block;
        BlockInput::Run(tokens)
    }

    /// Returns the tokens that leave block `block`, `[B, L, D]`; called after a block that ran.
    fn block_output(&self, block: usize, tokens: Tensor<3>) -> Tensor<3> {
        let _ = block;
        tokens
    }

    /// Returns the keys and values, `[B, heads, K, d]`, that block `block` reads from its decode cache. The
    /// cache itself keeps the unchanged ones.
    fn cached(&self, block: usize, keys: Tensor<4>, values: Tensor<4>) -> [Tensor<4>; 2] {
        let _ = block;
        [keys, values]
    }
}

/// The settings of attention on packed queries, keys and values.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Number of heads.
    pub num_heads: usize,
    /// The keys that a query sees.
    pub span: Span,
    /// Keys hidden from queries, `[B, heads, L, L]`, true = hidden.
    pub mask: Option<Tensor<4, Bool>>,
    /// The factor of the products; `None` = `1 / sqrt(d)`.
    pub scale: Option<f64>,
}

impl Packed {
    /// Creates settings by which every query sees every key.
    pub fn all(num_heads: usize) -> Self {
        Self { num_heads, span: Span::All, mask: None, scale: None }
    }
}

/// The hooks of one pass, or none.
#[derive(Clone, Debug, Default)]
pub struct Hooked(pub Option<Arc<dyn Hooks>>);

impl Hooked {
    /// Returns whether the pass has hooks.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the hooks if they read the attention of this layer.
    pub fn attention(&self, site: AttentionSite) -> Option<&dyn Hooks> {
        self.0.as_deref().filter(|hooks| hooks.reads_attention(site))
    }

    /// Computes [`attend`] at `site`, through the hooks that read it, otherwise in the fused kernel. Shapes:
    /// queries `[B, heads, L, d]`, keys and values `[B, heads, K, d]`, to `[B, heads, L, d]`. `scale` defaults
    /// to `1 / sqrt(d)`.
    pub fn attend(
        &self,
        site: AttentionSite,
        [queries, keys, values]: [Tensor<4>; 3],
        span: Span,
        mask: Option<Tensor<4, Bool>>,
        scale: Option<f64>,
    ) -> Tensor<4> {
        let Some(hooks) = self.attention(site) else { return attend([queries, keys, values], span, mask, scale) };
        let scale = scale.unwrap_or_else(|| 1.0 / (queries.dims()[3] as f64).sqrt());
        hooks.attention(site, &AttentionCall { queries, keys, values, scale, span, mask })
    }

    /// Computes [`attend_packed`] at `site`, through the hooks that read it, otherwise in the fused kernel.
    /// Shapes: `qkv` `[B, L, 3 D]` to `[B, L, D]`.
    pub fn attend_packed(&self, site: AttentionSite, qkv: Tensor<3>, packed: Packed) -> Tensor<3> {
        let Packed { num_heads, span, mask, scale } = packed;
        if self.attention(site).is_none() {
            return attend_packed(qkv, num_heads, span, mask, scale);
        }
        let width = qkv.dims()[2] / 3;
        let part = |i: usize| heads(qkv.clone().narrow(2, i * width, width), num_heads);
        merge_heads(self.attend(site, [part(0), part(1), part(2)], span, mask, scale))
    }

    /// Runs a block on its tokens, `[B, L, D]` to the same, unless the hooks skip it.
    pub fn block(&self, block: usize, tokens: Tensor<3>, run: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        let Some(hooks) = &self.0 else { return run(tokens) };
        match hooks.block_input(block, tokens) {
            BlockInput::Run(tokens) => hooks.block_output(block, run(tokens)),
            BlockInput::Skip(tokens) => tokens,
        }
    }

    /// Returns the keys and values that a block reads from its decode cache, `[B, heads, K, d]`.
    pub fn cached(&self, block: usize, [keys, values]: [Tensor<4>; 2]) -> [Tensor<4>; 2] {
        match &self.0 {
            Some(hooks) => hooks.cached(block, keys, values),
            None => [keys, values],
        }
    }
}

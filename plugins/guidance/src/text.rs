//! What the rules on attention to a text share.

use crate::perturbed::{check_blocks, named};
use framework::error::Problems;
use framework::nn::hooks::{Attends, AttentionCall, AttentionSite};
use framework::prelude::*;
use framework::sampling::guidance::HookNeeds;

/// Returns the problems of a list of guided blocks; `None` = all blocks.
pub fn check(blocks: Option<&[usize]>) -> Problems {
    blocks.map(check_blocks).unwrap_or_default()
}

/// Returns the hooks on the attention of the guided blocks to a text.
pub fn hooks(blocks: Option<&[usize]>) -> HookNeeds {
    HookNeeds { text_attention: true, blocks_named: blocks.map_or(0, named), ..HookNeeds::default() }
}

/// Returns whether a layer attends to a text in a guided block.
pub fn is_guided(blocks: Option<&[usize]>, site: AttentionSite) -> bool {
    site.attends == Attends::Text && blocks.is_none_or(|blocks| blocks.contains(&site.block))
}

/// Computes the attention logits of a layer, `[B, heads, L, K]`. Attention to a text is never causal.
pub fn logits(call: &AttentionCall) -> Tensor<4> {
    let logits = call.queries.clone().matmul(call.keys.clone().swap_dims(2, 3)) * call.scale;
    match &call.mask {
        Some(mask) => logits.mask_fill(mask.clone(), f64::NEG_INFINITY),
        None => logits,
    }
}

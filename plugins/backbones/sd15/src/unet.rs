//! Parts of the U-Net: residual blocks conditioned on time, and transformers that attend to the text, on levels of
//! decreasing resolution.
//!
//!   residual     x + conv2(silu(norm2(conv1(silu(norm1(x))) + W silu(time))))
//!   transformer  x + W_out blocks(W_in norm(x)),  block: x + attn1(n1(x)); x + attn2(n2(x), text); x + ff(n3(x))
//!   ff           W2 (a gelu(b)),  [a, b] = W1 x
//!
//! Source: arXiv:2112.10752 app. E.2 and the released network; GEGLU: arXiv:2002.05202 eq. 6.

use framework::burn::module::Module;
use framework::nn::autoencoder::{Resample, ResidualBlock};
use framework::nn::hooks::{AttentionSite, Hooked};
use framework::nn::{
    Activation, GroupNorm, GroupNormConfig, LayerNorm, Linear, Span, from_positions, gate, heads, merge_heads,
    to_positions, upsample_nearest,
};
use framework::prelude::*;
use std::cell::Cell;

/// Epsilon of the group norm before a transformer.
const TRANSFORMER_EPSILON: f64 = 1e-6;
/// Epsilon of every layer norm.
const LAYER_EPSILON: f64 = 1e-5;
/// Hidden width of a feed-forward layer, as a multiple of its width.
const FEED_FORWARD: usize = 4;

/// Settings shared by all parts of a level.
#[derive(Clone, Copy)]
pub struct Shared {
    /// Width of the time embedding.
    pub time: usize,
    /// Width of the text features.
    pub text: usize,
    /// Number of attention heads of every transformer.
    pub heads: usize,
    /// Group normalization of the residual blocks.
    pub norm: GroupNormConfig,
}

/// Inputs of the blocks apart from the image.
pub struct Pass<'a> {
    /// Time embedding, `[B, T]`, after SiLU.
    pub time: Tensor<2>,
    /// Text features, `[B, K, D]`.
    pub text: Tensor<3>,
    /// Hooks that read or change the pass.
    pub hooks: &'a Hooked,
    /// Index of the next transformer block, in execution order.
    pub next: Cell<usize>,
}

impl Pass<'_> {
    fn next_block(&self) -> usize {
        self.next.replace(self.next.get() + 1)
    }
}

/// Residual block conditioned on time.
#[derive(Module, Debug)]
pub struct Residual {
    /// Norms, convolutions and shortcut.
    pub block: ResidualBlock,
    /// Projection of the time embedding to one shift per channel.
    pub time_emb_proj: Linear,
}

impl Residual {
    /// Builds the block without allocating its parameters.
    pub fn new(inputs: usize, outputs: usize, shared: Shared, device: &Device) -> Self {
        Self {
            block: ResidualBlock::new(inputs, outputs, shared.norm, device),
            time_emb_proj: Linear::new(shared.time, outputs, device),
        }
    }

    /// Applies the block. Shapes: `x` `[B, in, H, W]`; `time` `[B, T]`, after SiLU.
    fn forward(&self, x: Tensor<4>, time: &Tensor<2>) -> Tensor<4> {
        self.block.forward(x, Some(self.time_emb_proj.forward(time.clone())))
    }
}

/// Attention from one sequence to another sequence or to itself.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// Query projection.
    pub to_q: Linear,
    /// Key projection.
    pub to_k: Linear,
    /// Value projection.
    pub to_v: Linear,
    /// Output projection.
    pub to_out: Linear,
    #[module(skip)]
    num_heads: usize,
}

impl CrossAttention {
    fn new(width: usize, context: usize, num_heads: usize, device: &Device) -> Self {
        Self {
            to_q: Linear::without_bias(width, width, device),
            to_k: Linear::without_bias(context, width, device),
            to_v: Linear::without_bias(context, width, device),
            to_out: Linear::new(width, width, device),
            num_heads,
        }
    }

    /// Attends from `x` to `context`. Shapes: `x` `[B, L, D]`, `context` `[B, K, C]`, result `[B, L, D]`.
    fn forward(&self, x: Tensor<3>, context: Tensor<3>, hooks: &Hooked, site: AttentionSite) -> Tensor<3> {
        let split = |x: Tensor<3>| heads(x, self.num_heads);
        let (k, v) = (self.to_k.forward(context.clone()), self.to_v.forward(context));
        let mixed = hooks.attend(site, [split(self.to_q.forward(x)), split(k), split(v)], Span::All, None, None);
        self.to_out.forward(merge_heads(mixed))
    }
}

/// Feed-forward layer `W2 (a gelu(b))`, `[a, b] = W1 x`, with the exact GELU.
#[derive(Module, Debug)]
pub struct GeGlu {
    /// Projection to twice the hidden width.
    pub proj: Linear,
    /// Projection back to the input width.
    pub out: Linear,
}

impl GeGlu {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.out.forward(gate(self.proj.forward(x), Activation::Gelu))
    }
}

/// Self-attention within the image, cross-attention to the text, and a feed-forward layer.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Norm before `attn1`.
    pub norm1: LayerNorm,
    /// Self-attention within the image.
    pub attn1: CrossAttention,
    /// Norm before `attn2`.
    pub norm2: LayerNorm,
    /// Cross-attention to the text.
    pub attn2: CrossAttention,
    /// Norm before `ff`.
    pub norm3: LayerNorm,
    /// Feed-forward layer, applied to each position separately.
    pub ff: GeGlu,
}

impl TransformerBlock {
    fn new(width: usize, shared: Shared, device: &Device) -> Self {
        let norm = || LayerNorm::new(width, LAYER_EPSILON, device);
        let hidden = FEED_FORWARD * width;
        Self {
            norm1: norm(),
            attn1: CrossAttention::new(width, width, shared.heads, device),
            norm2: norm(),
            attn2: CrossAttention::new(width, shared.text, shared.heads, device),
            norm3: norm(),
            ff: GeGlu { proj: Linear::new(width, 2 * hidden, device), out: Linear::new(hidden, width, device) },
        }
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>, index: usize) -> Tensor<3> {
        let (own, text) = (AttentionSite::own(index), AttentionSite::text(index));
        let normal = self.norm1.forward(x.clone());
        let x = x + self.attn1.forward(normal.clone(), normal, pass.hooks, own);
        let x = x.clone() + self.attn2.forward(self.norm2.forward(x), pass.text.clone(), pass.hooks, text);
        x.clone() + self.ff.forward(self.norm3.forward(x))
    }
}

/// Transformer over the positions of an image.
#[derive(Module, Debug)]
pub struct SpatialTransformer {
    /// Norm of the input.
    pub norm: GroupNorm,
    /// Input projection of each position. Official files store it as a 1x1 convolution.
    pub proj_in: Linear,
    /// Transformer blocks. Every published network has one.
    pub transformer_blocks: Vec<TransformerBlock>,
    /// Output projection of each position. Official files store it as a 1x1 convolution.
    pub proj_out: Linear,
}

impl SpatialTransformer {
    /// Builds the transformer without allocating its parameters.
    pub fn new(width: usize, shared: Shared, device: &Device) -> Self {
        let norm = GroupNormConfig { epsilon: TRANSFORMER_EPSILON, ..shared.norm };
        Self {
            norm: GroupNorm::new(width, norm, device),
            proj_in: Linear::new(width, width, device),
            transformer_blocks: vec![TransformerBlock::new(width, shared, device)],
            proj_out: Linear::new(width, width, device),
        }
    }

    /// Adds the transformer's output to `x`. Shapes: `x` `[B, C, H, W]`, `text` `[B, K, T]`.
    fn forward(&self, x: Tensor<4>, pass: &Pass<'_>) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let mut tokens = self.proj_in.forward(to_positions(self.norm.forward(x.clone())));
        for block in &self.transformer_blocks {
            let i = pass.next_block();
            tokens = pass.hooks.block(i, tokens, |tokens| block.forward(tokens, pass, i));
        }
        x + from_positions(self.proj_out.forward(tokens), [height, width])
    }
}

/// Residual blocks of one resolution, optionally with a transformer after each, and the step to the next
/// resolution.
#[derive(Module, Debug)]
pub struct Level {
    /// Residual blocks, in order.
    pub resnets: Vec<Residual>,
    /// One transformer per residual block, or empty.
    pub attentions: Vec<SpatialTransformer>,
    /// Halves height and width on the downsampling path.
    pub downsampler: Option<Resample>,
    /// Doubles height and width on the upsampling path.
    pub upsampler: Option<Resample>,
}

impl Level {
    /// Builds one residual block per entry of `inputs`, with that many input channels and `width` output channels.
    pub fn new(inputs: &[usize], width: usize, attended: bool, shared: Shared, device: &Device) -> Self {
        let attentions = if attended { inputs.len() } else { 0 };
        Self {
            resnets: inputs.iter().map(|inputs| Residual::new(*inputs, width, shared, device)).collect(),
            attentions: (0..attentions).map(|_| SpatialTransformer::new(width, shared, device)).collect(),
            downsampler: None,
            upsampler: None,
        }
    }

    fn block(&self, i: usize, x: Tensor<4>, pass: &Pass<'_>) -> Tensor<4> {
        let x = self.resnets[i].forward(x, &pass.time);
        match self.attentions.get(i) {
            Some(attention) => attention.forward(x, pass),
            None => x,
        }
    }

    /// Runs the level on the downsampling path. Appends the output of every step to `kept`, for the skip
    /// connections.
    pub fn down(&self, mut x: Tensor<4>, pass: &Pass<'_>, kept: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for i in 0..self.resnets.len() {
            x = self.block(i, x, pass);
            kept.push(x.clone());
        }
        if let Some(halve) = &self.downsampler {
            x = halve.conv.forward(x);
            kept.push(x.clone());
        }
        x
    }

    /// Runs the level on the upsampling path. Each block also reads an output from `kept`, in reverse order.
    pub fn up(&self, mut x: Tensor<4>, pass: &Pass<'_>, kept: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for i in 0..self.resnets.len() {
            let skip = kept.pop().expect("one kept output per block on the upsampling path");
            x = self.block(i, Tensor::cat(vec![x, skip], 1), pass);
        }
        match &self.upsampler {
            Some(double) => double.conv.forward(upsample_nearest(x)),
            None => x,
        }
    }
}

/// Middle block: a residual block, a transformer, a residual block.
#[derive(Module, Debug)]
pub struct Middle {
    /// Residual blocks before and after the transformer.
    pub resnets: Vec<Residual>,
    /// A single transformer.
    pub attentions: Vec<SpatialTransformer>,
}

impl Middle {
    /// Builds the block without allocating its parameters.
    pub fn new(width: usize, shared: Shared, device: &Device) -> Self {
        Self {
            resnets: (0..2).map(|_| Residual::new(width, width, shared, device)).collect(),
            attentions: vec![SpatialTransformer::new(width, shared, device)],
        }
    }

    /// Applies the block. Keeps the shape `[B, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>, pass: &Pass<'_>) -> Tensor<4> {
        let x = self.attentions[0].forward(self.resnets[0].forward(x, &pass.time), pass);
        self.resnets[1].forward(x, &pass.time)
    }
}

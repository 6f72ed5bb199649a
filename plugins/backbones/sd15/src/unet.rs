//! The U-Net: residual blocks told of time, transformers that look at the text, on levels of falling resolution.
//!
//!   residual     x + conv2(silu(norm2(conv1(silu(norm1(x))) + W silu(time))))
//!   transformer  x + W_out blocks(W_in norm(x)),  block: x + attn1(n1(x)); x + attn2(n2(x), text); x + ff(n3(x))
//!   ff           W2 (a gelu(b)),  [a, b] = W1 x
//!
//! Source: arXiv:2112.10752 app. E.2 and the released network; GEGLU: arXiv:2002.05202 eq. 6.

use framework::burn::module::Module;
use framework::nn::autoencoder::{Resample, ResidualBlock};
use framework::nn::{
    Activation, GroupNorm, GroupNormConfig, LayerNorm, Linear, Span, attend, from_positions, gate, heads, merge_heads,
    to_positions, upsample_nearest,
};
use framework::prelude::*;

/// Epsilon of the group norm before a transformer.
const TRANSFORMER_EPSILON: f64 = 1e-6;
/// Epsilon of every layer norm.
const LAYER_EPSILON: f64 = 1e-5;
/// Hidden width of a feed-forward layer, as a multiple of its width.
const FEED_FORWARD: usize = 4;

/// What all parts of a level share.
#[derive(Clone, Copy)]
pub struct Shared {
    /// Width of the time embedding.
    pub time: usize,
    /// Width of the text's features.
    pub text: usize,
    /// Attention heads of every transformer.
    pub heads: usize,
    /// Group normalisation of the residual blocks.
    pub norm: GroupNormConfig,
}

/// A residual block with what it is told of time.
#[derive(Module, Debug)]
pub struct Residual {
    /// The convolutions.
    pub block: ResidualBlock,
    /// To a shift of each channel.
    pub time_emb_proj: Linear,
}

impl Residual {
    /// Allocates nothing.
    pub fn new(inputs: usize, outputs: usize, shared: Shared, device: &Device) -> Self {
        Self {
            block: ResidualBlock::new(inputs, outputs, shared.norm, device),
            time_emb_proj: Linear::new(shared.time, outputs, device),
        }
    }

    /// Shapes: `x` `[B, in, H, W]`, `time` `[B, T]`, already through silu.
    fn forward(&self, x: Tensor<4>, time: &Tensor<2>) -> Tensor<4> {
        self.block.forward(x, Some(self.time_emb_proj.forward(time.clone())))
    }
}

/// Attention from one sequence to another, or to itself.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// Queries.
    pub to_q: Linear,
    /// Keys.
    pub to_k: Linear,
    /// Values.
    pub to_v: Linear,
    /// What comes back.
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

    /// Shapes: `x` `[B, L, D]`, `context` `[B, K, C]`, to `[B, L, D]`.
    fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let split = |x: Tensor<3>| heads(x, self.num_heads);
        let (k, v) = (self.to_k.forward(context.clone()), self.to_v.forward(context));
        let mixed = attend([split(self.to_q.forward(x)), split(k), split(v)], Span::All, None, None);
        self.to_out.forward(merge_heads(mixed))
    }
}

/// `W2 (a gelu(b))`, `[a, b] = W1 x`, with the exact gelu.
#[derive(Module, Debug)]
pub struct GeGlu {
    /// To twice the hidden width.
    pub proj: Linear,
    /// Back.
    pub out: Linear,
}

impl GeGlu {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.out.forward(gate(self.proj.forward(x), Activation::Gelu))
    }
}

/// Attention within the image, attention to the text, and a feed-forward layer.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Before `attn1`.
    pub norm1: LayerNorm,
    /// Within the image.
    pub attn1: CrossAttention,
    /// Before `attn2`.
    pub norm2: LayerNorm,
    /// To the text.
    pub attn2: CrossAttention,
    /// Before `ff`.
    pub norm3: LayerNorm,
    /// Of each position by itself.
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

    fn forward(&self, x: Tensor<3>, text: &Tensor<3>) -> Tensor<3> {
        let normal = self.norm1.forward(x.clone());
        let x = x + self.attn1.forward(normal.clone(), normal);
        let x = x.clone() + self.attn2.forward(self.norm2.forward(x), text.clone());
        x.clone() + self.ff.forward(self.norm3.forward(x))
    }
}

/// A transformer over the positions of an image.
#[derive(Module, Debug)]
pub struct SpatialTransformer {
    /// Before everything.
    pub norm: GroupNorm,
    /// Of each position; a 1x1 convolution in official files.
    pub proj_in: Linear,
    /// One, in every published network.
    pub transformer_blocks: Vec<TransformerBlock>,
    /// Of each position.
    pub proj_out: Linear,
}

impl SpatialTransformer {
    /// Allocates nothing.
    pub fn new(width: usize, shared: Shared, device: &Device) -> Self {
        let norm = GroupNormConfig { epsilon: TRANSFORMER_EPSILON, ..shared.norm };
        Self {
            norm: GroupNorm::new(width, norm, device),
            proj_in: Linear::new(width, width, device),
            transformer_blocks: vec![TransformerBlock::new(width, shared, device)],
            proj_out: Linear::new(width, width, device),
        }
    }

    /// Shapes: `x` `[B, C, H, W]`, `text` `[B, K, T]`.
    fn forward(&self, x: Tensor<4>, text: &Tensor<3>) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let mut tokens = self.proj_in.forward(to_positions(self.norm.forward(x.clone())));
        for block in &self.transformer_blocks {
            tokens = block.forward(tokens, text);
        }
        x + from_positions(self.proj_out.forward(tokens), [height, width])
    }
}

/// Residual blocks of one resolution, each followed by a transformer or none, and the way to the next resolution.
#[derive(Module, Debug)]
pub struct Level {
    /// One after another.
    pub resnets: Vec<Residual>,
    /// Behind each of them, or none.
    pub attentions: Vec<SpatialTransformer>,
    /// To half the size, on the way down.
    pub downsampler: Option<Resample>,
    /// To twice the size, on the way up.
    pub upsampler: Option<Resample>,
}

impl Level {
    /// Residual blocks of the given inputs to `width` channels.
    pub fn new(inputs: &[usize], width: usize, attended: bool, shared: Shared, device: &Device) -> Self {
        let attentions = if attended { inputs.len() } else { 0 };
        Self {
            resnets: inputs.iter().map(|inputs| Residual::new(*inputs, width, shared, device)).collect(),
            attentions: (0..attentions).map(|_| SpatialTransformer::new(width, shared, device)).collect(),
            downsampler: None,
            upsampler: None,
        }
    }

    fn block(&self, i: usize, x: Tensor<4>, time: &Tensor<2>, text: &Tensor<3>) -> Tensor<4> {
        let x = self.resnets[i].forward(x, time);
        match self.attentions.get(i) {
            Some(attention) => attention.forward(x, text),
            None => x,
        }
    }

    /// On the way down: what every step made is kept for the way up.
    pub fn down(&self, mut x: Tensor<4>, time: &Tensor<2>, text: &Tensor<3>, kept: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for i in 0..self.resnets.len() {
            x = self.block(i, x, time, text);
            kept.push(x.clone());
        }
        if let Some(halve) = &self.downsampler {
            x = halve.conv.forward(x);
            kept.push(x.clone());
        }
        x
    }

    /// On the way up: each block also sees what was kept, last first.
    pub fn up(&self, mut x: Tensor<4>, time: &Tensor<2>, text: &Tensor<3>, kept: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for i in 0..self.resnets.len() {
            let skip = kept.pop().expect("as many blocks up as steps down");
            x = self.block(i, Tensor::cat(vec![x, skip], 1), time, text);
        }
        match &self.upsampler {
            Some(double) => double.conv.forward(upsample_nearest(x)),
            None => x,
        }
    }
}

/// The middle: a residual block, a transformer, a residual block.
#[derive(Module, Debug)]
pub struct Middle {
    /// Before and behind the transformer.
    pub resnets: Vec<Residual>,
    /// One.
    pub attentions: Vec<SpatialTransformer>,
}

impl Middle {
    /// Allocates nothing.
    pub fn new(width: usize, shared: Shared, device: &Device) -> Self {
        Self {
            resnets: (0..2).map(|_| Residual::new(width, width, shared, device)).collect(),
            attentions: vec![SpatialTransformer::new(width, shared, device)],
        }
    }

    /// Shapes: `[B, C, H, W]` to the same.
    pub fn forward(&self, x: Tensor<4>, time: &Tensor<2>, text: &Tensor<3>) -> Tensor<4> {
        let x = self.attentions[0].forward(self.resnets[0].forward(x, time), text);
        self.resnets[1].forward(x, time)
    }
}

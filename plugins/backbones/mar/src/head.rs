//! The head: a multilayer perceptron on one noisy token, modulated by the token's time and by the decoder's
//! output at the token's position.
//!
//!   y   = time(t) + cond(z)
//!   h   <- h + gate mlp(modulate(norm(h), y)), depth times
//!   out = linear(modulate(norm(h), y))
//!
//! Source: arXiv:2406.11838 sec. 4.1. Shapes: R rows, one per pair of token and time.

use crate::{EPSILON, FREQUENCIES};
use framework::burn;
use framework::burn::module::Module;
use framework::nn::{LayerNorm, Linear, TimestepEmbedder, adaptive_layer_norm, gated_add, rows, silu};
use framework::prelude::*;

/// Dimensions of the head.
#[derive(Clone, Copy, Debug)]
pub struct HeadConfig {
    /// Number of channels per token.
    pub channels: usize,
    /// Number of output channels. A learned variance doubles the number of channels per token.
    pub out_channels: usize,
    /// Width of the decoder's output.
    pub condition: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Width of the blocks.
    pub width: usize,
}

/// Residual block: a modulated norm, two linear layers and a gate.
#[derive(Module, Debug)]
struct ResBlock {
    in_ln: LayerNorm,
    mlp_0: Linear,
    mlp_2: Linear,
    ada_ln: Linear,
}

/// Modulated layer norm followed by the projection to a token.
#[derive(Module, Debug)]
struct FinalLayer {
    linear: Linear,
    ada_ln: Linear,
}

/// The head network. Field names follow the official checkpoints.
#[derive(Module, Debug)]
pub struct Head {
    time_embed: TimestepEmbedder,
    cond_embed: Linear,
    input_proj: Linear,
    res_blocks: Vec<ResBlock>,
    final_layer: FinalLayer,
}

impl Head {
    /// Builds the head without allocating its parameters.
    pub fn new(config: HeadConfig, device: &Device) -> Self {
        let width = config.width;
        let block = |_| ResBlock {
            in_ln: LayerNorm::new(width, EPSILON, device),
            mlp_0: Linear::new(width, width, device),
            mlp_2: Linear::new(width, width, device),
            ada_ln: Linear::new(width, 3 * width, device),
        };
        Self {
            time_embed: TimestepEmbedder::new(width, FREQUENCIES, None, device),
            cond_embed: Linear::new(config.condition, width, device),
            input_proj: Linear::new(config.channels, width, device),
            res_blocks: (0..config.depth).map(block).collect(),
            final_layer: FinalLayer {
                linear: Linear::new(width, config.out_channels, device),
                ada_ln: Linear::new(width, 2 * width, device),
            },
        }
    }

    /// Computes the prediction, `[R, out]`.
    /// Shapes: `x_t` `[R, D]`, `t` `[R]` as indices of training timesteps, `z` `[R, condition]`.
    pub fn forward(&self, x_t: Tensor<2>, t: &[f64], z: Tensor<2>) -> Tensor<2> {
        // Embed each distinct time once. There are few: a sampling step has one time, and training picks its
        // times from the T timesteps.
        let mut times = t.to_vec();
        times.sort_by(f64::total_cmp);
        times.dedup();
        let place = |t: &f64| times.binary_search_by(|time| time.total_cmp(t)).expect("every time is in the list");
        let time = self.time_embed.forward(&times, None, &x_t.device().inner());
        let y = silu(rows(time, t.iter().map(place)) + self.cond_embed.forward(z));
        let blocks = self.res_blocks.iter();
        let h = blocks.fold(self.input_proj.forward(x_t), |h, block| block.forward(h, y.clone()));
        let [shift, scale] = self.final_layer.ada_ln.forward(y).chunk(2, 1).try_into().expect("two equal chunks");
        self.final_layer.linear.forward(adaptive_layer_norm(h, EPSILON, shift, scale))
    }
}

impl ResBlock {
    fn forward(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        let [shift, scale, gate] = self.ada_ln.forward(y).chunk(3, 1).try_into().expect("three equal chunks");
        let h = self.in_ln.forward(x.clone()) * (scale + 1.0) + shift;
        gated_add(x, self.mlp_2.forward(silu(self.mlp_0.forward(h))), gate)
    }
}

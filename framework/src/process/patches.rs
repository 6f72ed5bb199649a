//! Cuts a latent into tokens of several positions, and joins the tokens again.

use crate::nn::to_patches;
use burn::tensor::Tensor;

/// Cuts a latent into square tokens of `patch` x `patch` positions, in raster order. A token stores its
/// values channel by channel; each channel is row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Height and width of the latent, in positions.
    pub grid: [usize; 2],
    /// Side length of a token, in positions. It divides both sides of `grid`.
    pub patch: usize,
}

impl Patches {
    /// Returns the number of tokens, L.
    pub fn tokens(&self) -> usize {
        self.grid[0] * self.grid[1] / (self.patch * self.patch)
    }

    /// Cuts `[B, position, channel]` into tokens `[B, token, channel * patch^2]`.
    pub fn cut(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, _, channels] = x.dims();
        let (tokens, square) = (self.tokens(), self.patch * self.patch);
        // `to_patches` puts the channel last. A token puts it first.
        let patches = to_patches(x, self.grid, self.patch).reshape([batch, tokens, square, channels]);
        patches.swap_dims(2, 3).reshape([batch, tokens, channels * square])
    }

    /// Joins tokens into a latent: the inverse of [`Patches::cut`].
    pub fn join(&self, tokens: Tensor<3>) -> Tensor<3> {
        let [batch, _, width] = tokens.dims();
        let ([height, _], patch) = (self.grid, self.patch);
        let (channels, [h, w]) = (width / (patch * patch), self.grid.map(|side| side / patch));
        let split = tokens.reshape([batch, h, w, channels, patch, patch]).permute([0, 1, 4, 2, 5, 3]);
        split.reshape([batch, height * w * patch, channels])
    }
}

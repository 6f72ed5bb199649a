//! Embeddings: patches, positions, time and guidance numbers.

use super::activation::silu;
use super::linear::Linear;
use crate::kernels::chunks;
use crate::random::tensor;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The initialization of embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingInit {
    /// Normal with standard deviation 0.02, as published. Suits wide networks and hundreds of thousands of
    /// training steps.
    #[default]
    Published,
    /// Tables with unit variance and Xavier-initialized layers. A narrow network then learns its condition in
    /// hundreds of training steps.
    UnitVariance,
}

/// Computes sinusoids of each value: `[cos(v f_i)], [sin(v f_i)]`, `f_i = 10000^(-i / (dim / 2))`; `[n, dim]`
/// row-major.
///
/// Computed in f64: at 1000 beta or t = 999, an f32 argument has already lost four digits. Source:
/// arXiv:1706.03762 sec. 3.5, in the order of the DiT code.
pub fn sinusoid(values: &[f64], dim: usize) -> Vec<f64> {
    let half = dim / 2;
    waves(values, half, half, |sine, cosine| [cosine, sine])
}

/// Computes sinusoids of the guidance `w = scale - 1`: `[sin(1000 w f_i)], [cos(1000 w f_i)]`,
/// `f_i = 10000^(-i / (dim / 2 - 1))`; `[n, dim]` row-major. Unlike in [`sinusoid`], sines come first, and the
/// last frequency is 1 / 10000.
///
/// Source: arXiv:2310.04378 (the guidance embedding of latent consistency models), in the order that Stable
/// Diffusion uses.
pub fn guidance_sinusoid(w: &[f64], dim: usize) -> Vec<f64> {
    let half = dim / 2;
    let w: Vec<f64> = w.iter().map(|w| 1000.0 * w).collect();
    waves(&w, half, half - 1, |sine, cosine| [sine, cosine])
}

/// Computes the sine and cosine of each value times `10000^(-i / steps)`, `i < half`. `order` maps them to the
/// first and second half of a row.
fn waves(values: &[f64], half: usize, steps: usize, order: impl Fn(f64, f64) -> [f64; 2] + Sync) -> Vec<f64> {
    let frequencies: Vec<f64> = (0..half).map(|i| (-(10_000_f64.ln()) * i as f64 / steps as f64).exp()).collect();
    let mut table = vec![0.0; values.len() * 2 * half];
    chunks(&mut table, 2 * half, |sample, row| {
        let (first, second) = row.split_at_mut(half);
        for ((first, second), frequency) in first.iter_mut().zip(second).zip(&frequencies) {
            let (sine, cosine) = (values[sample] * frequency).sin_cos();
            [*first, *second] = order(sine, cosine);
        }
    });
    table
}

/// Computes the 2-D sine-cosine position table `[height * width, dim]`: sin x, cos x, sin y, cos y, where x is
/// the column and y the row.
///
/// Source: arXiv:2212.09748 (fixed positions as in arXiv:2111.06377).
pub fn sincos_2d(grid: [usize; 2], dim: usize) -> Vec<f32> {
    let quarter = dim / 4;
    let frequency = |i: usize| 10_000_f64.powf(-(i as f64) / quarter as f64);
    let mut table = Vec::with_capacity(grid[0] * grid[1] * dim);
    for row in 0..grid[0] {
        for column in 0..grid[1] {
            for place in [column, row] {
                let angle = |i: usize| place as f64 * frequency(i);
                table.extend((0..quarter).map(|i| angle(i).sin() as f32));
                table.extend((0..quarter).map(|i| angle(i).cos() as f32));
            }
        }
    }
    table
}

/// The embedding of one number per sample: sinusoid, linear, silu, linear.
///
/// Source: arXiv:2212.09748 sec. 3.2; the guidance input of arXiv:2501.15420 uses the same layer.
#[derive(Module, Debug)]
pub struct TimestepEmbedder {
    /// From the sinusoid to the output width.
    pub mlp_0: Linear,
    /// At the output width.
    pub mlp_2: Linear,
    /// A third layer at the output width, after another silu (the input `3_layer_mlp` of GFT).
    pub mlp_4: Option<Linear>,
    /// Projects a sinusoid of the guidance number, which is added before `mlp_0` (the `linear` input of GFT).
    pub cond_proj: Option<Linear>,
    #[module(skip)]
    frequencies: usize,
}

impl TimestepEmbedder {
    /// Creates the layer with the output width `width`. `frequencies` is the width of the sinusoid, and
    /// `guidance` the width of the guidance sinusoid, if there is one. The parameters are not allocated yet.
    pub fn new(width: usize, frequencies: usize, guidance: Option<usize>, device: &Device) -> Self {
        Self {
            mlp_0: Linear::new(frequencies, width, device),
            mlp_2: Linear::new(width, width, device),
            mlp_4: None,
            cond_proj: guidance.map(|guidance| Linear::without_bias(guidance, frequencies, device)),
            frequencies,
        }
    }

    /// Adds a third layer, whose parameters are not allocated yet.
    pub fn with_third_layer(self, width: usize, device: &Device) -> Self {
        Self { mlp_4: Some(Linear::new(width, width, device)), ..self }
    }

    /// Embeds `values`. Shapes: `values` `[B]` to `[B, D]`. `guidance` holds the sinusoids for
    /// [`TimestepEmbedder::cond_proj`], row-major.
    ///
    /// A value that is the same for all samples (a time while sampling, a guidance number of 1) is embedded
    /// only once.
    pub fn forward(&self, values: &[f64], guidance: Option<&[f64]>, device: &Device) -> Tensor<2> {
        if let ([first, rest @ ..], None) = (values, guidance)
            && !rest.is_empty()
            && rest.iter().all(|v| v == first)
        {
            let embedding = self.forward(&[*first], None, device);
            let width = embedding.dims()[1];
            return embedding.expand([values.len(), width]);
        }
        let dtype = self.mlp_0.dtype();
        let table = |sinusoids: &[f64], dim| tensor(sinusoids, [values.len(), dim], dtype, device);
        let mut embedding = table(&sinusoid(values, self.frequencies), self.frequencies);
        if let (Some(projection), Some(guidance)) = (&self.cond_proj, guidance) {
            let inputs = projection.weight.shape().dims::<2>()[0];
            embedding = embedding + projection.forward(table(guidance, inputs));
        }
        let embedding = self.mlp_2.forward(silu(self.mlp_0.forward(embedding)));
        match &self.mlp_4 {
            Some(third) => third.forward(silu(embedding)),
            None => embedding,
        }
    }
}

/// Groups positions into patches, both in raster order, channel last. Shapes: `[B, H W, C]` to
/// `[B, h w, p p C]`.
pub fn to_patches(x: Tensor<3>, grid: [usize; 2], patch: usize) -> Tensor<3> {
    let [batch, _, channels] = x.dims();
    let [h, w] = [grid[0] / patch, grid[1] / patch];
    x.reshape([batch, h, patch, w, patch * channels]).swap_dims(2, 3).reshape([batch, h * w, patch * patch * channels])
}

/// Inverts [`to_patches`]; `grid` is the height and width in positions.
pub fn from_patches(x: Tensor<3>, grid: [usize; 2], patch: usize) -> Tensor<3> {
    let [batch, _, width] = x.dims();
    let [h, w] = [grid[0] / patch, grid[1] / patch];
    let channels = width / (patch * patch);
    x.reshape([batch, h, w, patch, patch * channels]).swap_dims(2, 3).reshape([batch, h * w * patch * patch, channels])
}

/// A linear embedding of patches.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// `[p p C, D]`.
    pub proj: Linear,
    #[module(skip)]
    grid: [usize; 2],
    #[module(skip)]
    patch: usize,
}

impl PatchEmbed {
    /// Creates the layer; `grid` is the height and width of the latent. The parameters are not allocated yet.
    pub fn new(grid: [usize; 2], patch: usize, channels: usize, width: usize, device: &Device) -> Self {
        Self { proj: Linear::new(patch * patch * channels, width, device), grid, patch }
    }

    /// Embeds the patches of a latent. Shapes: `[B, H W, C]` to `[B, h w, D]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.proj.forward(to_patches(x, self.grid, self.patch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::DType;

    #[test]
    fn patches_round_trip_and_hold_neighbours() {
        let values: Vec<f64> = (0..2 * 4 * 6 * 3).map(f64::from).collect();
        let x = tensor::<3>(&values, [2, 24, 3], DType::F64, &Device::flex());
        let patches = to_patches(x.clone(), [4, 6], 2);
        assert_eq!(patches.dims(), [2, 6, 12]);
        // The first patch has the pixels (0,0), (0,1), (1,0), (1,1), which are the positions 0, 1, 6, 7.
        let first = patches.clone().slice([0..1, 0..1, 0..12]).into_data().try_to_vec::<f64>().unwrap();
        assert_eq!(first, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0]);
        let back = from_patches(patches, [4, 6], 2).into_data().try_to_vec::<f64>().unwrap();
        assert_eq!(back, values);
    }

    #[test]
    fn sinusoid_of_zero_is_ones_then_zeros() {
        assert_eq!(sinusoid(&[0.0], 4), [1.0, 1.0, 0.0, 0.0]);
    }
}

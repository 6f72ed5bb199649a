//! Resizing as the published evaluation codes do it. Each axis is resized separately, as a product with a matrix.

use framework::burn::tensor::TensorData;
use framework::prelude::*;

/// A method of resizing images to the input size of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resizing {
    /// Linear interpolation without antialiasing, as in pytorch-fid. Pixels are areas (corners are not aligned).
    #[default]
    Bilinear,
    /// Linear interpolation as TensorFlow 1 computed it: torch-fidelity, and the original code of the FID. Its pixels
    /// have no centres, so the image is shifted by up to half a pixel.
    BilinearTf1,
    /// Cubic interpolation with antialiasing, as in clean-fid.
    Clean,
}

impl Resizing {
    /// Returns the weights of one axis, `[to, from]` row-major; each row sums to one.
    pub fn weights(self, from: usize, to: usize) -> Vec<f64> {
        let scale = from as f64 / to as f64;
        let mut weights = vec![0.0; to * from];
        for (i, row) in weights.chunks_exact_mut(from).enumerate() {
            match self {
                Self::Bilinear => linear(row, ((i as f64 + 0.5) * scale - 0.5).max(0.0)),
                Self::BilinearTf1 => linear(row, i as f64 * scale),
                Self::Clean => antialiased(row, (i as f64 + 0.5) * scale, scale.max(1.0)),
            }
        }
        weights
    }

    /// Resizes images. Shapes: `[B, C, H, W]` to `[B, C, to[0], to[1]]`.
    pub fn resize(self, x: Tensor<4>, to: [usize; 2]) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        if [height, width] == to {
            return x;
        }
        // Resizes the last axis and swaps it with the previous one.
        let axis = |x: Tensor<4>, other: usize, from: usize, to: usize| {
            let weights: Vec<f32> = self.weights(from, to).into_iter().map(|weight| weight as f32).collect();
            let weights = Tensor::<2>::from_data(TensorData::new(weights, [to, from]), &x.device());
            let resized = x.reshape([batch * channels * other, from]).matmul(weights.transpose());
            resized.reshape([batch, channels, other, to]).swap_dims(2, 3)
        };
        axis(axis(x, height, width, to[1]), to[1], height, to[0])
    }

    /// Resizes the shorter side of images to `side` pixels and cuts out the centre. Shapes: `[B, C, H, W]` to
    /// `[B, C, side, side]`.
    pub fn resize_and_crop(self, x: Tensor<4>, side: usize) -> Tensor<4> {
        let [.., height, width] = x.dims();
        let shorter = height.min(width).max(1);
        let to = [height, width].map(|length| side * length / shorter);
        self.resize(x, to).narrow(2, (to[0] - side) / 2, side).narrow(3, (to[1] - side) / 2, side)
    }
}

/// Converts values in [-1, 1] to the 256 levels of an image file, because the published codes read such files.
pub fn levels(images: Tensor<4>) -> Tensor<4> {
    ((images + 1.0) * 127.5).round().clamp(0.0, 255.0)
}

/// Repeats the channel of grey images. Shapes: `[B, 1 or 3, H, W]` to `[B, 3, H, W]`.
pub fn grey_to_rgb(images: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = images.dims();
    if channels == 1 { images.expand([batch, 3, height, width]) } else { images }
}

/// Sets the weights of the two pixels around `place`.
fn linear(row: &mut [f64], place: f64) {
    let last = row.len() - 1;
    let first = (place as usize).min(last);
    let share = place - first as f64;
    row[first] += 1.0 - share;
    row[(first + 1).min(last)] += share;
}

/// Sets the weights of a cubic kernel with a = -0.5, stretched by `stretch`, whose centre is `centre` in units of
/// pixels from the edge. Pixels outside the image are left out.
///
/// Source: R. Keys, "Cubic convolution interpolation for digital image processing", doi 10.1109/TASSP.1981.1163711.
fn antialiased(row: &mut [f64], centre: f64, stretch: f64) {
    let support = 2.0 * stretch;
    let first = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(row.len());
    for (place, weight) in row.iter_mut().enumerate().take(end).skip(first) {
        let d = ((place as f64 + 0.5 - centre) / stretch).abs();
        *weight = match d {
            _ if d < 1.0 => (1.5 * d - 2.5) * d * d + 1.0,
            _ if d < 2.0 => -0.5 * (((d - 5.0) * d + 8.0) * d - 4.0),
            _ => 0.0,
        };
    }
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|weight| *weight /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Resizing; 3] = [Resizing::Bilinear, Resizing::BilinearTf1, Resizing::Clean];

    #[test]
    fn weights_of_small_sizes() {
        // Half-pixel centres: the places are -0.25 (clamped), 0.25, 0.75 and 1.25.
        let rows = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]].concat();
        assert_eq!(Resizing::Bilinear.weights(2, 4), rows);
        // No centres: the places are 0, 0.5, 1 and 1.5.
        let rows = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]].concat();
        assert_eq!(Resizing::BilinearTf1.weights(2, 4), rows);
        // Halving stretches the kernel by two: the distances are 1/4, 3/4, 5/4 and 7/4 in units of the kernel.
        let kernel = [0.25_f64, 0.75, 1.25, 1.75].map(|d| match d < 1.0 {
            true => 1.5 * d.powi(3) - 2.5 * d.powi(2) + 1.0,
            false => -0.5 * d.powi(3) + 2.5 * d.powi(2) - 4.0 * d + 2.0,
        });
        let [a, b, c, d] = kernel;
        let middle = &Resizing::Clean.weights(8, 4)[8..16];
        // Output pixel 1 has its centre at 3: pixels 0 to 6 are at -2.5, -1.5, .. and pixel 7 is out of reach.
        let sum = 2.0 * (a + b + c) + d;
        let expected = [c, b, a, a, b, c, d, 0.0].map(|weight| weight / sum);
        assert!(middle.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{middle:?} {expected:?}");
    }

    #[test]
    fn a_constant_image_stays_constant_and_the_same_size_is_the_same_image() {
        for resizing in ALL {
            for (from, to) in [(1, 7), (7, 1), (5, 13), (13, 5)] {
                for row in resizing.weights(from, to).chunks(from) {
                    assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{resizing:?} {from} {to}");
                }
            }
            let identity = |i: usize| if i / 6 == i % 6 { 1.0 } else { 0.0 };
            let same = resizing.weights(6, 6);
            assert!(same.iter().enumerate().all(|(i, weight)| (weight - identity(i)).abs() < 1e-12), "{resizing:?}");
        }
    }
}

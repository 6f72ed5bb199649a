//! Residuals of a grey image pyramid as tokens, from coarse to fine.
//!
//!   q_k = round(mean_k(x)),   id_k = q_k - up(q_{k-1}) + values - 1,   x ~ q_K
//!
//! `mean_k` averages the image down to level k, `q_k` is in whole grey steps, and `up` repeats pixels. The
//! finest level is the image itself, so only the rounding is lossy. The features of level k are `up(q_{k-1})`.
//! Source: arXiv:2404.02905 (algorithm 1, multi-scale residual tokens) with a fixed codebook, arXiv:1506.05751.
//! Shapes: `[B, 1, S, S]` to `[B, sum of side^2]`.

use crate::levels::{grey, quantize, value};
use framework::data::tokenizer::{ImageShape, LevelCodec, Tokenizer};
use framework::error::Problems;
use framework::prelude::*;
use framework::process::Latent;

/// The levels of a grey image pyramid. The vocabulary is the `2 values - 1` residuals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pyramid {
    /// Sides of the levels in pixels, from coarse to fine. Each divides the next; the last is the side of the
    /// image.
    #[schemars(inner(range(min = 1, max = 4096)))]
    pub sides: Vec<usize>,
    /// Number of grey levels from black to white, 2 to 4,096. The embedded digits have 17.
    #[schemars(range(min = 2, max = 4096))]
    pub values: usize,
}

impl Default for Pyramid {
    fn default() -> Self {
        Self { sides: vec![1, 2, 4, 8], values: 256 }
    }
}

framework::register!(tokenizer "pyramid" => Pyramid, "arXiv:2404.02905");

impl Pyramid {
    fn side(&self) -> usize {
        self.sides.last().copied().expect("`check` rejects a pyramid without levels")
    }

    /// Repeats the pixels of `[B, from, from]` to `[B, to, to]`.
    fn repeat(x: Tensor<3>, to: usize) -> Tensor<3> {
        let [batch, from, _] = x.dims();
        let times = to / from;
        x.reshape([batch, from, 1, from, 1]).expand([batch, from, times, from, times]).reshape([batch, to, to])
    }

    /// Averages `[B, from, from]` to `[B, to, to]`.
    fn average(x: Tensor<3>, to: usize) -> Tensor<3> {
        let [batch, from, _] = x.dims();
        let each = from / to;
        x.reshape([batch, to, each, to, each]).mean_dim(4).mean_dim(2).reshape([batch, to, to])
    }

    /// Computes the grey steps of the first levels from their residual tokens.
    fn steps(&self, ids: &[Tensor<2, Int>]) -> Vec<Tensor<3>> {
        let mut all: Vec<Tensor<3>> = Vec::new();
        for (side, ids) in self.sides.iter().zip(ids) {
            let [batch, _] = ids.dims();
            let residual = ids.clone().float().reshape([batch, *side, *side]) - (self.values - 1) as f64;
            let before = all.last().map(|coarse| Self::repeat(coarse.clone(), *side));
            all.push(before.map_or(residual.clone(), |before| before + residual));
        }
        all
    }

    /// Computes the features of the first level, which are zeros, and of the level after each of `steps`: the
    /// repeated grey values of the coarser level.
    fn fed(&self, steps: &[Tensor<3>], batch: usize, device: &Device) -> Tensor<3> {
        let feature = |(k, side): (usize, &usize)| {
            let shape = [batch, side * side, 1];
            match k.checked_sub(1) {
                None => Tensor::zeros(shape, device),
                Some(before) => Self::repeat(value(steps[before].clone(), self.values), *side).reshape(shape),
            }
        };
        Tensor::cat(self.sides.iter().enumerate().take(steps.len() + 1).map(feature).collect(), 1)
    }
}

impl Tokenizer for Pyramid {
    fn check(&self) -> Problems {
        let rising = self.sides.windows(2).all(|pair| pair[0] < pair[1] && pair[1].is_multiple_of(pair[0]));
        if rising && !self.sides.is_empty() {
            return Problems::new();
        }
        let what = format!("`sides` {:?} is not a pyramid", self.sides);
        vec![Problem::new("/sides", what).accepts("ascending sides, each a divisor of the next")]
    }

    fn latent_shape(&self, [channels, height, width]: ImageShape) -> Result<LatentShape, Problems> {
        grey(channels, "pyramid")?;
        if [height, width] != [self.side(); 2] {
            let what = format!("the finest level has side {}, but the images are {height}x{width}", self.side());
            return Err(vec![Problem::new("/sides", what).accepts("a last side equal to the side of the images")]);
        }
        Ok(LatentShape::pyramid(&self.sides, 2 * self.values - 1, 1))
    }

    fn image_shape(&self, _: LatentShape) -> ImageShape {
        [1, self.side(), self.side()]
    }

    fn encode(&self, images: Tensor<4>) -> Latent {
        let [batch, _, side, _] = images.dims();
        let device = images.device();
        let fine = quantize(images.reshape([batch, side, side]), self.values);
        let steps: Vec<Tensor<3>> = self.sides.iter().map(|to| Self::average(fine.clone(), *to).round()).collect();
        let residual = |(k, side): (usize, &usize)| {
            let own = steps[k].clone();
            let residual = match k.checked_sub(1) {
                None => own,
                Some(before) => own - Self::repeat(steps[before].clone(), *side),
            };
            (residual + (self.values - 1) as f64).round().int().reshape([batch, side * side])
        };
        let ids = Tensor::cat(self.sides.iter().enumerate().map(residual).collect(), 1);
        Latent::Levels { ids, features: self.fed(&steps[..steps.len() - 1], batch, &device) }
    }

    fn decode(&self, latent: Latent, image: ImageShape) -> Tensor<4> {
        let ids = latent.ids();
        let (batch, mut from) = (ids.dims()[0], 0);
        let levels: Vec<Tensor<2, Int>> = self
            .sides
            .iter()
            .map(|side| {
                let level = ids.clone().narrow(1, from, side * side);
                from += side * side;
                level
            })
            .collect();
        let fine = self.steps(&levels).pop().expect("a pyramid has levels");
        value(fine, self.values).clamp(-1.0, 1.0).reshape([batch, image[0], image[1], image[2]])
    }

    fn codec(&self) -> Option<&dyn LevelCodec> {
        Some(self)
    }
}

impl LevelCodec for Pyramid {
    fn features(&self, ids: &[Tensor<2, Int>], batch: usize, device: &Device) -> Tensor<3> {
        self.fed(&self.steps(ids), batch, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::burn::tensor::TensorData;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip_loses_nothing_but_the_rounding(
            greys in prop::collection::vec(0..17_i32, 2 * 64), sides in prop_oneof![Just(vec![1, 2, 4, 8]), Just(vec![2, 8])],
        ) {
            let pyramid = Pyramid { sides: sides.clone(), values: 17 };
            let x: Vec<f32> = greys.iter().map(|g| *g as f32 / 8.0 - 1.0).collect();
            let images = Tensor::<4>::from_data(TensorData::new(x.clone(), [2, 1, 8, 8]), &Device::flex());
            let Latent::Levels { ids, features } = pyramid.encode(images) else { panic!("no levels") };
            prop_assert_eq!(ids.dims()[1], features.dims()[1]);
            let back = pyramid.decode(Latent::Ids(ids.clone()), [1, 8, 8]).into_data().try_into_vec::<f32>().unwrap();
            prop_assert!(x.iter().zip(back).all(|(a, b)| (a - b).abs() < 1e-6));
            // The tokens alone determine the features.
            let mut from = 0;
            let levels: Vec<_> = sides.iter().map(|side| { let l = ids.clone().narrow(1, from, side * side); from += side * side; l }).collect();
            let again = pyramid.features(&levels[..levels.len() - 1], 2, &Device::flex());
            prop_assert_eq!(again.into_data(), features.into_data());
        }
    }

    #[test]
    fn worked_by_hand() {
        // The steps are 0 2 / 4 6 in 0..=8, with mean 3 and residuals -3 -1 / 1 3. Token 8 is the residual 0.
        let pyramid = Pyramid { sides: vec![1, 2], values: 9 };
        let x = [0.0, 2.0, 4.0, 6.0].map(|s: f32| s / 4.0 - 1.0).to_vec();
        let images = Tensor::<4>::from_data(TensorData::new(x, [1, 1, 2, 2]), &Device::flex());
        let Latent::Levels { ids, features } = pyramid.encode(images) else { panic!("no levels") };
        assert_eq!(ids.into_data().convert::<i64>().try_into_vec::<i64>().unwrap(), [11, 5, 7, 9, 11]);
        assert_eq!(features.into_data().try_into_vec::<f32>().unwrap(), [0.0, -0.25, -0.25, -0.25, -0.25]);
    }
}

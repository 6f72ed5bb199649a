//! What all shapes in the plane share: items, and the exact density and score of their noised points.
//!
//! A class is a set of centres, blurred by a normal distribution. For a curve, the centres are the nodes of a quadrature
//! that is fine against the blur.
//!
//!   x_t = alpha x + sigma eps,   p_t(x_t | c) = mean over centres m of N(x_t; alpha m, alpha^2 std^2 + sigma^2)
//!   p_t(x_t) = mean over classes of p_t(x_t | c)

use framework::data::dataset::{Dataset, DatasetInfo, Item, ItemKind, Label};
use framework::error::Result;
use framework::random::Random;
use std::f64::consts::PI;
use std::fmt::Debug;

/// A shape in the plane. The document entries implement it.
pub trait PlaneConfig: Debug + Send + Sync {
    /// Returns the number of classes.
    fn num_classes(&self) -> usize;

    /// Returns the number of points.
    fn count(&self) -> usize;

    /// Returns the standard deviation of the blur.
    fn std(&self) -> f64;

    /// Returns the seed of the points.
    fn seed(&self) -> u64;

    /// Returns the centre of class `class` at `u` in [0, 1). For uniform `u`, the blurred centres have the density of
    /// the class.
    fn centre(&self, class: usize, u: f64) -> [f64; 2];

    /// Returns the number of centres at evenly spaced `u` that represent a class in its density.
    fn nodes(&self) -> usize;

    /// Returns the exact density of the points.
    fn density(&self) -> Density {
        let node = |i: usize| (i as f64 + 0.5) / self.nodes() as f64;
        let class = |class: usize| (0..self.nodes()).map(|i| self.centre(class, node(i))).collect();
        Density { centres: (0..self.num_classes()).map(class).collect(), std: self.std() }
    }
}

/// Density and score of points in the plane, at every noise level.
#[derive(Clone, Debug)]
pub struct Density {
    /// Centres of each class.
    centres: Vec<Vec<[f64; 2]>>,
    std: f64,
}

impl Density {
    /// Returns the density of `x_t` for a class, or without a condition, at `[alpha, sigma]`; `[1, 0]` = the data.
    pub fn density(&self, class: Option<usize>, x_t: [f64; 2], noise: [f64; 2]) -> f64 {
        let (weights, variance) = self.weights(class, x_t, noise);
        weights.iter().map(|(weight, _)| weight).sum::<f64>() / (2.0 * PI * variance)
    }

    /// Returns the score, the gradient of the log density with respect to `x_t`. The noise prediction is
    /// `-sigma` times the score.
    pub fn score(&self, class: Option<usize>, x_t: [f64; 2], noise: [f64; 2]) -> [f64; 2] {
        let (weights, variance) = self.weights(class, x_t, noise);
        let total: f64 = weights.iter().map(|(weight, _)| weight).sum();
        let away = |axis: usize| weights.iter().map(|(weight, mean)| weight * (mean[axis] - x_t[axis])).sum::<f64>();
        // Far from every centre all weights underflow; the nearest centre alone decides there.
        if total > 0.0 {
            return [0, 1].map(|axis| away(axis) / total / variance);
        }
        let distance = |mean: &[f64; 2]| (mean[0] - x_t[0]).hypot(mean[1] - x_t[1]);
        let nearest = weights.iter().map(|(_, mean)| *mean).min_by(|a, b| distance(a).total_cmp(&distance(b)));
        nearest.map_or([0.0; 2], |mean| [0, 1].map(|axis| (mean[axis] - x_t[axis]) / variance))
    }

    /// Returns the weight and the mean of every component, and the variance that all of them have.
    fn weights(&self, class: Option<usize>, x_t: [f64; 2], [alpha, sigma]: [f64; 2]) -> (Vec<(f64, [f64; 2])>, f64) {
        let variance = (alpha * self.std).powi(2) + sigma * sigma;
        let classes = match class {
            Some(class) => &self.centres[class..=class],
            None => &self.centres[..],
        };
        let share = 1.0 / classes.iter().map(Vec::len).sum::<usize>() as f64;
        let component = |centre: &[f64; 2]| {
            let mean = centre.map(|value| alpha * value);
            let square = (x_t[0] - mean[0]).powi(2) + (x_t[1] - mean[1]).powi(2);
            (share * (-0.5 * square / variance).exp(), mean)
        };
        (classes.iter().flatten().map(component).collect(), variance)
    }
}

/// Returns what is known of every shape.
pub fn info(shape: &dyn PlaneConfig) -> DatasetInfo {
    DatasetInfo {
        items: ItemKind::Latents { grid: [1, 1], channels: 2 },
        num_classes: Some(shape.num_classes()),
        captions: false,
    }
}

/// The points of a shape. Point i belongs to class i modulo the number of classes.
#[derive(Debug)]
pub struct Points<S>(pub S);

impl<S: PlaneConfig> Dataset for Points<S> {
    fn info(&self) -> DatasetInfo {
        info(&self.0)
    }

    fn len(&self) -> usize {
        self.0.count()
    }

    fn get(&self, index: usize, _: &Random, _: u64) -> Result<Item> {
        self.plain(index)
    }

    fn plain(&self, index: usize) -> Result<Item> {
        let (random, class) = (Random::new(self.0.seed()), index % self.0.num_classes());
        let centre = self.0.centre(class, random.uniform("point", index as u64, 0, 1)[0]);
        let noise = random.normal("blur", index as u64, 0, 2);
        let values = [0, 1].map(|axis| (centre[axis] + self.0.std() * f64::from(noise[axis])) as f32);
        Ok(Item { values: values.to_vec(), label: Label::Class(class) })
    }

    fn label(&self, index: usize) -> Result<Label> {
        Ok(Label::Class(index % self.0.num_classes()))
    }

    fn describe(&self, index: usize) -> String {
        format!("point {index} of {:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::points::{GaussianMixture, Spirals, TwoMoons};

    fn shapes() -> [Box<dyn PlaneConfig>; 3] {
        [Box::new(GaussianMixture::default()), Box::new(TwoMoons::default()), Box::new(Spirals::default())]
    }

    /// Midpoints of a grid over the square of side `2 reach`, and the area of a cell.
    fn grid(reach: f64, side: usize) -> (Vec<[f64; 2]>, f64) {
        let width = 2.0 * reach / side as f64;
        let at = |i: usize| -reach + (i as f64 + 0.5) * width;
        ((0..side * side).map(|i| [at(i % side), at(i / side)]).collect(), width * width)
    }

    #[test]
    fn densities_integrate_to_one_at_every_noise_level() {
        for shape in shapes() {
            let density = shape.density();
            for (noise, reach, side) in [([1.0, 0.0], 2.0, 100), ([0.8, 0.6], 5.0, 60), ([0.0, 1.0], 6.0, 60)] {
                let (points, area) = grid(reach, side);
                for class in [None, Some(0)] {
                    let total: f64 = points.iter().map(|x| density.density(class, *x, noise)).sum::<f64>() * area;
                    assert!((total - 1.0).abs() < 1e-3, "{shape:?} {class:?} {noise:?}: {total}");
                }
            }
        }
    }

    #[test]
    fn the_score_is_the_gradient_of_the_log_density() {
        for shape in shapes() {
            let density = shape.density();
            for (class, noise) in [(None, [1.0, 0.0]), (Some(1), [0.8, 0.6]), (None, [0.1, 0.99])] {
                for x in [[0.3, -0.2], [-0.7, 0.4], [1.1, 0.9]] {
                    let log = |x: [f64; 2]| density.density(class, x, noise).ln();
                    let step = 1e-5;
                    let slope = |axis: usize| {
                        let moved = |by: f64| {
                            let mut x = x;
                            x[axis] += by;
                            log(x)
                        };
                        (moved(step) - moved(-step)) / (2.0 * step)
                    };
                    let score = density.score(class, x, noise);
                    for axis in [0, 1] {
                        let apart = (score[axis] - slope(axis)).abs();
                        assert!(apart <= 1e-4 * score[axis].abs().max(1.0), "{shape:?} {class:?} {x:?}: {apart}");
                    }
                }
            }
        }
    }

    #[test]
    fn points_follow_the_density() {
        for shape in shapes() {
            let density = shape.density();
            // Mean over the points of the density at the points: the integral of p^2, with its standard error.
            let dataset_like: Vec<[f64; 2]> = (0..4000)
                .map(|i| {
                    let random = Random::new(shape.seed());
                    let class = i % shape.num_classes();
                    let centre = shape.centre(class, random.uniform("point", i as u64, 0, 1)[0]);
                    let noise = random.normal("blur", i as u64, 0, 2);
                    [0, 1].map(|axis| centre[axis] + shape.std() * f64::from(noise[axis]))
                })
                .collect();
            let at: Vec<f64> = dataset_like.iter().map(|x| density.density(None, *x, [1.0, 0.0])).collect();
            let mean = at.iter().sum::<f64>() / at.len() as f64;
            let variance = at.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / at.len() as f64;
            let (points, area) = grid(2.0, 100);
            let expected: f64 =
                points.iter().map(|x| density.density(None, *x, [1.0, 0.0]).powi(2)).sum::<f64>() * area;
            let error = (variance / at.len() as f64).sqrt();
            assert!((mean - expected).abs() < 4.0 * error, "{shape:?}: {mean} against {expected} +- {error}");
        }
    }

    #[test]
    fn the_unconditional_score_is_the_mean_of_the_classes_weighted_by_their_density() {
        let density = TwoMoons::default().density();
        let (x, noise) = ([0.2, 0.1], [0.8, 0.6]);
        let total: f64 = [0, 1].map(|class| density.density(Some(class), x, noise)).iter().sum();
        let expected = |axis: usize| {
            [0, 1]
                .map(|c| density.density(Some(c), x, noise) * density.score(Some(c), x, noise)[axis])
                .iter()
                .sum::<f64>()
                / total
        };
        let score = density.score(None, x, noise);
        assert!([0, 1].iter().all(|axis| (score[*axis] - expected(*axis)).abs() < 1e-12));
    }

    #[test]
    fn far_from_every_centre_the_score_points_to_the_nearest() {
        let density = TwoMoons::default().density();
        let [x, y] = density.score(None, [1e3, 0.0], [1.0, 0.0]);
        assert!(x < 0.0 && x.is_finite() && y.is_finite());
    }
}

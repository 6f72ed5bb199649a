//! Inception Score: whether a classifier recognises each sample, and finds all classes.
//!
//!   IS = exp( mean_i KL( p(y | x_i) || mean_j p(y | x_j) ) ),   p(y | x) = softmax(logits(x))
//!
//! It is the mean over equal splits of the samples, after a seeded shuffle.
//! Source: arXiv:1606.03498 sec. 4. The published code uses logits without the bias of the classifier.

use crate::in_space::{self, Kept, Loaded};
use crate::neighbours::too_few;
use crate::resample::subset;
use framework::data::tokenizer::ImageShape;
use framework::error::{Error, Problems, Result};
use framework::evaluation::images::Images;
use framework::evaluation::metric::{Accumulator, Measurement, Metric, Reference};
use framework::evaluation::space::Spaces;
use framework::evaluation::statistics::Statistics;
use framework::plugin::FeaturesPlugin;
use framework::prelude::*;
use framework::random::Random;
use std::sync::Arc;

/// Inception Score, at least 1 and at most the number of classes; higher is better. It reads no real images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = Required(&["features"]))]
pub struct InceptionScore {
    /// Feature space with a classifier, e.g. `inception_v3`.
    pub features: Box<dyn FeaturesPlugin>,
    /// Number of equal parts of the samples whose scores are averaged, at least 1 and at most the number of samples.
    #[schemars(range(min = 1))]
    pub splits: usize,
    /// Seed of the order in which samples are split.
    pub seed: u64,
    #[serde(skip)]
    space: Loaded,
}

impl Default for InceptionScore {
    fn default() -> Self {
        Self { features: in_space::pixels(), splits: 10, seed: 0, space: Loaded::default() }
    }
}

framework::register!(metric "inception_score" => InceptionScore, "arXiv:1606.03498");

impl InceptionScore {
    fn name(&self) -> String {
        format!("inception_score_{}", self.features.space())
    }
}

impl Metric for InceptionScore {
    fn check(&self) -> Problems {
        let mut problems = in_space::check(&*self.features);
        if self.splits == 0 {
            problems.push(Problem::new("/splits", "`splits` is 0").accepts("1 or more"));
        }
        problems
    }

    fn check_image(&self, image: ImageShape) -> Problems {
        let mut problems = in_space::check_image(&*self.features, image);
        if self.features.widths(image).classes.is_none() {
            problems.push(in_space::lacks("inception_score", &*self.features, "a classifier"));
        }
        problems
    }

    fn least_samples(&self, _: ImageShape) -> usize {
        self.splits
    }

    fn load(&mut self, spaces: &mut Spaces) -> Result<()> {
        self.space.load(&*self.features, spaces)
    }

    fn statistics(&self) -> Option<String> {
        Some(self.name())
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(NoReference { name: self.name(), count: 0 })
    }

    fn start(&self, reference: Arc<Statistics>) -> Result<Box<dyn Accumulator>> {
        reference.expect(&self.name())?;
        Ok(Box::new(Samples { metric: self.clone(), logits: Kept::default() }))
    }
}

/// Counts the real images, which the score does not read.
struct NoReference {
    name: String,
    count: usize,
}

impl Reference for NoReference {
    fn update(&mut self, images: &Images) -> Result<()> {
        self.count += images.len();
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Statistics> {
        Ok(Statistics { metric: self.name, count: self.count, ..Statistics::default() })
    }
}

/// The logits of the samples so far.
struct Samples {
    metric: InceptionScore,
    logits: Kept,
}

impl Accumulator for Samples {
    fn update(&mut self, images: &Images) -> Result<()> {
        let features = self.metric.space.of("inception_score", "sample", images, self.logits.len())?;
        let none = || Error::Run("the features of metric \"inception_score\" have no classifier".into());
        self.logits.push(features.logits.ok_or_else(none)?);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Measurement>> {
        let Self { metric, logits } = *self;
        let (rows, splits) = (logits.rows(), metric.splits);
        if rows.len() < splits {
            return Err(too_few("inception_score", "sample", splits, rows.len()));
        }
        let order = subset(&Random::new(metric.seed), 0, rows.len(), rows.len());
        let scores: Vec<f64> = (0..splits)
            .map(|i| {
                let range = i * rows.len() / splits..(i + 1) * rows.len() / splits;
                score(&order[range].iter().map(|place| rows[*place]).collect::<Vec<_>>())
            })
            .collect();
        let mean = scores.iter().sum::<f64>() / splits as f64;
        let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / splits as f64;
        Ok(vec![
            Measurement {
                name: metric.name(),
                value: mean,
                meaning: format!("Inception Score, mean of {splits} splits, higher is better"),
            },
            Measurement {
                name: format!("{}_deviation", metric.name()),
                value: variance.sqrt(),
                meaning: "standard deviation of the Inception Score between splits".into(),
            },
        ])
    }
}

/// Computes the score of samples from their logits.
fn score(logits: &[&[f32]]) -> f64 {
    let log_probabilities = |row: &[f32]| -> Vec<f64> {
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
        let shifted = row.iter().map(|v| f64::from(*v) - f64::from(largest));
        let sum: f64 = shifted.clone().map(f64::exp).sum();
        shifted.map(|v| v - sum.ln()).collect()
    };
    let mut marginal = vec![0.0; logits[0].len()];
    let mut negative_entropy = 0.0;
    for row in logits {
        for (class, log) in log_probabilities(row).into_iter().enumerate() {
            marginal[class] += log.exp() / logits.len() as f64;
            negative_entropy += log.exp() * log / logits.len() as f64;
        }
    }
    // mean KL = mean sum p log p - sum q log q, because the mean of p is q.
    let marginal: f64 = marginal.into_iter().filter(|q| *q > 0.0).map(|q| q * q.ln()).sum();
    (negative_entropy - marginal).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_by_hand() {
        // Certain about two classes: 2. Undecided: 1.
        let certain: [&[f32]; 2] = [&[100.0, 0.0], &[0.0, 100.0]];
        assert!((score(&certain) - 2.0).abs() < 1e-12);
        let undecided: [&[f32]; 2] = [&[1.0, 1.0], &[-3.0, -3.0]];
        assert!((score(&undecided) - 1.0).abs() < 1e-12);
        // p = (3/4, 1/4) and (1/4, 3/4), q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
        let three = 3.0_f32.ln();
        let both: [&[f32]; 2] = [&[three, 0.0], &[0.0, three]];
        let expected = (0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln()).exp();
        assert!((score(&both) - expected).abs() < 1e-7);
    }

    #[test]
    fn features_without_a_classifier_are_refused() {
        let problems = InceptionScore::default().check_image([1, 8, 8]);
        assert_eq!(problems[0].what, "metric \"inception_score\" needs a classifier; features \"pixels\" have none");
        assert_eq!(InceptionScore { splits: 0, ..InceptionScore::default() }.check().len(), 1);
    }
}

//! Samples a token from logits. Top-k keeps the k most likely tokens, then top-p keeps the most likely ones that hold a
//! share p.
//!
//! Source: arXiv:1805.04833 sec. 5.4 (top-k), arXiv:1904.09751 eq. 3 (top-p).

use framework::prelude::*;

/// Settings for sampling a token from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Categorical {
    /// Divisor of the logits; 0 = always the most likely token.
    pub temperature: f64,
    /// Top-k: samples only from this many most likely tokens; 0 = all.
    pub top_k: usize,
    /// Top-p: samples only from the most likely tokens that together hold this share, above 0; 1 = all.
    pub top_p: f64,
}

impl Categorical {
    /// Returns which tokens can be sampled. Top-k also keeps tokens that are as likely as the last one it keeps.
    pub fn keep(&self, logits: &[f64]) -> Vec<bool> {
        let mut keep = vec![true; logits.len()];
        if self.top_k > 0 && self.top_k < logits.len() {
            let mut sorted = logits.to_vec();
            let (_, least, _) = sorted.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a));
            keep.iter_mut().zip(logits).for_each(|(keep, logit)| *keep = logit >= least);
        }
        if self.top_p < 1.0 {
            let mut order: Vec<usize> = (0..logits.len()).filter(|i| keep[*i]).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let top = logits[order[0]];
            let weight = |i: usize| ((logits[i] - top) / self.divisor()).exp();
            let total: f64 = order.iter().map(|i| weight(*i)).sum();
            let mut before = 0.0;
            for i in order {
                // Drop the token if the more likely ones already hold the share.
                keep[i] = before < self.top_p * total;
                before += weight(i);
            }
        }
        keep
    }

    fn divisor(&self) -> f64 {
        if self.temperature > 0.0 { self.temperature } else { 1.0 }
    }

    /// Returns the token at `u` in [0, 1) of the cumulative distribution.
    pub fn draw(&self, logits: &[f64], u: f64) -> usize {
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).unwrap_or(0);
        if self.temperature == 0.0 || self.top_k == 1 {
            return best;
        }
        let keep = self.keep(logits);
        let weights: Vec<f64> = logits
            .iter()
            .zip(&keep)
            .map(|(logit, keep)| if *keep { ((logit - logits[best]) / self.temperature).exp() } else { 0.0 })
            .collect();
        let mut left = u * weights.iter().sum::<f64>();
        for (i, weight) in weights.iter().enumerate() {
            if left < *weight {
                return i;
            }
            left -= weight;
        }
        best
    }
}

/// Checks the three settings that every token sampler has. Pointers are relative to the sampler.
pub(crate) fn check(temperature: f64, top_k: &[usize], top_p: &[f64]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let idle = top_k.iter().any(|k| *k != 0) || top_p.iter().any(|p| *p != 1.0);
    if temperature == 0.0 && idle {
        let what = "`top_k` and `top_p` have no effect at temperature 0, which takes the most likely token";
        problems.push(Problem::new("/temperature", what).accepts("a temperature above 0, or no `top_k` and `top_p`"));
    }
    problems
}

/// Samples tokens `[B, n]` from logits `[B, n, vocabulary]`. `shares` holds one uniform random number per token.
pub(crate) fn draw(logits: Tensor<3>, shares: &[f64], how: Categorical) -> Vec<i64> {
    let [.., vocabulary] = logits.dims();
    let logits = logits.into_data().convert::<f64>().try_into_vec::<f64>().expect("the data was converted to f64");
    logits.chunks(vocabulary).zip(shares).map(|(logits, u)| how.draw(logits, *u) as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_equal_the_ones_computed_by_hand() {
        // Probabilities 0.5, 0.15, 0.3, 0.05.
        let logits = [0.5_f64.ln(), 0.15_f64.ln(), 0.3_f64.ln(), 0.05_f64.ln()];
        let all = Categorical { temperature: 1.0, top_k: 0, top_p: 1.0 };
        assert_eq!(all.keep(&logits), [true; 4]);
        assert_eq!(Categorical { top_k: 2, ..all }.keep(&logits), [true, false, true, false]);
        // 0.5 < 0.6, so the second most likely token is kept too. 0.5 + 0.3 >= 0.6, so the third is dropped.
        assert_eq!(Categorical { top_p: 0.6, ..all }.keep(&logits), [true, false, true, false]);
        assert_eq!(Categorical { top_p: 0.4, ..all }.keep(&logits), [true, false, false, false]);
        assert_eq!([0.0, 0.49, 0.51, 0.64, 0.66, 0.96].map(|u| all.draw(&logits, u)), [0, 0, 1, 1, 2, 3]);
        assert_eq!(Categorical { temperature: 0.0, ..all }.draw(&logits, 0.99), 0);
        // The two most likely tokens alone have probabilities 0.625 and 0.375.
        assert_eq!([0.6, 0.7].map(|u| Categorical { top_k: 2, ..all }.draw(&logits, u)), [0, 2]);
    }

    #[test]
    fn token_frequencies_equal_probabilities() {
        let logits = [1.0, -0.5, 0.3];
        let how = Categorical { temperature: 0.7, top_k: 0, top_p: 1.0 };
        let n = 20_000;
        let mut counts = [0; 3];
        (0..n).for_each(|i| counts[how.draw(&logits, (f64::from(i) + 0.5) / f64::from(n))] += 1);
        let weights = logits.map(|l| (l / 0.7_f64).exp());
        for (count, weight) in counts.iter().zip(weights) {
            let expected = weight / weights.iter().sum::<f64>();
            assert!((f64::from(*count) / f64::from(n) - expected).abs() < 1e-4);
        }
    }
}

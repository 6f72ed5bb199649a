//! The masked process: some tokens of each sample are hidden, and a small diffusion head predicts each hidden
//! token.
//!
//!   hidden tokens: the first ceil(r L) of a random order,   r ~ N(1, 0.25^2) in [mask_ratio_min, 1], one r per step
//!   loss = mean over the hidden tokens, each repeated `repeats` times with its own noise and time, of the head's loss
//!
//! The published loss gives visible tokens weight zero. This code leaves them out, which gives the same mean.
//!
//! Source: arXiv:2406.11838 sec. 3.4 and 4.2, and its code (ratio, repeats).

use crate::nn::gather;
use crate::process::diffusion::Vp;
use crate::process::patches::Patches;
use crate::process::path::Prediction;
use crate::process::{Example, Family, Head, Input, Latent, Likelihood, Process, Progress, Target, score};
use crate::random::{Random, order_of, tensor};
use burn::tensor::Tensor;
use rand::RngExt;

/// Standard deviation of the share of hidden tokens.
const DEVIATION: f64 = 0.25;

/// The masked process, ready to corrupt latents and score predictions.
#[derive(Clone, Debug)]
pub struct Masked {
    /// How a latent is cut into tokens.
    pub patches: Patches,
    /// Smallest share of hidden tokens.
    pub mask_ratio_min: f64,
    /// Number of (noise, time) pairs per hidden token.
    pub repeats: usize,
    /// The head's diffusion process over one token.
    pub head: Vp,
}

impl Masked {
    /// Returns the number of tokens to hide at `step`, at least one.
    fn hidden(&self, random: &Random, step: u64) -> usize {
        let mut stream = random.stream("mask ratio", 0, step);
        // Rejection sampling, because a truncated normal has no elementary inverse CDF.
        let below_one = loop {
            let [distance, u] = [stream.random::<f64>() * (1.0 - self.mask_ratio_min), stream.random()];
            if u < (-0.5 * (distance / DEVIATION).powi(2)).exp() {
                break distance;
            }
        };
        let tokens = self.patches.tokens();
        (((1.0 - below_one) * tokens as f64).ceil() as usize).clamp(1, tokens)
    }

    /// Builds the example in which the given `hidden` tokens of each sample are hidden.
    ///
    /// Shapes: `x` `[B, L, D]`, `hidden` row-major `[B, n]`, `eps` `[B, repeats n, D]`, `t` row-major
    /// `[B, repeats n]`. The hidden tokens appear in order, and the whole list is repeated `repeats` times.
    pub fn example(&self, x: Tensor<3>, hidden: &[usize], eps: Tensor<3>, t: Vec<f64>) -> Example {
        let [batch, length, _] = x.dims();
        let count = hidden.len() / batch;
        let places: Vec<usize> = hidden.chunks(count).flat_map(|places| places.repeat(self.repeats)).collect();
        let mut mask = vec![false; batch * length];
        hidden.iter().enumerate().for_each(|(i, place)| mask[i / count * length + place] = true);
        let noisy = self.head.example(gather(x.clone(), &places), eps, t);
        let Input::Noisy { x_t, t } = noisy.input else { panic!("the head is a continuous process") };
        Example {
            input: Input::Masked { x, hidden: mask, places, x_t, t },
            progress: Progress::PerSample(vec![(length - count) as f64 / length as f64; batch]),
            target: noisy.target,
            scored: None,
        }
    }
}

impl Process for Masked {
    fn family(&self) -> Family {
        Family::Masked
    }

    fn prediction(&self) -> Prediction {
        Process::prediction(&self.head)
    }

    fn corrupt(&self, x: &Latent, random: &Random, step: u64) -> Example {
        let Latent::Values(x) = x else {
            panic!("a masked process of continuous tokens received token ids; the check phase refuses this pair")
        };
        let x = self.patches.cut(x.clone());
        let [batch, length, width] = x.dims();
        let count = self.hidden(random, step);
        let order = |sample: usize| order_of(&random.uniform("order", sample as u64, step, length));
        let hidden: Vec<usize> = (0..batch).flat_map(|sample| order(sample)[..count].to_vec()).collect();
        let rows = batch * count * self.repeats;
        let mut stream = random.stream("t", 0, step);
        let t = (0..rows).map(|_| self.head.t_of_index(stream.random_range(0..self.head.times()) as f64)).collect();
        let noise: Vec<f64> = random.normal("eps", 0, step, rows * width).into_iter().map(f64::from).collect();
        let eps = tensor(&noise, [batch, count * self.repeats, width], x.dtype(), &x.device());
        self.example(x, &hidden, eps, t)
    }

    fn loss(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        self.head.loss(prediction, example)
    }

    fn likelihood(&self) -> Likelihood {
        Likelihood::Bound
    }

    /// Computes L times the mean over the hidden tokens of the head's bound. This is the bound of
    /// arXiv:2110.02037 at one number of hidden tokens, with the weights of the head's times set to one.
    fn log_likelihood(&self, prediction: Tensor<3>, example: &Example) -> Tensor<1> {
        let Target::Values(target) = &example.target else { panic!("a masked process received token targets") };
        score(prediction, example) * (-0.5 * (self.patches.tokens() * target.dims()[2]) as f64)
    }

    fn head(&self) -> Option<Head<'_>> {
        Some(Head { process: &self.head, patches: self.patches })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::diffusion::VpConfig;
    use burn::tensor::{DType, Device};

    fn numbers(x: Tensor<3>) -> Vec<f64> {
        x.into_data().try_into_vec::<f64>().unwrap()
    }

    fn ramp(shape: [usize; 3]) -> Tensor<3> {
        let values: Vec<f64> = (0..shape.iter().product::<usize>()).map(|i| i as f64).collect();
        tensor(&values, shape, DType::F64, &Device::flex())
    }

    fn masked(patches: Patches) -> Masked {
        Masked { patches, mask_ratio_min: 0.7, repeats: 2, head: VpConfig::default().process() }
    }

    #[test]
    fn tokens_are_channel_by_row_by_column_and_join_again() {
        let patches = Patches { grid: [4, 6], patch: 2 };
        let x = ramp([2, 24, 3]);
        let tokens = patches.cut(x.clone());
        assert_eq!(tokens.dims(), [2, 6, 12]);
        // Positions 0, 1, 6, 7 of channel 0, then of channels 1 and 2. The ramp's value is 3 position +
        // channel.
        let first = numbers(tokens.clone().slice([0..1, 0..1, 0..12]));
        assert_eq!(first, [0.0, 3.0, 18.0, 21.0, 1.0, 4.0, 19.0, 22.0, 2.0, 5.0, 20.0, 23.0]);
        assert_eq!(numbers(patches.join(tokens)), numbers(x));
    }

    #[test]
    fn share_hidden_is_a_truncated_normal() {
        let process = masked(Patches { grid: [64, 64], patch: 1 });
        let shares: Vec<f64> = (0..20_000).map(|step| process.hidden(&Random::new(0), step) as f64 / 4096.0).collect();
        assert!(shares.iter().all(|share| (0.7..=1.0).contains(share)));
        // The mean is 1 - 0.25 (phi(0) - phi(1.2)) / (Phi(1.2) - Phi(0)), plus half a token because ceil
        // rounds up.
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let expected = 1.0 - 0.25 * (0.398_942 - 0.194_186) / 0.384_930 + 0.5 / 4096.0;
        assert!((mean - expected).abs() < 0.002, "{mean}, expected {expected}");
    }

    #[test]
    fn example_hides_as_many_of_each_and_repeats_them() {
        let process = masked(Patches { grid: [4, 4], patch: 1 });
        let example = process.corrupt(&Latent::Values(ramp([3, 16, 2])), &Random::new(1), 5);
        let Input::Masked { hidden, places, x_t, t, .. } = &example.input else { panic!("masked") };
        let count = process.hidden(&Random::new(1), 5);
        assert_eq!((x_t.dims(), t.len()), ([3, 2 * count, 2], 6 * count));
        for (mask, places) in hidden.chunks(16).zip(places.chunks(2 * count)) {
            assert_eq!(mask.iter().filter(|hidden| **hidden).count(), count);
            assert!(places.iter().all(|place| mask[*place]) && places[..count] == places[count..]);
        }
        assert_eq!(example.progress, Progress::PerSample(vec![(16 - count) as f64 / 16.0; 3]));
        assert_ne!(places[..count], places[2 * count..3 * count], "each sample has its own order");
    }
}

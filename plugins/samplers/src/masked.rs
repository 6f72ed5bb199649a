//! Masked decoding: reveals tokens in random order, more and more per iteration. The head's own sampler samples each
//! token.
//!
//!   scheduled(k) = max(1, min(hidden - 1, floor(L cos(pi / 2 (k + 1) / K)))),   progress(k) = 1 - scheduled(k) / L
//!
//! `scheduled(k)` of the L tokens stay hidden after iteration k of K. After the last iteration, none does.
//! Source: arXiv:2406.11838 sec. 4.2 and its code; the schedule is the cosine of arXiv:2202.04200.

use crate::ddpm::{Ddpm, Variance};
use crate::grid::TableSpacing;
use framework::network::backbone::Backbone;
use framework::nn::{gather, rows};
use framework::plugin::SamplerPlugin;
use framework::prelude::*;
use framework::process::Head;
use framework::process::Latent;
use framework::process::patches::Patches;
use framework::random::order_of;
use framework::sampling::denoiser::{Denoiser, Weak};
use framework::sampling::sampler::{MaskedSampler, NoiseSource, Observer, Sampler, SamplerStep, Sampling};
use std::collections::BTreeMap;
use std::f64::consts::FRAC_PI_2;

/// Order in which the tokens are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A separate random order per sample.
    #[default]
    Random,
    /// Row by row.
    Raster,
}

/// Masked decoding of continuous tokens.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Masked {
    /// Number of iterations, 1 to the number of tokens. Each evaluates the network once, not counting its head.
    /// Published: 64 or 256.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub iterations: usize,
    /// Order in which the tokens are decoded.
    pub order: Order,
    /// Factor on the noise that the head's sampler adds after its start, 0 to 10; 1 = unchanged.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    /// Sampler of the head, which samples each token: any sampler of a continuous process.
    /// Published: ddpm, 100 steps, learned variance.
    pub head: Box<dyn SamplerPlugin>,
}

impl Default for Masked {
    fn default() -> Self {
        let (variance, spacing) = (Variance::LearnedRange, TableSpacing::Uniform);
        let head = Box::new(Ddpm { steps: 100, variance, spacing, clip: false });
        Self { iterations: 64, order: Order::default(), temperature: 1.0, head }
    }
}

framework::register!(sampler "masked" => Masked, "arXiv:2406.11838", "arXiv:2202.04200");

impl Masked {
    /// Returns the scheduled number of hidden tokens after iteration `k`. It is 1 after the last iteration, although no
    /// token stays hidden then.
    fn scheduled(&self, k: usize, hidden: usize, tokens: usize) -> usize {
        let share = (FRAC_PI_2 * (k + 1) as f64 / self.iterations as f64).cos();
        ((tokens as f64 * share).floor() as usize).min(hidden - 1).max(1)
    }
}

impl Sampler for Masked {
    fn check(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.head.check().into_iter().map(|problem| problem.under("/head")).collect();
        if self.iterations == 0 {
            problems.push(Problem::new("/iterations", "`iterations` is 0").accepts("1 or more"));
        }
        if self.temperature != 1.0 && !self.head.is_stochastic() {
            let what = "`temperature` has no effect: the head's sampler adds no noise after its start";
            problems.push(Problem::new("/temperature", what).and_at("/head").accepts("1, or a head that adds noise"));
        }
        problems
    }

    fn check_process(&self, process: &dyn Process) -> Vec<Problem> {
        let Some(head) = process.head() else {
            return vec![Problem::new("", "masked decoding needs a masked process")];
        };
        if !self.head.serves(head.process.family()) {
            let what = format!("sampler \"{}\" cannot sample a token", self.head.typetag_name());
            return vec![Problem::new("/head", what).accepts("a sampler of a continuous process")];
        }
        let mut problems: Vec<Problem> =
            self.head.check_process(head.process).into_iter().map(|problem| problem.under("/head")).collect();
        let tokens = head.patches.tokens();
        if self.iterations > tokens {
            let what = format!("{} iterations are more than the {tokens} tokens", self.iterations);
            problems.push(Problem::new("/iterations", what).accepts(format!("1 to {tokens}")));
        }
        problems
    }

    fn renoises(&self) -> bool {
        self.head.renoises()
    }

    fn needs_variance(&self) -> Option<&'static str> {
        self.head.needs_variance().map(|_| "/head")
    }

    fn sampling(&self) -> Sampling<'_> {
        Sampling::Masked(self)
    }

    fn evaluations(&self, _: &LatentShape) -> usize {
        self.iterations
    }
}

impl MaskedSampler for Masked {
    fn run(
        &self,
        model: &mut Denoiser<'_>,
        head: Head<'_>,
        noise: &mut dyn NoiseSource,
        observer: &mut dyn Observer,
    ) -> Tensor<3> {
        let Head { process, patches } = head;
        let (batch, length) = (noise.count(), patches.tokens());
        let orders: Vec<Vec<usize>> = match self.order {
            Order::Random => noise.uniform(0, length).chunks(length).map(order_of).collect(),
            // Each order is reversed: the first token to decode is at the end.
            Order::Raster => vec![(0..length).rev().collect(); batch],
        };
        let start = patches.cut(noise.normal(0));
        let width = start.dims()[2];
        let mut x = start.zeros_like();
        let mut draws = BTreeMap::from([(0, start)]);
        let mut hidden = length;
        for k in 0..self.iterations {
            let scheduled = self.scheduled(k, hidden, length);
            let progress = (length - scheduled) as f64 / length as f64;
            let next = if k + 1 == self.iterations { 0 } else { scheduled };
            let places: Vec<usize> = orders.iter().flat_map(|order| order[next..hidden].to_vec()).collect();
            let mut mask = vec![false; batch * length];
            for (mask, order) in mask.chunks_mut(length).zip(&orders) {
                order[..hidden].iter().for_each(|place| mask[*place] = true);
            }
            let at = |network| Tokens { network, x: x.clone(), hidden: &mask, places: &places };
            let main = at(model.network());
            let weak = model.weak().map(|weak| (at(weak.network), weak.numbers));
            let mut head = model.head(&main, process, &LatentShape::values([1, hidden - next], width), progress);
            head = head.with_weak(weak.as_ref().map(|(network, numbers)| Weak { network, numbers: *numbers }));
            let mut here = Here {
                noise: &mut *noise,
                draws: &mut draws,
                patches,
                places: &places,
                temperature: self.temperature,
                iteration: (k, self.iterations),
            };
            let drawn = self.head.sample(&mut head, &mut here, &mut |_: &SamplerStep<'_>| {});
            let Latent::Values(drawn) = drawn else { panic!("the check phase refuses heads of other families") };
            model.count(head.nfe());
            x = put(x, drawn, &places);
            hidden = next;
            let state = patches.join(x.clone());
            let (step, t) = (k + 1, next as f64 / length as f64);
            observer.step(&SamplerStep { step, steps: self.iterations, t, state: Some(&state) });
        }
        patches.join(x)
    }
}

/// Returns `x` with `values` written at `places`.
///
/// Shapes: `x` `[B, L, D]`, `values` `[B, n, D]`, `places` row-major `[B, n]`.
fn put(x: Tensor<3>, values: Tensor<3>, places: &[usize]) -> Tensor<3> {
    let [batch, length, width] = x.dims();
    let (all, count) = (batch * length, places.len() / batch);
    let mut order: Vec<usize> = (0..all).collect();
    places.iter().enumerate().for_each(|(i, place)| order[i / count * length + place] = all + i);
    let table = Tensor::cat(vec![x.reshape([all, width]), values.reshape([batch * count, width])], 0);
    rows(table, order).reshape([batch, length, width])
}

/// A view of the masked network for the head's sampler, as a network of noisy tokens. The decoded tokens `x` stay fixed
/// while the head samples the tokens at `places`.
#[derive(Debug)]
struct Tokens<'a> {
    network: &'a dyn Backbone,
    x: Tensor<3>,
    hidden: &'a [bool],
    places: &'a [usize],
}

impl Backbone for Tokens<'_> {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Noisy { x_t, t } = input else { panic!("a head's sampler evaluates noisy tokens only") };
        // The batch may hold several guidance branches, one after another.
        let ([all, count, _], [batch, ..]) = (x_t.dims(), self.x.dims());
        let branches = all / batch;
        let input = Input::Masked {
            x: Tensor::cat(vec![self.x.clone(); branches], 0),
            hidden: self.hidden.repeat(branches),
            places: self.places.repeat(branches),
            x_t: x_t.clone(),
            t: t.iter().flat_map(|t| vec![*t; count]).collect(),
        };
        self.network.predict(&input, condition, control)
    }
}

/// Noise of the tokens at `places`, gathered from whole-latent noise. A token gets the same noise whichever iteration
/// samples it.
struct Here<'a> {
    noise: &'a mut dyn NoiseSource,
    /// Whole-latent noise by draw index, cut into tokens. It is kept because every iteration reads the same indices.
    draws: &'a mut BTreeMap<usize, Tensor<3>>,
    patches: Patches,
    places: &'a [usize],
    temperature: f64,
    /// Index of the current iteration, and the number of iterations.
    iteration: (usize, usize),
}

impl NoiseSource for Here<'_> {
    fn normal(&mut self, draw: usize) -> Tensor<3> {
        let whole = self.draws.entry(draw).or_insert_with(|| self.patches.cut(self.noise.normal(draw)));
        let here = gather(whole.clone(), self.places);
        if draw == 0 { here } else { here * self.temperature }
    }

    fn uniform(&mut self, draw: usize, n: usize) -> Vec<f64> {
        // Draw index 0 of the outer source is taken by the decoding order.
        let (iteration, iterations) = self.iteration;
        self.noise.uniform(1 + draw * iterations + iteration, n)
    }

    fn count(&self) -> usize {
        self.noise.count()
    }

    fn device(&self) -> Device {
        self.noise.device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(iterations: usize, tokens: usize) -> Vec<usize> {
        let sampler = Masked { iterations, order: Order::Random, ..Masked::default() };
        let mut hidden = tokens;
        (0..iterations)
            .map(|k| {
                hidden = if k + 1 == iterations { 0 } else { sampler.scheduled(k, hidden, tokens) };
                hidden
            })
            .collect()
    }

    #[test]
    fn schedule_equals_the_one_computed_by_hand() {
        // 16 cos(pi / 8), cos(pi / 4), cos(3 pi / 8): 14.78, 11.31, 6.12.
        assert_eq!(counts(4, 16), [14, 11, 6, 0]);
        assert_eq!(counts(1, 16), [0]);
    }

    #[test]
    fn every_iteration_decodes_a_token() {
        for tokens in 1..80 {
            for iterations in 1..=tokens {
                let counts = counts(iterations, tokens);
                assert!([tokens].iter().chain(&counts).zip(&counts).all(|(before, after)| after < before));
            }
        }
    }
}

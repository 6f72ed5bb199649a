//! A small network with hooks, on which the rules of this crate are tested.

use framework::burn::tensor::DType;
use framework::nn::hooks::AttentionSite;
use framework::nn::{Span, affine, heads, merge_heads};
use framework::prelude::*;
use framework::process::flow::InterpolantConfig;
use framework::random::{Random, tensor};
use framework::sampling::denoiser::{Denoiser, GuidanceNumbers, Weak};
use framework::sampling::guidance::{Guidance, Moment};

const SIDE: usize = 4;
const WIDTH: usize = 4;
const HEADS: usize = 2;
const BLOCKS: usize = 3;
const CLASSES: usize = 3;
const TEXT: usize = 3;

/// Three blocks of self-attention and attention to the features of the class, with random weights.
#[derive(Debug)]
pub struct Fake {
    weights: Random,
}

impl Fake {
    pub fn new(seed: u64) -> Self {
        Self { weights: Random::new(seed) }
    }

    fn weight(&self, block: usize, part: u64) -> Tensor<2> {
        let drawn = self.weights.normal("weight", block as u64, part, WIDTH * WIDTH);
        let values: Vec<f64> = drawn.into_iter().map(|v| 0.5 * f64::from(v)).collect();
        tensor(&values, [WIDTH, WIDTH], DType::F32, &Device::flex())
    }
}

fn normal<const D: usize>(name: &str, index: u64, shape: [usize; D]) -> Tensor<D> {
    let drawn = Random::new(5).normal(name, index, 0, shape.iter().product());
    let values: Vec<f64> = drawn.into_iter().map(f64::from).collect();
    tensor(&values, shape, DType::F32, &Device::flex())
}

impl Backbone for Fake {
    fn predict(&self, input: &Input, condition: &Condition, control: &Control) -> Tensor<3> {
        let Input::Noisy { x_t, .. } = input else { panic!("expected a noisy input") };
        let features =
            condition.class_rows(CLASSES).into_iter().map(|row| normal("class", row as u64, [1, TEXT, WIDTH]));
        let text: Tensor<3> = Tensor::cat(features.collect(), 0);
        let hooks = &control.hooks;
        (0..BLOCKS).fold(x_t.clone(), |x, i| {
            hooks.block(i, x, |x| {
                let project = |x: &Tensor<3>, part| heads(affine(x.clone(), self.weight(i, part), None), HEADS);
                let qkv = [0, 1, 2].map(|part| project(&x, part));
                let x = x + merge_heads(hooks.attend(AttentionSite::own(i), qkv, Span::All, None, None));
                let qkv = [project(&x, 3), project(&text, 4), project(&text, 5)];
                x + merge_heads(hooks.attend(AttentionSite::text(i), qkv, Span::All, None, None))
            })
        })
    }
}

/// Returns a moment of a latent with [`WIDTH`] channels.
pub fn moment(progress: f64) -> Moment {
    Moment { progress, t: 1.0 - progress, evaluation: 0, channels: WIDTH }
}

/// Returns the state at which the rules are evaluated, `[2, 16, 4]`.
pub fn noise() -> Tensor<3> {
    normal("noise", 0, [2, SIDE * SIDE, WIDTH])
}

fn condition() -> Condition {
    Condition::Class(vec![Some(0), Some(2)])
}

/// Returns the values of [`noise`].
pub fn noise_values() -> Vec<f64> {
    values(noise())
}

pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_into_vec::<f64>().unwrap()
}

/// Returns the conditional prediction of the batch.
pub fn predicted(network: &Fake) -> Vec<f64> {
    let input = Input::Noisy { x_t: noise(), t: vec![0.5; 2] };
    values(network.predict(&input, &condition(), &Control::default()))
}

/// Evaluates the rule once per time, and takes an Euler step after each evaluation. Returns the last state, or the
/// prediction if there is only one time.
fn run(
    rule: &dyn Guidance,
    network: &Fake,
    weak: Option<&Fake>,
    (x, condition): (Tensor<3>, Condition),
    times: &[f64],
) -> Tensor<3> {
    let process = InterpolantConfig::default().process();
    let shape = LatentShape::values([SIDE; 2], WIDTH);
    let weak = weak.map(|network| Weak { network, numbers: GuidanceNumbers::NONE });
    let mut denoiser =
        Denoiser::new(network, &process, rule, GuidanceNumbers::NONE, &condition, &shape).with_weak(weak);
    let mut x_t = x;
    for t in times {
        let input = Input::Noisy { x_t: x_t.clone(), t: vec![*t; x_t.dims()[0]] };
        let prediction = denoiser.evaluate(&input, 1.0 - t).prediction;
        if times.len() == 1 {
            return prediction;
        }
        x_t = x_t - prediction * 0.2;
    }
    x_t
}

/// Returns the guided prediction of the batch at progress 0.5.
pub fn evaluated(rule: &dyn Guidance, network: &Fake, weak: Option<&Fake>) -> Vec<f64> {
    values(run(rule, network, weak, (noise(), condition()), &[0.5]))
}

/// Returns the result of four steps on the whole batch.
pub fn sampled(rule: &dyn Guidance, network: &Fake, weak: Option<&Fake>) -> Vec<f64> {
    values(run(rule, network, weak, (noise(), condition()), &[1.0, 0.75, 0.5, 0.25]))
}

/// Returns the results of four steps on each sample of the batch by itself.
pub fn sampled_alone(rule: &dyn Guidance, network: &Fake, weak: Option<&Fake>) -> Vec<f64> {
    let alone = |i| (noise().narrow(0, i, 1), condition().select(&[i]));
    (0..2).flat_map(|i| values(run(rule, network, weak, alone(i), &[1.0, 0.75, 0.5, 0.25]))).collect()
}

/// Fails unless the values agree within the rounding of f32.
#[track_caller]
pub fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, framework::numbers::larger);
    assert!(apart < 1e-4, "the values differ by {apart}");
}

/// Fails if the values agree within the rounding of f32.
#[track_caller]
pub fn differs(a: &[f64], b: &[f64]) {
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, framework::numbers::larger);
    assert!(apart > 1e-3, "the values differ by {apart} only");
}

//! Compares every kernel with the composed form of its layer: values and gradients of all inputs, for many
//! shapes, inputs that are not row-major, and masks. Also checks that the result is bit-identical for any
//! number of threads.

use super::*;
use crate::nn::{Activation, GroupNormConfig, Span, composed};
use crate::random::{Random, tensor as from_numbers};
use burn::tensor::{Device, Gradients, TensorData, module::linear};
use proptest::prelude::*;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs an operation that must have a kernel.
fn fused<const N: usize, const D: usize, F: Fused<N>>(op: F, inputs: [DispatchTensor; N]) -> Tensor<D> {
    Tensor::from_dispatch(run(op, inputs).expect("every operation has a kernel for f32 and f64 on the CPU"))
}

thread_local! {
    /// Index of the current set of random inputs; see [`hold`].
    static DRAW: Cell<u64> = const { Cell::new(0) };
}

/// Returns a tensor of normal random values with a gradient. If `turned`, its last two dimensions are
/// transposed in memory.
fn normal<const D: usize>(name: &str, shape: [usize; D], dtype: DType, turned: bool) -> Tensor<D> {
    let values: Vec<f64> =
        Random::new(7).normal(name, DRAW.get(), 0, shape.iter().product()).into_iter().map(f64::from).collect();
    let device = Device::flex().autodiff();
    let mut stored = shape;
    if turned {
        stored.swap(D - 2, D - 1);
    }
    let x = from_numbers(&values, stored, dtype, &device);
    let x = if turned { x.swap_dims(D - 2, D - 1) } else { x };
    x.require_grad()
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_into_vec().unwrap()
}

/// The output and the gradients of one function.
type Derivatives = Vec<Vec<f64>>;

/// Reads one gradient; see [`of`].
type Wanted<'a> = &'a dyn Fn(&Gradients) -> Option<Vec<f64>>;

/// Returns the output, and for every input the gradient of a fixed weighted sum of the output.
fn derivatives<const D: usize>(inputs: &[Wanted<'_>], output: Tensor<D>) -> Derivatives {
    let weights = normal("upstream", output.dims(), output.dtype(), false).detach();
    let grads = (output.clone() * weights).sum().backward();
    std::iter::once(values(output.detach())).chain(inputs.iter().filter_map(|grad| grad(&grads))).collect()
}

/// Returns a function that reads the gradient of `x`.
fn of<const D: usize>(x: &Tensor<D>) -> impl Fn(&Gradients) -> Option<Vec<f64>> + use<D> {
    let x = x.clone();
    move |grads| x.grad(grads).map(values)
}

/// Returns the largest difference of the output and of every gradient, relative to the largest value of each
/// tensor.
fn apart(a: &Derivatives, b: &Derivatives) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    let largest = |x: &[f64]| x.iter().fold(1e-30, |largest: f64, v| largest.max(v.abs()));
    let pair = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        assert_eq!(a.len(), b.len());
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, crate::numbers::larger);
        assert!(worst.is_finite() && a.iter().chain(b).all(|v| v.is_finite()));
        worst / largest(b)
    };
    a.iter().zip(b).map(pair).collect()
}

/// Number of sets of random inputs that are compared together. For a single set, the error relative to the
/// result is random: the result may be the small difference of nearly equal values.
const DRAWS: u64 = 16;

/// Compares the output and every gradient of a kernel with the composed form over all sets of inputs. In f64
/// the tolerance is 1e-12. In f32 the error against f64 may be up to twice the error of the composed form, or
/// 1e-6 of the largest value.
fn hold(what: &str, kernel: impl Fn(DType) -> Derivatives, composed: impl Fn(DType) -> Derivatives) {
    let all = |form: &dyn Fn(DType) -> Derivatives, dtype| {
        let mut draws = (0..DRAWS).map(|draw| {
            DRAW.set(draw);
            form(dtype)
        });
        let mut all = draws.next().expect("there is at least one set of inputs");
        draws.for_each(|draw| all.iter_mut().zip(draw).for_each(|(all, values)| all.extend(values)));
        DRAW.set(0);
        all
    };
    let exact = all(&composed, DType::F64);
    let wide = apart(&all(&kernel, DType::F64), &exact);
    assert!(wide.iter().all(|wide| *wide < 1e-12), "{what}: errors {wide:?} in f64");
    let [ours, theirs] = [apart(&all(&kernel, DType::F32), &exact), apart(&all(&composed, DType::F32), &exact)];
    let near = ours.iter().zip(&theirs).all(|(ours, theirs)| *ours < (2.0 * theirs).max(1e-6));
    assert!(near, "{what}: errors {ours:?} of output and gradients in f32, composed {theirs:?}");
}

/// Compares a convolution with its composed form, for images of shape `x` and weights of size
/// `[outputs, kernel]`.
fn hold_convolution(
    x: [usize; 4],
    [outputs, kernel]: [usize; 2],
    stride: usize,
    padding: (usize, usize),
    turned: bool,
) {
    let both = |f: &dyn Fn(Tensor<4>, Tensor<4>, Tensor<1>) -> Tensor<4>, dtype| {
        let weight = normal("weight", [outputs, x[1], kernel, kernel], dtype, false);
        let (x, bias) = (normal("x", x, dtype, turned), normal("bias", [outputs], dtype, false));
        derivatives(&[&of(&x), &of(&weight), &of(&bias)], f(x, weight, bias))
    };
    let op = Convolve { stride, padding, rounding: Rounding::None };
    hold(
        "convolution",
        |dtype| both(&|x, w, b| fused(op.clone(), [handle(&x), handle(&w), handle(&b)]), dtype),
        |dtype| both(&|x, w, b| composed::conv(x, w, b, stride, padding), dtype),
    );
}

const CURVES: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::GeluQuick];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn curves(rows in 1_usize..40, width in 1_usize..70, turned: bool, which in 0_usize..4) {
        let curve = CURVES[which];
        let input = |dtype| normal("x", [rows, width], dtype, turned) * 3.0;
        let both = |f: &dyn Fn(Tensor<2>) -> Tensor<2>, dtype| {
            let x = input(dtype).detach().require_grad();
            derivatives(&[&of(&x)], f(x))
        };
        hold(
            "activate",
            |dtype| both(&|x| fused(Activate(curve), [handle(&x)]), dtype),
            |dtype| both(&|x| composed::activate(x, curve), dtype),
        );
        let gated = |f: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>, dtype| {
            let (a, b) = (normal("a", [rows, width], dtype, turned), normal("b", [rows, width], dtype, false));
            derivatives(&[&of(&a), &of(&b)], f(a, b))
        };
        hold(
            "pair",
            |dtype| gated(&|a, b| fused(GatePair(curve), [handle(&a), handle(&b)]), dtype),
            |dtype| gated(&|a, b| composed::activate(a, curve) * b, dtype),
        );
        let halves = |f: &dyn Fn(Tensor<2>) -> Tensor<2>, dtype| {
            let x = normal("x", [rows, 2 * width], dtype, turned);
            derivatives(&[&of(&x)], f(x))
        };
        hold(
            "gate",
            |dtype| halves(&|x| fused(Gate(curve), [handle(&x)]), dtype),
            |dtype| halves(&|x| composed::gate(x, curve), dtype),
        );
    }

    // The width is at least 8. The gradient of a normalized row of 2 or 3 elements is the small difference of
    // two nearly equal values, and its error in f32 is random in both forms.
    #[test]
    fn row_norms(groups in 1_usize..4, rows in 1_usize..70, width in 8_usize..80, turned: bool) {
        let x = |dtype| normal("x", [groups, rows, width], dtype, turned);
        let parameter = |name, count, dtype| normal(name, [count, width], dtype, false);
        let bare = |f: &dyn Fn(Tensor<3>) -> Tensor<3>, dtype| {
            let x = x(dtype);
            derivatives(&[&of(&x)], f(x))
        };
        let plain = Normalize { epsilon: 1e-3, centred: true, offset: 0.0 };
        hold(
            "layer norm",
            |dtype| bare(&|x| fused(plain.clone(), [handle(&x)]), dtype),
            |dtype| bare(&|x| composed::normalize(x, 1e-3, true), dtype),
        );
        let two = |f: &dyn Fn(Tensor<3>, Tensor<2>) -> Tensor<3>, dtype| {
            let (x, weight) = (x(dtype), parameter("weight", 1, dtype));
            derivatives(&[&of(&x), &of(&weight)], f(x, weight))
        };
        let rms = Normalize { epsilon: 1e-3, centred: false, offset: 0.0 };
        hold(
            "rms norm",
            |dtype| two(&|x, weight| fused(rms.clone(), [handle(&x), handle(&weight)]), dtype),
            |dtype| two(&|x, weight| composed::rms_norm(x, 1e-3, weight), dtype),
        );
        let three = |count: usize, f: &dyn Fn(Tensor<3>, Tensor<2>, Tensor<2>) -> Tensor<3>, dtype| {
            let (x, scale, shift) = (x(dtype), parameter("scale", count, dtype), parameter("shift", count, dtype));
            derivatives(&[&of(&x), &of(&scale), &of(&shift)], f(x, scale, shift))
        };
        hold(
            "layer norm with weight and bias",
            |dtype| three(1, &|x, w, b| fused(plain.clone(), [handle(&x), handle(&w), handle(&b)]), dtype),
            |dtype| three(1, &|x, w, b| composed::layer_norm(x, 1e-3, w, b), dtype),
        );
        let modulated = Normalize { offset: 1.0, ..plain };
        hold(
            "adaptive layer norm",
            |dtype| three(groups, &|x, s, b| fused(modulated.clone(), [handle(&x), handle(&s), handle(&b)]), dtype),
            |dtype| three(groups, &|x, s, b| composed::adaptive_layer_norm(x, 1e-3, b, s), dtype),
        );
    }

    #[test]
    fn affine_maps(rows in 1_usize..90, depth in 1_usize..40, width in 1_usize..40, turned: bool, bias: bool) {
        let both = |kernel: bool, dtype| {
            let x = normal("x", [2, rows, depth], dtype, turned);
            let (weight, shift) = (normal("weight", [depth, width], dtype, turned), normal("bias", [width], dtype, false));
            let op = Affine { rounding: Rounding::None };
            let y: Tensor<3> = match (kernel, bias) {
                (true, true) => fused(op, [handle(&x), handle(&weight), handle(&shift)]),
                (true, false) => fused(op, [handle(&x), handle(&weight)]),
                (false, _) => linear(x.clone(), weight.clone(), bias.then(|| shift.clone())),
            };
            derivatives(&[&of(&x), &of(&weight), &of(&shift)], y)
        };
        hold("affine map", |dtype| both(true, dtype), |dtype| both(false, dtype));
    }

    #[test]
    fn rotations(batch in 1_usize..4, length in 1_usize..30, heads in 1_usize..4, quarter in 1_usize..7, turned: bool) {
        let width = 4 * quarter;
        let both = |kernel: bool, dtype| {
            let x = normal("qkv", [batch, length, 3 * heads * width], dtype, turned);
            let [cos, sin] = ["cos", "sin"].map(|name| normal(name, [length, width], dtype, false).detach().inner());
            let y: Tensor<3> = match kernel {
                true => fused(Turn { cos: table(&cos).unwrap(), sin: table(&sin).unwrap() }, [handle(&x)]),
                false => composed::turn(x.clone(), &cos, &sin),
            };
            derivatives(&[&of(&x)], y)
        };
        hold("rotation", |dtype| both(true, dtype), |dtype| both(false, dtype));
    }

    // The head width is at least 8 for the same reason as in `row_norms`.
    #[test]
    fn unit_queries_and_keys(batch in 1_usize..4, length in 1_usize..90, heads in 1_usize..4, head in 8_usize..40, turned: bool) {
        let both = |kernel: bool, dtype| {
            let x = normal("qkv", [batch, length, 3 * heads * head], dtype, turned);
            let factors = normal("factors", [heads], dtype, false);
            let y: Tensor<3> = match kernel {
                true => fused(UnitHeads, [handle(&x), handle(&factors)]),
                false => composed::unit_heads(x.clone(), factors.clone()),
            };
            derivatives(&[&of(&x), &of(&factors)], y)
        };
        hold("unit queries and keys", |dtype| both(true, dtype), |dtype| both(false, dtype));
    }

    #[test]
    fn log_probabilities_of_tokens(batch in 1_usize..4, length in 1_usize..30, width in 1_usize..200, turned: bool) {
        let ids: Vec<i64> = (0..batch * length).map(|i| (i * 7919 % width) as i64).collect();
        let ids = Tensor::<1, Int>::from_data(&ids[..], &Device::flex()).reshape([batch, length]);
        let both = |kernel: bool, dtype| {
            let x = normal("logits", [batch, length, width], dtype, turned) * 5.0;
            let x = x.detach().require_grad();
            let y: Tensor<3> = match kernel {
                true => fused(LogProbability { ids: indices(&ids).unwrap() }, [handle(&x)]),
                false => composed::log_probabilities(x.clone(), ids.clone()),
            };
            derivatives(&[&of(&x)], y)
        };
        hold("log-probability", |dtype| both(true, dtype), |dtype| both(false, dtype));
    }

    #[test]
    fn gated_additions(groups in 1_usize..4, rows in 1_usize..70, width in 1_usize..80, turned: bool) {
        let both = |f: &dyn Fn(Tensor<3>, Tensor<3>, Tensor<2>) -> Tensor<3>, dtype| {
            let shape = [groups, rows, width];
            let (x, y) = (normal("x", shape, dtype, turned), normal("y", shape, dtype, !turned));
            let gate = normal("gate", [groups, width], dtype, false);
            derivatives(&[&of(&x), &of(&y), &of(&gate)], f(x, y, gate))
        };
        hold(
            "gated add",
            |dtype| both(&|x, y, gate| fused(GatedAdd, [handle(&x), handle(&y), handle(&gate)]), dtype),
            |dtype| both(&composed::gated_add, dtype),
        );
    }

    #[test]
    fn group_norms(
        batch in 1_usize..4, groups in 1_usize..4, members in 1_usize..5, size in 1_usize..9, silu: bool, turned: bool,
    ) {
        prop_assume!(members * size > 1);
        let config = GroupNormConfig { groups, epsilon: 1e-3 };
        let both = |f: &dyn Fn(Tensor<4>, Tensor<1>, Tensor<1>) -> Tensor<4>, dtype| {
            let channels = groups * members;
            let x = normal("x", [batch, channels, size, size + 1], dtype, turned);
            let [weight, bias] = ["weight", "bias"].map(|name| normal(name, [channels], dtype, false));
            derivatives(&[&of(&x), &of(&weight), &of(&bias)], f(x, weight, bias))
        };
        hold(
            "group norm",
            |dtype| both(&|x, w, b| fused(GroupNormalize { config, silu }, [handle(&x), handle(&w), handle(&b)]), dtype),
            |dtype| both(&|x, w, b| composed::group_norm(x, w, b, config, silu), dtype),
        );
    }

    #[test]
    fn convolutions(
        batch in 1_usize..11, inputs in 1_usize..5, outputs in 1_usize..6, kernel in 1_usize..4, stride in 1_usize..3,
        (before, after) in (0_usize..3, 0_usize..3), (height, width) in (1_usize..20, 1_usize..20), turned: bool,
    ) {
        let padding = (before.min(kernel - 1), after.min(kernel - 1));
        let [height, width] = [height, width].map(|side| side.max(kernel.saturating_sub(padding.0 + padding.1)));
        hold_convolution([batch, inputs, height, width], [outputs, kernel], stride, padding, turned);
    }

    // Large enough for Winograd tiles.
    #[test]
    fn convolutions_of_many_channels(
        batch in 1_usize..4, inputs in 14_usize..22, outputs in 14_usize..22,
        (height, width) in (14_usize..20, 14_usize..20), turned: bool,
    ) {
        hold_convolution([batch, inputs, height, width], [outputs, 3], 1, (1, 1), turned);
    }

    #[test]
    fn attentions(
        (batch, heads) in (1_usize..3, 1_usize..4), queries in 1_usize..40, more in 0_usize..9, width in 1_usize..20,
        span in prop_oneof![Just(Span::All), Just(Span::Causal)], turned: bool, masked in 0..3,
    ) {
        let keys = queries + more;
        let mask = (masked > 0).then(|| {
            if masked == 2 {
                // Levels of five tokens, as in coarse-to-fine generation: possibly no query of a block sees the
                // last keys.
                let level = |i: usize, of: usize| (i / 5) as f32 / of as f32;
                let hidden: Vec<bool> = (0..queries * keys)
                    .map(|i| level(i % keys, keys) > level(i / keys, queries) / 2.0)
                    .collect();
                let mask = TensorData::new(hidden, [1, 1, queries, keys]);
                return Tensor::<4, Bool>::from_data(mask, &Device::flex()).expand([batch, heads, queries, keys]);
            }
            // The first key of each row stays visible, so that no row is hidden completely.
            let hidden = normal("mask", [batch, heads, queries, keys], DType::F32, false).detach().inner().greater_elem(0.8);
            let first = Tensor::<1, burn::tensor::Int>::arange(0..keys as i64, &Device::flex()).equal_elem(0);
            hidden.bool_and(first.bool_not().unsqueeze::<4>().expand([batch, heads, queries, keys]))
        });
        let both = |f: &dyn Fn([Tensor<4>; 3]) -> Tensor<4>, dtype| {
            // Split the heads as the layers do: rows of different heads are adjacent in memory.
            let part = |name, length| {
                let x = normal(name, [batch, length, heads, width], dtype, turned && heads * width > 1);
                (x.clone(), x.swap_dims(1, 2))
            };
            let [(q, a), (k, b), (v, c)] = [part("q", queries), part("k", keys), part("v", keys)];
            derivatives(&[&of(&q), &of(&k), &of(&v)], f([a, b, c]))
        };
        let (causal, rounding) = (span == Span::Causal, Rounding::None);
        let op = Attend { scale: 0.7, causal, mask: mask.as_ref().map(|m| bytes(m).unwrap()), rounding };
        hold(
            "attention",
            |dtype| both(&|[q, k, v]| fused(op.clone(), [handle(&q), handle(&k), handle(&v)]), dtype),
            |dtype| both(&|qkv| composed::attend(qkv, span, mask.clone(), 0.7), dtype),
        );
        let packed = |kernel: bool, dtype| {
            let x = normal("qkv", [batch, queries, 3 * heads * width], dtype, turned);
            let attend = Attend { scale: 0.7, causal, mask: None, rounding };
            let part = |i: usize| crate::nn::heads(x.clone().narrow(2, i * heads * width, heads * width), heads);
            let y: Tensor<3> = match kernel {
                true => fused(AttendPacked { attend, heads }, [handle(&x)]),
                false => crate::nn::merge_heads(composed::attend([part(0), part(1), part(2)], span, None, 0.7)),
            };
            derivatives(&[&of(&x)], y)
        };
        hold("packed attention", |dtype| packed(true, dtype), |dtype| packed(false, dtype));
    }
}

#[test]
fn images_smaller_than_the_kernel_are_convolved() {
    for (height, width) in [(1, 1), (1, 2), (1, 7), (2, 1), (2, 2), (5, 1)] {
        hold_convolution([2, 3, height, width], [4, 3], 1, (1, 1), false);
        hold_convolution([1, 2, height, width], [3, 5], 1, (2, 2), false);
    }
}

#[test]
fn shapes_that_do_not_belong_together_are_refused() {
    let of = |shape: &[usize]| {
        let data = TensorData::new(vec![1.0_f32; shape.iter().product()], shape.to_vec());
        let device = Device::flex();
        match *shape {
            [_, _] => handle(&Tensor::<2>::from_data(data, &device)),
            [_, _, _] => handle(&Tensor::<3>::from_data(data, &device)),
            [_, _, _, _] => handle(&Tensor::<4>::from_data(data, &device)),
            _ => handle(&Tensor::<1>::from_data(data, &device)),
        }
    };
    let rounding = Rounding::None;
    let attend = || Attend { causal: false, mask: None, scale: 1.0, rounding };
    let table = |shape: [usize; 2]| {
        let of = Tensor::<2>::ones(shape, &Device::flex());
        super::table(&of).expect("the table is on the CPU")
    };
    let refused: [(&str, &dyn Fn()); 9] = [
        ("a weight of another height", &|| drop(run(Affine { rounding }, [of(&[4, 3]), of(&[6, 5])]))),
        ("rows of double width", &|| drop(run(Affine { rounding }, [of(&[4, 6]), of(&[3, 5])]))),
        ("a longer bias", &|| drop(run(Affine { rounding }, [of(&[4, 3]), of(&[3, 5]), of(&[6])]))),
        ("an indivisible width", &|| drop(run(UnitHeads, [of(&[1, 1, 30]), of(&[3])]))),
        ("a table of more positions", &|| {
            let [cos, sin] = [table([6, 4]), table([6, 4])];
            drop(run(Turn { cos, sin }, [of(&[1, 4, 12])]));
        }),
        ("an indivisible packed width", &|| {
            drop(run(AttendPacked { attend: attend(), heads: 3 }, [of(&[1, 2, 30])]));
        }),
        ("values wider than the keys", &|| {
            drop(run(attend(), [of(&[1, 2, 3, 4]), of(&[1, 2, 3, 4]), of(&[1, 2, 3, 5])]));
        }),
        ("gates of another width", &|| drop(run(GatePair(Activation::Silu), [of(&[2, 3]), of(&[2, 5])]))),
        ("a kernel larger than the image", &|| {
            let op = Convolve { stride: 1, padding: (0, 0), rounding };
            drop(run(op, [of(&[1, 1, 1, 1]), of(&[1, 1, 3, 3]), of(&[1])]));
        }),
    ];
    for (what, run) in refused {
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "{what} is accepted");
    }
}

#[test]
fn attention_to_nan_is_nan() {
    let ones = || Tensor::<4>::ones([1, 1, 3, 2], &Device::flex());
    let lost = Tensor::<4>::from_data([[[[1.0, 1.0], [f32::NAN, 0.0], [1.0, 1.0]]]], &Device::flex());
    let op = Attend { causal: false, mask: None, scale: 1.0, rounding: Rounding::None };
    let mixed: Tensor<4> = fused(op, [handle(&lost), handle(&ones()), handle(&ones())]);
    let mixed = mixed.into_data().try_into_vec::<f32>().unwrap();
    assert!(mixed[2..4].iter().all(|x| x.is_nan()) && mixed[..2].iter().chain(&mixed[4..]).all(|x| *x == 1.0));
}

#[test]
fn exp_and_the_normal_distribution_in_f32() {
    let worst = |f: fn(f32) -> f32, exact: fn(f64) -> f64, from: f32, to: f32| {
        let steps = 400_000;
        let at = |i: i32| from + (to - from) * i as f32 / steps as f32;
        let relative = |x: f32| (f64::from(f(x)) - exact(f64::from(x))).abs() / exact(f64::from(x)).abs().max(1e-30);
        (0..=steps).map(|i| relative(at(i))).fold(0.0, crate::numbers::larger)
    };
    let ulp = f64::from(f32::EPSILON);
    let exp = worst(<f32 as Number>::exp, f64::exp, -87.0, 88.0);
    assert!(exp < 2.0 * ulp, "{:.2} units", exp / ulp);
    assert_eq!(<f32 as Number>::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(<f32 as Number>::exp(0.0), 1.0);
    assert_eq!(<f32 as Number>::exp(100.0), f32::INFINITY);
    assert!(<f32 as Number>::exp(f32::NAN).is_nan());
    let below = |x: f64| 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
    let steps = (-60_000..60_000).map(|i| i as f32 * 1e-4);
    let normal = steps
        .map(|x| (f64::from(<f32 as Number>::normal(x)[0]) - below(f64::from(x))).abs())
        .fold(0.0, crate::numbers::larger);
    assert!(normal < 3e-7, "{normal:e}");
}

/// Returns values and gradients that were computed by the given number of threads.
fn bits(threads: usize) -> Vec<Derivatives> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let rounding = Rounding::None;
    pool.install(|| {
        let norm = {
            let (x, s, b) = (
                normal("x", [2, 300, 64], DType::F32, false),
                normal("s", [2, 64], DType::F32, false),
                normal("b", [2, 64], DType::F32, false),
            );
            let op = Normalize { epsilon: 1e-6, centred: true, offset: 1.0 };
            derivatives(&[&of(&x), &of(&s), &of(&b)], fused::<3, 3, _>(op, [handle(&x), handle(&s), handle(&b)]))
        };
        let conv = |inputs, batch, side| {
            let x = normal("x", [batch, inputs, side, side], DType::F32, false);
            let (w, b) = (normal("w", [40, inputs, 3, 3], DType::F32, false), normal("b", [40], DType::F32, false));
            let op = Convolve { stride: 1, padding: (1, 1), rounding };
            derivatives(&[&of(&x), &of(&w), &of(&b)], fused::<3, 4, _>(op, [handle(&x), handle(&w), handle(&b)]))
        };
        let linear = |rows, depth, width| {
            let x = normal("x", [1, rows, depth], DType::F32, false);
            let (w, b) = (normal("w", [depth, width], DType::F32, false), normal("b", [width], DType::F32, false));
            derivatives(
                &[&of(&x), &of(&w), &of(&b)],
                fused::<3, 3, _>(Affine { rounding }, [handle(&x), handle(&w), handle(&b)]),
            )
        };
        let attention = {
            let [q, k, v] = ["q", "k", "v"].map(|name| normal(name, [2, 3, 130, 32], DType::F32, false));
            let op = Attend { scale: 0.2, causal: true, mask: None, rounding };
            derivatives(&[&of(&q), &of(&k), &of(&v)], fused::<3, 4, _>(op, [handle(&q), handle(&k), handle(&v)]))
        };
        let unit = {
            let (x, f) = (normal("qkv", [3, 90, 96], DType::F32, false), normal("f", [2], DType::F32, false));
            derivatives(&[&of(&x), &of(&f)], fused::<2, 3, _>(UnitHeads, [handle(&x), handle(&f)]))
        };
        let tokens = {
            let (x, ids) = (normal("logits", [2, 300, 77], DType::F32, false), (0..600).map(|i| i % 77).collect());
            derivatives(&[&of(&x)], fused::<1, 3, _>(LogProbability { ids }, [handle(&x)]))
        };
        // The first four use im2col, the last two Winograd tiles.
        let convolutions = [[2, 17], [13, 17], [2, 9], [14, 9]].map(|[batch, side]| conv(12, batch, side));
        let of_tiles = [[2, 17], [13, 17]].map(|[batch, side]| conv(24, batch, side));

        let others = [norm, linear(700, 130, 300), linear(41, 1200, 77), attention, unit, tokens];
        convolutions.into_iter().chain(of_tiles).chain(others).collect()
    })
}

#[test]
fn threads_change_no_bit() {
    let one = bits(1);
    for threads in [2, 3, 8] {
        assert!(bits(threads) == one, "{threads} threads and one thread give different bits");
    }
}

#[test]
fn other_data_types_have_no_kernel() {
    let x = normal("x", [2, 3], DType::F16, false);
    assert!(run(Activate(Activation::Silu), [handle(&x)]).is_none());
}

#[test]
fn a_constant_gets_no_gradient_and_a_network_without_tape_none_at_all() {
    let (a, b) =
        (normal("a", [2, 3], DType::F32, false), Tensor::from_inner(normal("b", [2, 3], DType::F32, false).inner()));
    let y: Tensor<2> = fused(GatePair(Activation::Silu), [handle(&a), handle(&b)]);
    let grads = y.sum().backward();
    assert!(a.grad(&grads).is_some() && b.grad(&grads).is_none());
    let plain: Tensor<2> = fused(Activate(Activation::Silu), [handle(&a.inner())]);
    assert!(!plain.device().is_autodiff());
    // A constant without autodiff together with a tracked parameter.
    let mixed: Tensor<2> = fused(
        GatePair(Activation::Silu),
        [handle(&b.clone().inner()), handle(&normal("c", [2, 3], DType::F32, false))],
    );
    assert!(mixed.device().is_autodiff());
}

#[test]
fn updates_are_their_formulas() {
    let shape = [3, 20_000];
    for dtype in [DType::F64, DType::F32] {
        let [x, grad, m, v] = ["x", "grad", "m", "v"].map(|name| normal(name, shape, dtype, false).inner());
        let v = v.abs();
        let step = AdamwStep { betas: [0.9, 0.99], epsilon: 1e-3, rate: 0.02, root: 1.5, decay: 0.1 };
        let all = [&x, &grad, &m, &v].map(handle);
        let updated = adamw(step, all).unwrap().map(|tensor| values(Tensor::<2>::from_dispatch(tensor)));
        let moments = [m * 0.9 + grad.clone() * 0.1, v * 0.99 + grad.clone() * grad.clone() * 0.01];
        let [m, v] = moments.clone();
        let change = m * step.rate / (v.sqrt() * step.root + step.epsilon);
        let [first, second] = moments.map(values);
        let expected = vec![values(x.clone() * (1.0 - step.decay) - change), first, second];
        let close = if dtype == DType::F64 { 1e-14 } else { 1e-6 };
        let average = values(Tensor::<2>::from_dispatch(lerp([handle(&x), handle(&grad)], 0.9).unwrap()));
        let mixed = values(x.clone() * 0.9 + grad.clone() * 0.1);
        let pairs = [(updated.to_vec(), expected), (vec![average], vec![mixed])];
        assert!(pairs.iter().flat_map(|(ours, theirs)| apart(ours, theirs)).all(|apart| apart < close));
        // The reference adds 60,000 values one by one, with as many roundings.
        let sum: f64 = values(grad.clone()).iter().map(|g| g * g).sum();
        assert!((square_sum(handle(&grad)).unwrap() / sum - 1.0).abs() < close.max(1e-12));
    }
}

/// The groups contain several images, or some rows of one image.
#[test]
fn convolutions_of_many_tiles() {
    hold_convolution([5, 17, 40, 38], [18, 3], 1, (1, 1), false);
    hold_convolution([2, 16, 71, 66], [16, 3], 1, (1, 1), false);
}

#[test]
fn kernels_of_bf16_are_those_of_f32_on_rounded_numbers() {
    let rounded = |name, shape, dtype| {
        let x = normal::<4>(name, shape, DType::F32, false).detach().inner().cast(DType::BF16).cast(dtype);
        Tensor::from_inner(x).require_grad()
    };
    let linear = |dtype| {
        let (x, w) = (rounded("x", [1, 2, 70, 48], dtype), rounded("w", [1, 1, 48, 96], dtype));
        let op = Affine { rounding: Rounding::of(dtype) };
        let y = fused::<2, 4, _>(op, [handle(&x), handle(&w.clone().reshape([48, 96]))]);
        derivatives(&[&of(&x), &of(&w)], y)
    };
    let convolution = |dtype| {
        let (x, w) = (rounded("x", [2, 24, 9, 9], dtype), rounded("w", [40, 24, 3, 3], dtype));
        let bias = rounded("b", [1, 1, 1, 40], dtype);
        let op = Convolve { stride: 1, padding: (1, 1), rounding: Rounding::of(dtype) };
        let y = fused::<3, 4, _>(op, [handle(&x), handle(&w), handle(&bias.clone().reshape([40]))]);
        derivatives(&[&of(&x), &of(&w), &of(&bias)], y)
    };
    let attention = |dtype| {
        let [q, k, v] = ["q", "k", "v"].map(|name| rounded(name, [2, 3, 90, 32], dtype));
        let op = Attend { scale: 0.2, causal: true, mask: None, rounding: Rounding::of(dtype) };
        derivatives(&[&of(&q), &of(&k), &of(&v)], fused::<3, 4, _>(op, [handle(&q), handle(&k), handle(&v)]))
    };
    let kernels: [&dyn Fn(DType) -> Derivatives; 3] = [&linear, &convolution, &attention];
    for kernel in kernels {
        let [narrow, wide] = [DType::BF16, DType::F32].map(kernel);
        for (narrow, wide) in narrow.iter().zip(&wide) {
            let largest = wide.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            // The tolerance is twice half a unit in the last place of bf16 (8 bits): once for the rounded
            // incoming gradient, once for the rounded result.
            assert!(narrow.iter().zip(wide).all(|(a, b)| (a - b).abs() <= largest / 128.0));
            assert!(narrow.iter().zip(wide).any(|(a, b)| a != b), "not rounded");
        }
    }
}

#[test]
fn narrow_numbers_are_those_of_the_cast() {
    let both = |kernel: bool| {
        let x = normal::<2>("x", [70, 301], DType::F32, false);
        let narrow = if kernel { fused(Narrow, [handle(&x)]) } else { x.clone().cast(DType::BF16) };
        assert_eq!(narrow.dtype(), DType::BF16);
        let loss = (narrow.clone() * normal("upstream", [70, 301], DType::BF16, false).detach()).sum();
        let grad = x.grad(&loss.backward()).expect("`x` has a gradient");
        assert_eq!(grad.dtype(), DType::F32);
        [values(narrow.detach()), values(grad)]
    };
    assert_eq!(both(true), both(false));
}

#[test]
fn the_optimizer_writes_weights_and_moments_where_they_are() {
    let device = Device::flex().autodiff();
    let layer = crate::nn::Linear::new(64, 64, &device);
    let mut layer =
        crate::nn::parameters::initialize(layer, &Random::new(0), &|_, _| crate::nn::parameters::Init::Normal(1.0));
    let mut optimizer = crate::optimization::optimizer::OptimizerConfig::default().init(&[]).unwrap();
    let place = |layer: &crate::nn::Linear| plain(handle(&layer.weight.val()).kind).storage::<f32>().as_ptr();
    let first = place(&layer);
    for _ in 0..3 {
        let loss = layer.forward(normal("x", [1, 5, 64], DType::F32, false)).sum();
        let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(0.1, layer, gradients);
        assert_eq!(place(&layer), first);
    }
}

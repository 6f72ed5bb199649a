//! Curves between linear layers: silu and the forms of gelu, alone and as a gate.

use super::math::{GRAIN, Number, chunks, room, vectorized};
use super::{Fused, dense, numbers, tensor};
use crate::nn::Activation;
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;

/// A curve's value at a number, and its slope there.
trait Evaluate: Copy + Send + Sync {
    fn at<T: Number>(self, x: T) -> (T, T);
}

/// `x sigmoid(u(x))`.
#[inline(always)]
fn swish<T: Number>(x: T, u: T, slope_of_u: T) -> (T, T) {
    let s = u.sigmoid();
    (x * s, s + x * s * (T::of(1.0) - s) * slope_of_u)
}

#[derive(Clone, Copy)]
struct Silu;
impl Evaluate for Silu {
    #[inline(always)]
    fn at<T: Number>(self, x: T) -> (T, T) {
        swish(x, x, T::of(1.0))
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;
impl Evaluate for GeluTanh {
    #[inline(always)]
    fn at<T: Number>(self, x: T) -> (T, T) {
        // x/2 (1 + tanh(u/2)) = x sigmoid(u), u = 2 sqrt(2/pi) (x + 0.044715 x^3)
        const LINEAR: f64 = 1.595_769_121_605_730_7;
        const CUBIC: f64 = LINEAR * 0.044_715;
        let square = x * x;
        swish(x, x * (T::of(LINEAR) + T::of(CUBIC) * square), T::of(LINEAR) + T::of(3.0 * CUBIC) * square)
    }
}

#[derive(Clone, Copy)]
struct GeluExact;
impl Evaluate for GeluExact {
    #[inline(always)]
    fn at<T: Number>(self, x: T) -> (T, T) {
        let [below, density] = x.normal();
        (x * below, below + x * density)
    }
}

#[derive(Clone, Copy)]
struct GeluQuick;
impl Evaluate for GeluQuick {
    #[inline(always)]
    fn at<T: Number>(self, x: T) -> (T, T) {
        let slope = T::of(1.702);
        swish(x, x * slope, slope)
    }
}

/// Calls `$body` with the curve as a type of its own, so that each gets a loop of its own.
macro_rules! with_curve {
    ($curve:expr, $name:ident => $body:expr) => {
        match $curve {
            Activation::Silu => {
                let $name = Silu;
                $body
            }
            Activation::GeluTanh => {
                let $name = GeluTanh;
                $body
            }
            Activation::Gelu => {
                let $name = GeluExact;
                $body
            }
            Activation::GeluQuick => {
                let $name = GeluQuick;
                $body
            }
        }
    };
}

/// Value and slope of a curve at `x`, for kernels that end in one.
#[inline(always)]
pub(super) fn evaluate<T: Number>(activation: Activation, x: T) -> (T, T) {
    with_curve!(activation, curve => curve.at(x))
}

/// Numbers that a thread takes at a time.
const PIECE: usize = GRAIN;

/// `y[i] = f([x0[i], x1[i], ..])` over slices of one length.
fn zip_map<const N: usize, T: Number>(inputs: [&[T]; N], f: impl Fn([T; N]) -> T + Copy + Send + Sync) -> Vec<T> {
    let mut out = room(inputs[0].len());
    assert!(inputs.iter().all(|input| input.len() == out.len()), "as many numbers each");
    chunks(&mut out, PIECE, |i, out| {
        let inputs = inputs.map(|input| &input[i * PIECE..]);
        vectorized(
            #[inline(always)]
            move || {
                // Slices of one length that the compiler sees: a check of bounds in the loop would keep it from filling
                // vector registers, at ten times the cost.
                let count = out.len();
                let inputs = inputs.map(|input| &input[..count]);
                for i in 0..count {
                    out[i] = f(inputs.map(|input| input[i]));
                }
            },
        )
    });
    out
}

/// `curve(x)`.
#[derive(Clone, Debug)]
pub(crate) struct Activate(pub Activation);

impl Fused<1> for Activate {
    type Saved = ();

    fn forward<T: Number>(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, ()) {
        let x = dense::<T>(x);
        let y = with_curve!(self.0, curve => zip_map([numbers::<T>(&x)], #[inline(always)] move |[x]| curve.at(x).0));
        (tensor(y, x.shape()), ())
    }

    fn backward<T: Number>(
        &self,
        [x]: [FlexTensor; 1],
        (): (),
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let (x, grad) = (dense::<T>(x), dense::<T>(grad));
        let slope = with_curve!(self.0, curve => zip_map(
            [numbers::<T>(&x), numbers(&grad)],
            #[inline(always)] move |[x, grad]| grad * curve.at(x).1,
        ));
        [Some(tensor(slope, x.shape()))]
    }
}

/// `a curve(b)` of the halves `[a, b]` of the last dimension. Input: `[.., 2 D]`, output `[.., D]`.
#[derive(Clone, Debug)]
pub(crate) struct Gate(pub Activation);

impl Gate {
    /// Rows that a thread takes at a time.
    fn rows(width: usize) -> usize {
        (PIECE / width).max(1)
    }
}

impl Fused<1> for Gate {
    type Saved = ();

    fn forward<T: Number>(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, ()) {
        let x = dense::<T>(x);
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        let width = shape[last] / 2;
        assert_eq!(2 * width, shape[last], "two halves");
        shape[last] = width;
        let (values, rows) = (numbers::<T>(&x), Self::rows(width));
        let mut y = room::<T>(values.len() / 2);
        with_curve!(self.0, curve => chunks(&mut y, rows * width, |i, y| {
            let x = &values[2 * i * rows * width..][..2 * y.len()];
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                        let (a, b) = x.split_at(width);
                        for k in 0..width {
                            y[k] = a[k] * curve.at(b[k]).0;
                        }
                    }
                },
            )
        }));
        (tensor(y, shape), ())
    }

    fn backward<T: Number>(
        &self,
        [x]: [FlexTensor; 1],
        (): (),
        grad: FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let (x, grad) = (dense::<T>(x), dense::<T>(grad));
        let (values, grad) = (numbers::<T>(&x), numbers::<T>(&grad));
        let width = x.shape()[x.shape().num_dims() - 1] / 2;
        let rows = Self::rows(width);
        let mut of_x = room::<T>(values.len());
        with_curve!(self.0, curve => chunks(&mut of_x, 2 * rows * width, |i, of_x| {
            let x = &values[2 * i * rows * width..][..of_x.len()];
            let grad = &grad[i * rows * width..][..of_x.len() / 2];
            vectorized(
                #[inline(always)]
                || {
                    let rows = of_x.chunks_exact_mut(2 * width).zip(x.chunks_exact(2 * width));
                    for ((of_x, x), grad) in rows.zip(grad.chunks_exact(width)) {
                        let ((a, b), (of_a, of_b)) = (x.split_at(width), of_x.split_at_mut(width));
                        for k in 0..width {
                            let (value, slope) = curve.at(b[k]);
                            (of_a[k], of_b[k]) = (grad[k] * value, grad[k] * a[k] * slope);
                        }
                    }
                },
            )
        }));
        [Some(tensor(of_x, x.shape()))]
    }
}

/// `curve(a) b` of two tensors of one shape.
#[derive(Clone, Debug)]
pub(crate) struct GatePair(pub Activation);

impl Fused<2> for GatePair {
    type Saved = ();

    fn forward<T: Number>(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, ()) {
        let [a, b] = inputs.map(dense::<T>);
        let y = with_curve!(self.0, curve => zip_map(
            [numbers::<T>(&a), numbers(&b)],
            #[inline(always)] move |[a, b]| curve.at(a).0 * b,
        ));
        (tensor(y, a.shape()), ())
    }

    fn backward<T: Number>(
        &self,
        inputs: [FlexTensor; 2],
        (): (),
        grad: FlexTensor,
        _: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let ([a, b], grad) = (inputs.map(dense::<T>), dense::<T>(grad));
        let all = [numbers::<T>(&a), numbers(&b), numbers(&grad)];
        let of_a = with_curve!(self.0, curve => zip_map(all, #[inline(always)] move |[a, b, g]| g * b * curve.at(a).1));
        let of_b = with_curve!(self.0, curve => zip_map(all, #[inline(always)] move |[a, _, g]| g * curve.at(a).0));
        [of_a, of_b].map(|values| Some(tensor(values, a.shape())))
    }
}

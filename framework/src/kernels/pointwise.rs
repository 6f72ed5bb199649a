//! Activation functions: silu and the variants of gelu, plain and as a gate.

use super::math::{GRAIN, Number, chunks, room, vectorized};
use super::{Fused, dense, numbers, tensor};
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`. Source: arXiv:1606.08415 sec. 4.
    Silu,
    /// `x / 2 (1 + erf(x / sqrt(2)))`. Source: arXiv:1606.08415 sec. 2.
    Gelu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`. Source: arXiv:1606.08415 sec. 2.
    GeluTanh,
    /// `x sigmoid(1.702 x)`, used by CLIP. Source: arXiv:1606.08415 sec. 2.
    GeluQuick,
}

/// An activation function; `at` returns its value and its slope at `x`.
trait Evaluate: Copy + Send + Sync {
    fn at<T: Number>(self, x: T) -> (T, T);
}

/// Returns the value and the slope of `x sigmoid(u(x))`.
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

/// Calls `$body` with a separate type per activation function, so that each has its own compiled loop.
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

/// Returns the value and the slope of an activation function at `x`, for kernels that end in one.
#[inline(always)]
pub(super) fn evaluate<T: Number>(activation: Activation, x: T) -> (T, T) {
    with_curve!(activation, curve => curve.at(x))
}

/// Elements per work item.
const PIECE: usize = GRAIN;

/// Computes `y[i] = f([x0[i], x1[i], ..])` over slices of equal length.
fn zip_map<const N: usize, T: Number>(inputs: [&[T]; N], f: impl Fn([T; N]) -> T + Copy + Send + Sync) -> Vec<T> {
    let mut out = room(inputs[0].len());
    assert!(inputs.iter().all(|input| input.len() == out.len()), "inputs of equal length");
    chunks(&mut out, PIECE, |i, out| {
        let inputs = inputs.map(|input| &input[i * PIECE..]);
        vectorized(
            #[inline(always)]
            move || {
                // Make the equal length visible to the compiler. Otherwise bounds checks in the loop prevent
                // vectorization, and the loop takes ten times as long.
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

/// Applies `curve(x)` to each element.
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

/// Computes `a curve(b)` of the halves `[a, b]` of the last dimension. Input: `[.., 2 D]`, output `[.., D]`.
#[derive(Clone, Debug)]
pub(crate) struct Gate(pub Activation);

impl Gate {
    /// Returns the number of rows per work item.
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

/// Computes `curve(a) b` of two tensors of equal shape.
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

//! Element types of the kernels, and loops over slices of them.
//!
//! A loop is written once, in scalar code. [`vectorized`] compiles it for every relevant instruction set and
//! selects one at run time.

use burn::tensor::{DType, Element};
use pulp::Simd;
use rayon::prelude::*;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

/// The element type of a computation: f32 or f64.
pub trait Number:
    Element
    + bytemuck::Pod
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + Sum
    + Send
    + Sync
    + 'static
{
    /// The corresponding data type.
    const DTYPE: DType;
    /// A vector register of elements.
    type Vector<S: Simd>: Copy;
    /// Fills a register with `value`.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// Computes `a b + c`, with a single rounding where the processor supports it.
    fn multiply_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// Converts to f64.
    fn to_f64(self) -> f64;
    /// Transposes a square.
    #[inline(always)]
    fn turn(square: [[Self; 4]; 4]) -> [[Self; 4]; 4] {
        [0, 1, 2, 3].map(|row| [0, 1, 2, 3].map(|column| square[column][row]))
    }
    /// Rounds `value` to the nearest representable value.
    fn of(value: f64) -> Self;
    /// Returns `e^x`.
    fn exp(self) -> Self;
    /// Returns the cumulative distribution function and the density of the standard normal distribution at
    /// `self`.
    fn normal(self) -> [Self; 2];
    /// Returns the square root.
    fn sqrt(self) -> Self;
    /// Returns the natural logarithm.
    fn ln(self) -> Self;
    /// Returns `1 / (1 + exp(-x))`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::of(1.0) / (Self::of(1.0) + (-self).exp())
    }
}

/// 1 / sqrt(2 pi).
const INVERSE_ROOT_2_PI: f64 = 0.398_942_280_401_432_7;

impl Number for f64 {
    const DTYPE: DType = DType::F64;
    type Vector<S: Simd> = S::f64s;
    #[inline(always)]
    fn splat<S: Simd>(simd: S, value: Self) -> S::f64s {
        simd.splat_f64s(value)
    }
    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, a: S::f64s, b: S::f64s, c: S::f64s) -> S::f64s {
        simd.mul_add_e_f64s(a, b, c)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }
    #[inline(always)]
    fn normal(self) -> [Self; 2] {
        let below = 0.5 * (1.0 + libm::erf(self * std::f64::consts::FRAC_1_SQRT_2));
        [below, INVERSE_ROOT_2_PI * f64::exp(-0.5 * self * self)]
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f64::ln(self)
    }
}

impl Number for f32 {
    const DTYPE: DType = DType::F32;
    type Vector<S: Simd> = S::f32s;
    #[inline(always)]
    fn splat<S: Simd>(simd: S, value: Self) -> S::f32s {
        simd.splat_f32s(value)
    }
    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(a, b, c)
    }
    /// Transposes in registers; the compiler would move the elements one by one.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn turn(square: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
        use std::arch::x86_64::{__m128, _mm_movehl_ps, _mm_movelh_ps, _mm_unpackhi_ps, _mm_unpacklo_ps};
        let [a, b, c, d]: [__m128; 4] = bytemuck::cast(square);
        // SAFETY: every x86-64 processor has SSE.
        let turned = unsafe {
            let [low, high] = [[a, b], [c, d]].map(|[a, b]| [_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b)]);
            let [lows, highs] = [[low[0], high[0]], [low[1], high[1]]];
            [lows, highs].map(|[a, b]| [_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)])
        };
        bytemuck::cast(turned)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    /// Computes `e^x` within 2 units in the last place. The result is 0 below -87.3, where f32 would be
    /// subnormal, and infinite above 88.37. The function has no branch, so that the compiler vectorizes a loop
    /// over it.
    ///
    /// Source: `2^n` times the Taylor polynomial of degree 7 on `[-ln(2) / 2, ln(2) / 2]`.
    #[inline(always)]
    fn exp(self) -> Self {
        /// 1.5 * 2^23: adding it rounds to an integer, which is then stored in the low bits.
        const ROUND: f32 = 12_582_912.0;
        /// ln 2 as a sum of two parts; products of the first part with |n| < 256 are exact.
        const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
        let rounded = self * std::f32::consts::LOG2_E + ROUND;
        let n = rounded - ROUND;
        let r = self - n * LN_2[0] - n * LN_2[1];
        let tail = 1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0))));
        let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
        let value = (1.0 + r * (1.0 + r * (0.5 + r * tail))) * power;
        if self < -87.3 {
            0.0
        } else if self > 88.37 {
            f32::INFINITY
        } else {
            // The polynomial propagates NaN.
            value
        }
    }

    /// The absolute error of the distribution function is at most 3e-7: 1.5e-7 from the formula, and the rest
    /// from rounding values near 1/2.
    ///
    /// Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26. The density uses the same
    /// exponential as the formula.
    #[inline(always)]
    fn normal(self) -> [Self; 2] {
        const TAIL: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];
        let power = Number::exp(-0.5 * self * self);
        let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * self.abs());
        let tail = 0.5 * t * (TAIL[0] + t * (TAIL[1] + t * (TAIL[2] + t * (TAIL[3] + t * TAIL[4])))) * power;
        [if self < 0.0 { tail } else { 1.0 - tail }, INVERSE_ROOT_2_PI as f32 * power]
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }
}

/// Elements per work item. With fewer elements in total, a second thread costs more than it saves.
pub const GRAIN: usize = 1 << 14;

/// Runs `work`, compiled for the instruction set of the processor. Mark the closure `#[inline(always)]`.
#[inline(always)]
pub fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Partial sums per sum.
const LANES: usize = 16;

/// Returns the sum of `term(i)` for `i < n`. It keeps 16 partial sums and adds them at the end. 16 is at least
/// the width of a vector register, and it is the same for every processor, so that every processor adds in the
/// same order.
#[inline(always)]
pub fn sum<T: Number>(n: usize, term: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::of(0.0); LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    let mut rest = T::of(0.0);
    for i in whole..n {
        rest += term(i);
    }
    added(lanes, rest)
}

/// Replaces each element of `x` by `exp(x - highest)` and returns the sum of the results, added in the order of
/// [`sum`].
#[inline(always)]
pub fn exponentials<T: Number>(x: &mut [T], highest: T) -> T {
    let mut lanes = [T::of(0.0); LANES];
    let (whole, tail) = x.as_chunks_mut::<LANES>();
    for chunk in whole {
        for (x, sum) in chunk.iter_mut().zip(&mut lanes) {
            *x = (*x - highest).exp();
            *sum += *x;
        }
    }
    let mut rest = T::of(0.0);
    for x in tail {
        *x = (*x - highest).exp();
        rest += *x;
    }
    added(lanes, rest)
}

/// Adds the partial sums and `rest`, the sum of the elements after the last whole group of lanes.
#[inline(always)]
fn added<T: Number>(mut lanes: [T; LANES], rest: T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = lanes[lane + width];
            lanes[lane] += other;
        }
        width /= 2;
    }
    rest + lanes[0]
}

/// Allocates `n` elements without setting them to zero. The kernel must write every element before it reads
/// any.
pub fn room<T: Number>(n: usize) -> Vec<T> {
    let mut room = Vec::with_capacity(n);
    // SAFETY: the capacity is `n`, every bit pattern is a valid value, and no element is read before it is
    // written.
    #[allow(clippy::uninit_vec)]
    unsafe {
        room.set_len(n);
    }
    room
}

/// Returns the maximum of `x`, or minus infinity if `x` is empty. Ignores NaN.
#[inline(always)]
pub fn maximum<T: Number>(x: &[T]) -> T {
    let mut lanes = [T::of(f64::NEG_INFINITY); LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (highest, x) in lanes.iter_mut().zip(chunk) {
            *highest = if *x > *highest { *x } else { *highest };
        }
    }
    rest.iter().chain(&lanes).fold(T::of(f64::NEG_INFINITY), |highest, x| if *x > highest { *x } else { highest })
}

/// Calls `work(i, chunk)` for every chunk of `size` elements of `out`, in parallel from [`GRAIN`] elements on.
/// Returns the results in order.
pub fn chunks<T: Number, R: Send>(
    out: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) -> R + Send + Sync,
) -> Vec<R> {
    if out.len() < GRAIN {
        return out.chunks_mut(size).enumerate().map(|(i, chunk)| work(i, chunk)).collect();
    }
    out.par_chunks_mut(size).enumerate().map(|(i, chunk)| work(i, chunk)).collect()
}

/// Adds vectors of equal length, in order.
pub fn total<T: Number>(parts: impl IntoIterator<Item = Vec<T>>) -> Vec<T> {
    let mut parts = parts.into_iter();
    let mut all = parts.next().expect("there is at least one part");
    let others: Vec<Vec<T>> = parts.collect();
    let add = |(i, all): (usize, &mut [T])| {
        for other in &others {
            all.iter_mut().zip(&other[i * GRAIN..]).for_each(|(all, other)| *all += *other);
        }
    };
    if all.len() <= GRAIN {
        add((0, &mut all));
    } else {
        all.par_chunks_mut(GRAIN).enumerate().for_each(add);
    }
    all
}

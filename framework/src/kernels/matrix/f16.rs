//! Products with the f16 vector instructions of a processor (AVX512-FP16), twice as fast as f32. Factors are
//! rounded to f16. Sums of [`TERMS`] products are computed in f16, and these sums are added in f32.
//!
//! Source: Intel AVX512-FP16 Architecture Specification (2021).

use super::super::math::Number;
use super::amx::first;
use super::{Matrix, ROWS, STRIDE, Tile, broad, deep, prefetch, room_in};
use pulp::x86::V4;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Elements per register.
const LANES: usize = 32;
/// Registers per row of a panel of `b`.
const VECTORS: usize = 4;
/// Columns per panel of `b`.
const PANEL: usize = VECTORS * LANES;
/// Columns of `b` that are packed at a time; a block of [`super::DEEP`] rows fits the L2 cache.
const WIDTH: usize = broad::<u16>();
/// Products that are summed in f16. A sum of this length has a smaller error than rounding the factors to bf16
/// causes.
const TERMS: usize = 64;
/// Rows of `b` that are transposed at a time.
const TURNED: usize = 16;

/// Returns whether this processor has the instructions.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| is_x86_feature_detected!("avx512fp16") && V4::try_new().is_some())
}

/// Computes a tile of f32 elements. The rows of `a` must be contiguous.
pub(super) fn compute<T: Number>(tile: Tile<'_, T>) {
    assert!(available(), "the processor has no f16 vector instructions");
    // SAFETY: the instructions are available, and `multiply` asserted that the matrices of the tile are within
    // bounds.
    unsafe { tile.of_f32().compute_in_f16() };
}

impl Tile<'_, f32> {
    /// Computes the tile in f16. The rows of `a` must be contiguous.
    ///
    /// # Safety
    /// All three matrices are within bounds, and the instructions are [`available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512fp16,avx2,fma")]
    pub(super) unsafe fn compute_in_f16(self) {
        let [m, k, n] = self.shape;
        let simd = V4::try_new().expect("every processor with AVX512-FP16 has AVX-512");
        let deep = deep(k);
        // Sizes are in units of 32 bits. One unit holds two f16 values, or one f16 value twice.
        let of_a = ROWS * STRIDE;
        let turned = TURNED * PANEL;
        let packed_a = room_in::<u32>(self.room, of_a + turned + deep * (WIDTH + PANEL) / 2);
        let turned = packed_a.wrapping_add(of_a).cast::<f32>();
        let packed_b = turned.wrapping_add(TURNED * PANEL).cast::<u16>();
        for (left, top) in (0..n).step_by(WIDTH).flat_map(|left| (0..k).step_by(deep).map(move |top| (left, top))) {
            let (width, depth) = (WIDTH.min(n - left), deep.min(k - top));
            let b = self.b.from([top, left]);
            // SAFETY: all accesses are within `a`, `b`, `out` and the packed copies. Rows of the packed `a`
            // beyond the last one hold values of an earlier block; their sums are not written.
            unsafe {
                for j in (0..width).step_by(PANEL) {
                    pack_b(simd, b.from([0, j]), [depth, PANEL.min(width - j)], turned, packed_b.add(j * depth));
                }
                for i in (0..m).step_by(ROWS) {
                    let rows = ROWS.min(m - i);
                    for row in 0..rows {
                        pack_a(self.a.at(i + row, top), packed_a.add(row * STRIDE), depth);
                    }
                    for j in (0..width).step_by(PANEL) {
                        let columns = PANEL.min(width - j);
                        let block = Block {
                            depth,
                            a: packed_a,
                            b: packed_b.add(j * depth),
                            out: (self.out.0.add(i * self.out.1 + left + j), self.out.1),
                            size: [rows, columns],
                            keep: self.keep || top > 0,
                            factor: self.factor,
                        };
                        match columns.div_ceil(LANES) {
                            1 => block.compute::<1>(),
                            2 => block.compute::<2>(),
                            3 => block.compute::<3>(),
                            _ => block.compute::<VECTORS>(),
                        }
                    }
                }
            }
        }
    }
}

/// Packs a row of `a`, each value twice.
///
/// # Safety
/// `depth` elements can be read from `from`. `to` has room for them, rounded up to a whole register.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512fp16")]
unsafe fn pack_a(from: *const f32, to: *mut u32, depth: usize) {
    for k in (0..depth).step_by(16) {
        // SAFETY: guaranteed by the caller; masked elements are not read.
        unsafe {
            let once = _mm512_cvtepu16_epi32(rounded(_mm512_maskz_loadu_ps(first(depth - k), from.add(k))));
            _mm512_storeu_si512(to.add(k).cast(), _mm512_or_si512(once, _mm512_slli_epi32::<16>(once)));
        }
    }
}

/// Packs `[depth, columns]` of `b` as `depth` rows of a panel. Writes only the registers that the columns fill.
///
/// # Safety
/// The columns are within `b`. `packed` has room for the panel, and `turned` for [`TURNED`] rows of a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512fp16,avx2,fma")]
unsafe fn pack_b(simd: V4, b: Matrix<'_, f32>, [depth, columns]: [usize; 2], turned: *mut f32, packed: *mut u16) {
    // SAFETY: guaranteed by the caller; masked elements are not read.
    unsafe {
        let round = |from: *const f32, to: *mut u16| {
            for j in (0..columns.next_multiple_of(LANES)).step_by(16) {
                let numbers = _mm512_maskz_loadu_ps(first(columns.saturating_sub(j)), from.wrapping_add(j));
                _mm256_storeu_si256(to.add(j).cast(), rounded(numbers));
            }
        };
        if b.column == 1 {
            for k in 0..depth {
                round(b.at(k, 0), packed.add(k * PANEL));
            }
            return;
        }
        for top in (0..depth).step_by(TURNED) {
            let rows = TURNED.min(depth - top);
            super::pack_b::<f32, V4, { PANEL / 16 }>(simd, b.from([top, 0]), [rows, columns], turned);
            for k in 0..rows {
                round(turned.add(k * PANEL), packed.add((top + k) * PANEL));
            }
        }
    }
}

/// Rounds to the nearest f16.
#[target_feature(enable = "avx512f,avx512vl,avx512fp16")]
fn rounded(numbers: __m512) -> __m256i {
    _mm256_castph_si256(_mm512_cvtxps_ph(numbers))
}

/// A block of `size` rows and columns of `out`; `depth` products are added to each element.
struct Block {
    depth: usize,
    /// Packed rows with the row stride [`STRIDE`].
    a: *const u32,
    /// A packed panel.
    b: *const u16,
    /// Start and row stride.
    out: (*mut f32, usize),
    size: [usize; 2],
    keep: bool,
    factor: f32,
}

impl Block {
    /// Computes the block from the first `N` registers of each row of the panel.
    ///
    /// # Safety
    /// [`ROWS`] rows of `a` and `depth` rows of `b` can be read, and `size` of `out` can be read and written.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
    unsafe fn compute<const N: usize>(self) {
        let [rows, columns] = self.size;
        let factor = _mm512_set1_ps(self.factor);
        for row in 0..rows {
            for vector in 0..2 * N {
                prefetch(self.out.0.wrapping_add(row * self.out.1 + vector * 16));
            }
        }
        for top in (0..self.depth).step_by(TERMS) {
            let mut sums = [[_mm512_setzero_ph(); N]; ROWS];
            for k in top..self.depth.min(top + TERMS) {
                // SAFETY: guaranteed by the caller.
                unsafe {
                    let b = self.b.add(k * PANEL);
                    let numbers: [__m512h; N] = std::array::from_fn(|vector| {
                        _mm512_castsi512_ph(_mm512_loadu_si512(b.add(vector * LANES).cast()))
                    });
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = _mm512_castsi512_ph(_mm512_set1_epi32(*self.a.add(row * STRIDE + k) as i32));
                        for (sum, numbers) in sums.iter_mut().zip(&numbers) {
                            *sum = _mm512_fmadd_ph(a, *numbers, *sum);
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate().take(rows) {
                for (vector, sum) in sums.iter().enumerate() {
                    let halves = _mm512_castph_si512(*sum);
                    let halves = [_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves)];
                    for (half, sum) in halves.into_iter().enumerate() {
                        let column = vector * LANES + half * 16;
                        let mask = first(columns.saturating_sub(column));
                        // SAFETY: guaranteed by the caller; masked elements are not accessed.
                        unsafe {
                            let out = self.out.0.wrapping_add(row * self.out.1 + column);
                            let old = _mm512_maskz_loadu_ps(if self.keep || top > 0 { mask } else { 0 }, out);
                            let sum = _mm512_cvtxph_ps(_mm256_castsi256_ph(sum));
                            _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(factor, sum, old));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, check_rounding};
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn products_in_f16_are_their_sums() {
        if !available() {
            return eprintln!("SKIPPED: this processor has no f16 vector instructions");
        }
        let few = [1, 2, 5, 6, 7, 31, 33, 65, 129];
        let small = few.iter().flat_map(|m| few.map(|k| few.map(|n| [*m, k, n]))).flatten();
        let large = [[70, 800, 40], [100, 33, WIDTH + 50], [64, 64, 256], [33, 500, 2 * WIDTH]];
        for (case, shape) in small.chain(large).enumerate() {
            for across in [false, true] {
                let (keep, factor) = (case % 2 == 0, if case % 3 == 0 { 2.0 } else { 1.0 });
                // SAFETY: the matrices have the stated sizes, and the instructions are available.
                Case::new(shape, [false, across], (keep, factor))
                    .check_tile(false, |tile| unsafe { tile.compute_in_f16() });
            }
        }
    }

    #[test]
    fn factors_are_rounded_to_the_nearest_f16() {
        if !available() {
            return eprintln!("SKIPPED: this processor has no f16 vector instructions");
        }
        for across in [false, true] {
            // SAFETY: the matrices have the stated sizes, and the instructions are available.
            check_rounding([false, across], |x| f16::from_f32(x).to_f32(), |tile| unsafe { tile.compute_in_f16() });
        }
    }

    #[test]
    fn sums_in_f16_err_less_than_factors_rounded_to_bf16() {
        if !available() {
            return eprintln!("SKIPPED: this processor has no f16 vector instructions");
        }
        for k in [16, 64, 384, 1536] {
            let (m, n) = (24, 130);
            let numbers =
                |n: usize, turn: f64| -> Vec<f32> { (0..n).map(|i| (i as f64 * turn).sin() as f32).collect() };
            let (a, b) = (numbers(m * k, 1.234_567), numbers(k * n, 7.654_321));
            let mut written = vec![0.0; m * n];
            let (out, room) = ((written.as_mut_ptr(), n), &mut Vec::new());
            let (rows, columns, shape) = (Matrix::rows(&a, k), Matrix::rows(&b, n), [m, k, n]);
            let tile = Tile { shape, a: rows, b: columns, out, keep: false, factor: 1.0, follow: false, room };
            // SAFETY: the matrices have the stated sizes, and the instructions are available.
            unsafe { tile.compute_in_f16() };
            let (mut in_f16, mut in_bf16) = (0.0, 0.0);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let sum = |rounded: fn(f32) -> f64| -> f64 {
                    (0..k).map(|l| rounded(a[i * k + l]) * rounded(b[l * n + j])).sum()
                };
                let exact = sum(f64::from);
                in_f16 += (f64::from(written[i * n + j]) - exact).powi(2);
                in_bf16 += (sum(|x| bf16::from_f32(x).to_f64()) - exact).powi(2);
            }
            assert!(in_f16 < in_bf16, "sums of {k}: {in_f16:.1e} and {in_bf16:.1e}");
        }
    }
}

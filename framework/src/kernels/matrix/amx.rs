//! Products on the matrix units of a processor (Intel AMX). Factors are rounded to bf16; sums are computed in
//! f32.
//!
//! The units multiply tiles of 16 lines of 64 bytes each. A tile of `a` holds 16 rows of 32 elements. A tile of
//! `b` holds 32 rows of 16 columns; each line interleaves the elements of two consecutive rows. A tile of `out`
//! holds 16 rows of 16 sums. All eight tile registers form a block: two tiles of `a` times two tiles of `b`
//! give four tiles of `out`.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, "Programming with Intel
//! Advanced Matrix Extensions".

use super::super::math::Number;
use super::{Line, Tile, broad, deep, room_in};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Rows per tile of `a`, columns per tile of `b`, and lines per tile.
const SIDE: usize = 16;
/// Terms per sum in the product of two tiles.
const STEP: usize = 32;
/// Rows and columns of `out` per block.
const BLOCK: usize = 2 * SIDE;
/// Columns of `b` that are packed at a time; a block of [`super::DEEP`] rows fits the L2 cache.
const WIDTH: usize = broad::<f32>();

/// Returns whether this processor has the units and the operating system lets this process use them.
pub(super) fn available() -> bool {
    /// Bits of `edx` in CPUID leaf 7 for AMX-BF16 and AMX-TILE.
    const INSTRUCTIONS: u32 = 1 << 22 | 1 << 24;
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let leaf = |leaf| __cpuid_count(leaf, 0);
        can_pack() && leaf(0).eax >= 7 && leaf(7).edx & INSTRUCTIONS == INSTRUCTIONS && permitted()
    })
}

/// Returns whether this processor has the instructions that packing requires. Every processor with the units
/// has them.
fn can_pack() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Asks Linux for permission to use the tile registers. Linux then reserves memory to save them at context
/// switches.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call changes only the permission of this process to use the registers.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Computes a tile of f32 elements. The rows or the columns of `a` must be contiguous, and likewise for `b`.
pub(super) fn compute<T: Number>(tile: Tile<'_, T>) {
    assert!(available(), "the processor has no matrix units");
    // SAFETY: the units are available, and `multiply` asserted that the matrices of the tile are within bounds.
    unsafe { tile.of_f32().compute_on::<Amx>() };
}

impl Tile<'_, f32> {
    /// Computes the tile on the units `U`.
    ///
    /// # Safety
    /// All three matrices are within bounds, the processor [`can_pack`], and the units `U` are available.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn compute_on<U: Units>(self) {
        let [m, k, n] = self.shape;
        let deep = deep(k).next_multiple_of(STEP);
        // Lines per row of tiles of `a`, or per column of tiles of `b`.
        let column = deep / STEP * SIDE;
        let packed_a = room_in::<Line>(self.room, column * (2 + WIDTH / SIDE) + BLOCK * BLOCK / SIDE);
        let packed_b = packed_a.wrapping_add(2 * column);
        let sums = packed_b.wrapping_add(WIDTH / SIDE * column).cast::<f32>();
        let units = U::begin();
        for (left, top) in (0..n).step_by(WIDTH).flat_map(|left| (0..k).step_by(deep).map(move |top| (left, top))) {
            let (width, depth) = (WIDTH.min(n - left), deep.min(k - top));
            let steps = depth.div_ceil(STEP);
            let b = self.b.from([top, left]);
            // SAFETY: all accesses are within `a`, `b`, `out` and the packed copies.
            unsafe {
                // A block has two columns of tiles; the second may be all zeros.
                for tile in 0..2 * width.div_ceil(BLOCK) {
                    let columns = SIDE.min(width.saturating_sub(tile * SIDE));
                    for step in 0..steps {
                        let (rows, place) = (STEP.min(depth - step * STEP), [step * STEP, tile * SIDE]);
                        let (from, to) = (b.at(place[0], place[1]), packed_b.add((tile * steps + step) * SIDE));
                        match b.column {
                            1 => write(across(from, b.row, [rows, columns]), to),
                            apart => write(turned(along(from, apart, [columns, rows])), to),
                        }
                    }
                }
                for i in (0..m).step_by(BLOCK) {
                    let rows = BLOCK.min(m - i);
                    let a = self.a.from([i, top]);
                    for (tile, step) in (0..2).flat_map(|tile| (0..steps).map(move |step| (tile, step))) {
                        let (rows, columns) =
                            (SIDE.min(rows.saturating_sub(tile * SIDE)), STEP.min(depth - step * STEP));
                        let from = a.at(tile * SIDE, step * STEP);
                        let to = packed_a.add((tile * steps + step) * SIDE);
                        match a.column {
                            1 => write(along(from, a.row, [rows, columns]), to),
                            apart => write(turned(across(from, apart, [columns, rows])), to),
                        }
                    }
                    for j in (0..width).step_by(BLOCK) {
                        let size = [rows, BLOCK.min(width - j)];
                        let out = (self.out.0.add(i * self.out.1 + left + j), self.out.1);
                        let keep = self.keep || top > 0;
                        let b = packed_b.add(j / SIDE * steps * SIDE).cast_const();
                        let block = |out, keep| Block { steps, a: packed_a, b, out, keep };
                        if size == [BLOCK, BLOCK] && self.factor == 1.0 {
                            units.add(block(out, keep));
                        } else {
                            units.add(block((sums, BLOCK), false));
                            merge((sums, BLOCK), out, size, keep, self.factor);
                        }
                    }
                }
            }
        }
    }
}

/// A block of sums, kept in registers while the products of tiles are added to it.
struct Block {
    /// Products of tiles per sum; at least one.
    steps: usize,
    /// Two rows of `steps` tiles; the second follows the first.
    a: *const Line,
    /// Two columns of `steps` tiles; the second follows the first.
    b: *const Line,
    /// Start and row stride.
    out: (*mut f32, usize),
    /// Whether the sums start from the values in `out`.
    keep: bool,
}

/// An implementation of the tile products.
trait Units {
    /// Configures the units for this thread.
    fn begin() -> Self;
    /// Computes a block.
    ///
    /// # Safety
    /// The tiles of `block` can be read, and [`BLOCK`] rows of [`BLOCK`] elements of `out` can be read and
    /// written.
    unsafe fn add(&self, block: Block);
}

/// The units of the processor, configured until this value is dropped.
struct Amx(());

impl Units for Amx {
    fn begin() -> Self {
        /// The configuration that `ldtilecfg` reads.
        #[repr(C, align(64))]
        struct Tiles {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes: [u16; 16],
            lines: [u8; 16],
        }
        let mut tiles = Tiles { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], lines: [0; 16] };
        tiles.bytes[..8].fill(size_of::<Line>() as u16);
        tiles.lines[..8].fill(SIDE as u8);
        // SAFETY: the units are available, and compiled code does not use their registers.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const tiles, options(readonly, nostack, preserves_flags)) };
        Self(())
    }

    unsafe fn add(&self, block: Block) {
        let second = block.steps * SIDE * size_of::<Line>();
        let row = block.out.1 * size_of::<f32>();
        let below = block.out.0.wrapping_add(SIDE * block.out.1);
        // SAFETY: guaranteed by the caller; the units stay configured while `self` exists. Tiles 0 to 3 hold
        // the sums, 4 and 5 hold `a`, 6 and 7 hold `b`.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "test {keep:e}, {keep:e}",
                "jz 2f",
                "tileloadd tmm0, [{out} + {row}]",
                "tileloadd tmm1, [{out} + {row} + 64]",
                "tileloadd tmm2, [{below} + {row}]",
                "tileloadd tmm3, [{below} + {row} + 64]",
                "2:",
                "tileloadd tmm4, [{a} + {line}]",
                "tileloadd tmm6, [{b} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b2} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a2} + {line}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 1024",
                "add {a2}, 1024",
                "add {b}, 1024",
                "add {b2}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{out} + {row}], tmm0",
                "tilestored [{out} + {row} + 64], tmm1",
                "tilestored [{below} + {row}], tmm2",
                "tilestored [{below} + {row} + 64], tmm3",
                keep = in(reg) u32::from(block.keep),
                a = inout(reg) block.a => _,
                a2 = inout(reg) block.a.wrapping_byte_add(second) => _,
                b = inout(reg) block.b => _,
                b2 = inout(reg) block.b.wrapping_byte_add(second) => _,
                steps = inout(reg) block.steps => _,
                out = in(reg) block.out.0,
                below = in(reg) below,
                row = in(reg) row,
                line = in(reg) size_of::<Line>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Amx {
    fn drop(&mut self) {
        // SAFETY: the units are available, and their results are already in `out`.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Computes `out = keep out + factor sums` for `[rows, columns]` of a block.
///
/// # Safety
/// `[rows, columns]` of `sums` can be read, and of `out` can be read and written.
#[target_feature(enable = "avx512f")]
unsafe fn merge(
    sums: (*const f32, usize),
    out: (*mut f32, usize),
    [rows, columns]: [usize; 2],
    keep: bool,
    factor: f32,
) {
    let factor = _mm512_set1_ps(factor);
    for (row, column) in (0..rows).flat_map(|row| (0..columns).step_by(SIDE).map(move |column| (row, column))) {
        let mask = first(columns - column);
        // SAFETY: guaranteed by the caller; masked elements are not accessed.
        unsafe {
            let out = out.0.add(row * out.1 + column);
            let sums = _mm512_maskz_loadu_ps(mask, sums.0.add(row * sums.1 + column));
            let old = _mm512_maskz_loadu_ps(if keep { mask } else { 0 }, out);
            _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(factor, sums, old));
        }
    }
}

/// The lines of a tile.
type Lines = [__m512i; SIDE];

/// Returns the mask of the first `n` elements of a register.
pub(super) fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(SIDE)) - 1) as __mmask16
}

/// Reads one line per row of up to [`STEP`] elements, with the row stride `apart`. Elements beyond `rows` and
/// `columns` are zero.
///
/// # Safety
/// The elements can be read.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn along(from: *const f32, apart: usize, [rows, columns]: [usize; 2]) -> Lines {
    let masks = [first(columns), first(columns.saturating_sub(SIDE))];
    let mut lines = [_mm512_setzero_si512(); SIDE];
    for (row, line) in lines[..rows].iter_mut().enumerate() {
        // SAFETY: guaranteed by the caller; masked elements are not read.
        *line = unsafe {
            let halves =
                [0, 1].map(|half| _mm512_maskz_loadu_ps(masks[half], from.wrapping_add(row * apart + half * SIDE)));
            rounded(halves)
        };
    }
    lines
}

/// Reads one line per pair of up to [`STEP`] rows, with the row stride `apart`, and interleaves the elements of
/// the pair. Elements beyond `rows` and `columns` are zero.
///
/// # Safety
/// The elements can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn across(from: *const f32, apart: usize, [rows, columns]: [usize; 2]) -> Lines {
    // Elements 0 and 16, 1 and 17, ...
    let order = _mm512_add_epi32(
        _mm512_set1_epi32(16 << 16),
        _mm512_mullo_epi32(
            _mm512_set1_epi32(1 << 16 | 1),
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        ),
    );
    let mask = first(columns);
    let mut lines = [_mm512_setzero_si512(); SIDE];
    for (pair, line) in lines[..rows.div_ceil(2)].iter_mut().enumerate() {
        // SAFETY: guaranteed by the caller; masked elements are not read.
        *line = unsafe {
            let halves = [2 * pair, 2 * pair + 1]
                .map(|row| _mm512_maskz_loadu_ps(if row < rows { mask } else { 0 }, from.wrapping_add(row * apart)));
            _mm512_permutexvar_epi16(order, rounded(halves))
        };
    }
    lines
}

/// Rounds two registers to the nearest bf16 and concatenates them.
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded([low, high]: [__m512; 2]) -> __m512i {
    // SAFETY: every bit pattern is valid for both types.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Transposes a tile whose elements are pairs of bf16 values.
#[target_feature(enable = "avx512f")]
fn turned(lines: Lines) -> Lines {
    let mut pairs = lines;
    for i in (0..SIDE).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(lines[i], lines[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(lines[i], lines[i + 1]);
    }
    // Transpose 4x4 squares within each quarter of a register: row `4 q + c` holds column `c` of the four lines
    // from `4 q` on.
    let mut squares = pairs;
    for i in (0..SIDE).step_by(4) {
        squares[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        squares[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        squares[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        squares[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = squares;
    for c in 0..4 {
        let [first, second, third, fourth] = [0, 4, 8, 12].map(|q| squares[q + c]);
        // Quarters 0 and 2, and quarters 1 and 3, of two registers.
        let even = [_mm512_shuffle_i32x4::<0x88>(first, second), _mm512_shuffle_i32x4::<0x88>(third, fourth)];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(first, second), _mm512_shuffle_i32x4::<0xdd>(third, fourth)];
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    columns
}

/// Writes the lines of a tile.
///
/// # Safety
/// `to` is aligned and has room for the lines.
#[target_feature(enable = "avx512f")]
unsafe fn write(lines: Lines, to: *mut Line) {
    for (i, line) in lines.into_iter().enumerate() {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_store_si512(to.add(i).cast(), line) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, check_rounding};
    use super::*;

    /// A model of the units as described in the manual.
    struct Described;

    impl Units for Described {
        fn begin() -> Self {
            Self
        }

        unsafe fn add(&self, block: Block) {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let number = |tile: *const Line, line: usize, i: usize| {
                    f32::from_bits(u32::from(*tile.add(line).cast::<u16>().add(i)) << 16)
                };
                for (row, column) in (0..BLOCK).flat_map(|row| (0..BLOCK).map(move |column| (row, column))) {
                    let (a, b) = (row / SIDE * block.steps * SIDE, column / SIDE * block.steps * SIDE);
                    let out = block.out.0.add(row * block.out.1 + column);
                    let mut sum = if block.keep { *out } else { 0.0 };
                    for (step, k) in (0..block.steps).flat_map(|step| (0..STEP).map(move |k| (step, k))) {
                        let (a, b) = (block.a.add(a + step * SIDE), block.b.add(b + step * SIDE));
                        sum += number(a, row % SIDE, k) * number(b, k / 2, column % SIDE * 2 + k % 2);
                    }
                    *out = sum;
                }
            }
        }
    }

    #[test]
    fn products_on_matrix_units_are_their_sums() {
        if !can_pack() {
            return eprintln!("SKIPPED: this processor has no AVX-512 with bf16");
        }
        if !available() {
            eprintln!("SKIPPED: this processor has no matrix units; only the code around them is tested");
        }
        let few = [1, 2, 15, 16, 17, 32, 33, 65];
        let small = few.iter().flat_map(|m| few.map(|k| few.map(|n| [*m, k, n]))).flatten();
        let large = [[70, 800, 40], [100, 33, WIDTH + 50], [64, 64, 64], [33, 500, 2 * WIDTH]];
        for (case, shape) in small.chain(large).enumerate() {
            for layout in 0..4 {
                let across = [layout & 1 == 1, layout & 2 == 2];
                let (keep, factor) = (case % 2 == 0, if case % 3 == 0 { 2.0 } else { 1.0 });
                let case = Case::new(shape, across, (keep, factor));
                // SAFETY: the matrices have the stated sizes, and the processor can pack.
                case.check_tile(false, |tile| unsafe { tile.compute_on::<Described>() });
                if available() {
                    // SAFETY: as above, and the processor has the units.
                    case.check_tile(false, |tile| unsafe { tile.compute_on::<Amx>() });
                }
            }
        }
    }

    #[test]
    fn factors_are_rounded_to_the_nearest_bf16() {
        if !can_pack() {
            return eprintln!("SKIPPED: this processor has no AVX-512 with bf16");
        }
        for layout in 0..4 {
            let across = [layout & 1 == 1, layout & 2 == 2];
            // SAFETY: the matrices have the stated sizes, and the processor can pack.
            let compute = |tile: Tile<'_, f32>| unsafe { tile.compute_on::<Described>() };
            check_rounding(across, |x| half::bf16::from_f32(x).to_f32(), compute);
        }
    }
}

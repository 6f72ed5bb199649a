//! Products on a processor's matrix units (Intel AMX): factors are rounded to bf16, sums are f32's.
//!
//! The units multiply tiles, 16 lines of 64 bytes each. A tile of `a` holds 16 rows of 32 numbers. One of `b` holds 16
//! columns of 32: its lines are pairs of rows, number beside number. A tile of `out` holds 16 rows of 16 sums. All
//! eight tile registers make a block: two tiles of `a` times two of `b` are four of `out`.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, "Programming with Intel Advanced Matrix
//! Extensions".

use super::super::math::Number;
use super::{Line, Tile, broad, deep, room_in};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Rows of a tile of `a`, columns of one of `b`, and lines of any.
const SIDE: usize = 16;
/// Numbers that a product of two tiles adds up.
const STEP: usize = 32;
/// Rows and columns of `out` in a block.
const BLOCK: usize = 2 * SIDE;
/// Columns of `b` that are packed at a time; with [`super::DEEP`] rows they fit the second cache.
const WIDTH: usize = broad::<f32>();

/// Whether this processor has the units and the system lets this process use them.
pub(super) fn available() -> bool {
    /// Bits of `edx` that stand for the instructions on bf16 and on tiles, in leaf 7.
    const INSTRUCTIONS: u32 = 1 << 22 | 1 << 24;
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let leaf = |leaf| __cpuid_count(leaf, 0);
        can_pack() && leaf(0).eax >= 7 && leaf(7).edx & INSTRUCTIONS == INSTRUCTIONS && permitted()
    })
}

/// Whether this processor has the instructions that packing takes: all with the units do.
fn can_pack() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Asks the system for room for tiles where it keeps the registers of threads.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: it changes nothing but this process's right to the registers.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Computes a tile of f32 numbers; the rows or the columns of `a` follow one another, as do those of `b`.
pub(super) fn compute<T: Number>(tile: Tile<'_, T>) {
    assert!(available(), "a processor with matrix units");
    // SAFETY: the units are there, and `multiply` asserted that the tile's matrices lie within their numbers.
    unsafe { tile.of_f32().compute_on::<Amx>() };
}

impl Tile<'_, f32> {
    /// On `U`.
    ///
    /// # Safety
    /// Its three matrices lie within their numbers, and the processor [`can_pack`] and has the units.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn compute_on<U: Units>(self) {
        let [m, k, n] = self.shape;
        let deep = deep(k).next_multiple_of(STEP);
        // Lines of a row of tiles of `a`, or of a column of tiles of `b`.
        let column = deep / STEP * SIDE;
        let packed_a = room_in::<Line>(self.room, column * (2 + WIDTH / SIDE) + BLOCK * BLOCK / SIDE);
        let packed_b = packed_a.wrapping_add(2 * column);
        let sums = packed_b.wrapping_add(WIDTH / SIDE * column).cast::<f32>();
        let units = U::begin();
        for (left, top) in (0..n).step_by(WIDTH).flat_map(|left| (0..k).step_by(deep).map(move |top| (left, top))) {
            let (width, depth) = (WIDTH.min(n - left), deep.min(k - top));
            let steps = depth.div_ceil(STEP);
            let b = self.b.from([top, left]);
            // SAFETY: all of it lies within `a`, `b`, `out` and their packed copies.
            unsafe {
                // Blocks take two columns of tiles; the second may be all zeros.
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

/// A block of sums, kept in registers while products of tiles are added to them.
struct Block {
    /// Products of tiles to a sum; at least one.
    steps: usize,
    /// Two rows of `steps` tiles, one after the other.
    a: *const Line,
    /// Two columns of `steps` tiles, one after the other.
    b: *const Line,
    /// Where it begins, and how far apart its rows lie.
    out: (*mut f32, usize),
    /// Whether sums begin with what `out` holds.
    keep: bool,
}

/// What multiplies tiles.
trait Units {
    /// Makes them ready, on this thread.
    fn begin() -> Self;
    /// Adds up a block.
    ///
    /// # Safety
    /// Its tiles can be read, and [`BLOCK`] rows of as many numbers be read and written in `out`.
    unsafe fn add(&self, block: Block);
}

/// Those of the processor, until it is dropped.
struct Amx(());

impl Units for Amx {
    fn begin() -> Self {
        /// As `ldtilecfg` reads it.
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
        // SAFETY: the units are there, and compiled code does not touch their registers.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const tiles, options(readonly, nostack, preserves_flags)) };
        Self(())
    }

    unsafe fn add(&self, block: Block) {
        let second = block.steps * SIDE * size_of::<Line>();
        let row = block.out.1 * size_of::<f32>();
        let below = block.out.0.wrapping_add(SIDE * block.out.1);
        // SAFETY: the caller's; the units are ready as long as `self` lives. Tiles 0 to 3 are sums, 4 and 5 of `a`, 6
        // and 7 of `b`.
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
        // SAFETY: the units are there; what they hold is in `out`.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// `out = keep out + factor sums` for a block's `size`.
///
/// # Safety
/// `size` of both can be read, and of `out` be written.
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
        // SAFETY: the caller's; beyond the mask nothing is read or written.
        unsafe {
            let out = out.0.add(row * out.1 + column);
            let sums = _mm512_maskz_loadu_ps(mask, sums.0.add(row * sums.1 + column));
            let old = _mm512_maskz_loadu_ps(if keep { mask } else { 0 }, out);
            _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(factor, sums, old));
        }
    }
}

/// Lines of a tile.
type Lines = [__m512i; SIDE];

/// The first `n` numbers of a register.
pub(super) fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(SIDE)) - 1) as __mmask16
}

/// A line for each row of up to [`STEP`] numbers, rows `apart`; zeros beyond `rows` and `columns`.
///
/// # Safety
/// They can be read.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn along(from: *const f32, apart: usize, [rows, columns]: [usize; 2]) -> Lines {
    let masks = [first(columns), first(columns.saturating_sub(SIDE))];
    let mut lines = [_mm512_setzero_si512(); SIDE];
    for (row, line) in lines[..rows].iter_mut().enumerate() {
        // SAFETY: the caller's; beyond the masks nothing is read.
        *line = unsafe {
            let halves =
                [0, 1].map(|half| _mm512_maskz_loadu_ps(masks[half], from.wrapping_add(row * apart + half * SIDE)));
            rounded(halves)
        };
    }
    lines
}

/// A line for each two of up to [`STEP`] rows, their numbers side by side, rows `apart`; zeros beyond `rows` and `columns`.
///
/// # Safety
/// They can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn across(from: *const f32, apart: usize, [rows, columns]: [usize; 2]) -> Lines {
    // Numbers 0 and 16, 1 and 17, ...
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
        // SAFETY: the caller's; beyond the masks nothing is read.
        *line = unsafe {
            let halves = [2 * pair, 2 * pair + 1]
                .map(|row| _mm512_maskz_loadu_ps(if row < rows { mask } else { 0 }, from.wrapping_add(row * apart)));
            _mm512_permutexvar_epi16(order, rounded(halves))
        };
    }
    lines
}

/// Numbers of two registers, rounded to the nearest bf16, one after the other.
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded([low, high]: [__m512; 2]) -> __m512i {
    // SAFETY: every pattern of bits is both.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Lines of pairs of numbers become columns of them.
#[target_feature(enable = "avx512f")]
fn turned(lines: Lines) -> Lines {
    let mut pairs = lines;
    for i in (0..SIDE).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(lines[i], lines[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(lines[i], lines[i + 1]);
    }
    // Squares of four within each quarter of a register: row `4 q + c` holds column `c` of four lines from `4 q` on.
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
        // Quarters 0 and 2, and 1 and 3, of two registers.
        let even = [_mm512_shuffle_i32x4::<0x88>(first, second), _mm512_shuffle_i32x4::<0x88>(third, fourth)];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(first, second), _mm512_shuffle_i32x4::<0xdd>(third, fourth)];
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    columns
}

/// # Safety
/// There is room for the lines, aligned.
#[target_feature(enable = "avx512f")]
unsafe fn write(lines: Lines, to: *mut Line) {
    for (i, line) in lines.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { _mm512_store_si512(to.add(i).cast(), line) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, check_rounding};
    use super::*;

    /// Units as their manual describes them.
    struct Described;

    impl Units for Described {
        fn begin() -> Self {
            Self
        }

        unsafe fn add(&self, block: Block) {
            // SAFETY: the caller's.
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
            return eprintln!("left out: no AVX-512 with bf16 on this processor");
        }
        if !available() {
            eprintln!("this processor has no matrix units: only what surrounds them is tested");
        }
        let few = [1, 2, 15, 16, 17, 32, 33, 65];
        let small = few.iter().flat_map(|m| few.map(|k| few.map(|n| [*m, k, n]))).flatten();
        let large = [[70, 800, 40], [100, 33, WIDTH + 50], [64, 64, 64], [33, 500, 2 * WIDTH]];
        for (case, shape) in small.chain(large).enumerate() {
            for layout in 0..4 {
                let across = [layout & 1 == 1, layout & 2 == 2];
                let (keep, factor) = (case % 2 == 0, if case % 3 == 0 { 2.0 } else { 1.0 });
                let case = Case::new(shape, across, (keep, factor));
                // SAFETY: the matrices are as large as they say, and the processor can pack.
                case.check_tile(false, |tile| unsafe { tile.compute_on::<Described>() });
                if available() {
                    // SAFETY: so they are, and it has the units.
                    case.check_tile(false, |tile| unsafe { tile.compute_on::<Amx>() });
                }
            }
        }
    }

    #[test]
    fn factors_are_rounded_to_the_nearest_bf16() {
        if !can_pack() {
            return eprintln!("left out: no AVX-512 with bf16 on this processor");
        }
        for layout in 0..4 {
            let across = [layout & 1 == 1, layout & 2 == 2];
            // SAFETY: the matrices are as large as they say, and the processor can pack.
            let compute = |tile: Tile<'_, f32>| unsafe { tile.compute_on::<Described>() };
            check_rounding(across, |x| half::bf16::from_f32(x).to_f32(), compute);
        }
    }
}

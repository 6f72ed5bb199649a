//! Products of strided matrices.
//!
//! A product is split into tiles, one thread per tile. A tile packs a block of `b` that fits the L2 cache into
//! panels, each a few vector registers wide, and multiplies them with rows of `a` that fit the L1 cache. The
//! innermost loop keeps [`ROWS`] rows of `out`, one panel wide, in registers.
//!
//! An element of `out` is summed in the order of `k`, in blocks and runs that depend on `k` alone. The result
//! is therefore bit-identical for every split into tiles and every number of threads. Where bf16 is precise
//! enough, the matrix units of the processor compute the tile.
//!
//! Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod f16;

use super::math::Number;
use burn::tensor::DType;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::any::TypeId;
use std::cell::RefCell;

/// A read-only matrix with the given row and column strides.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// The elements, starting with the first one of the matrix.
    pub values: &'a [T],
    /// Stride of the rows, in elements.
    pub row: usize,
    /// Stride of the columns, in elements.
    pub column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Creates a row-major matrix with rows of `width` elements.
    pub fn rows(values: &'a [T], width: usize) -> Self {
        Self { values, row: width, column: 1 }
    }

    /// Returns the transposed matrix.
    pub fn transposed(self) -> Self {
        Self { values: self.values, row: self.column, column: self.row }
    }

    /// Returns the submatrix that starts at the given row and column.
    fn from(self, [row, column]: [usize; 2]) -> Self {
        Self { values: &self.values[row * self.row + column * self.column..], ..self }
    }

    /// Returns the address of the element in `row` and `column`.
    fn at(&self, row: usize, column: usize) -> *const T {
        self.values.as_ptr().wrapping_add(row * self.row + column * self.column)
    }

    /// Asserts that a matrix of `[rows, columns]` fits into `values`.
    fn assert_holds(&self, [rows, columns]: [usize; 2]) {
        let last = (rows - 1) * self.row + (columns - 1) * self.column;
        assert!(last < self.values.len(), "the matrix exceeds its values");
    }
}

/// A mutable row-major matrix with the row stride `row`.
pub struct MatrixMut<'a, T> {
    /// The elements, starting with the first one of the matrix.
    pub values: &'a mut [T],
    /// Stride of the rows, in elements.
    pub row: usize,
}

/// The types to which the factors of a product may be rounded where the processor multiplies such values
/// faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// The factors are not rounded.
    None,
    /// The factors may be rounded to bf16.
    Bf16,
    /// The factors may be rounded to bf16 or f16, whichever is faster. Sums of a few products may be computed
    /// in f16. Values beyond 65,504, the maximum of f16, overflow to infinity.
    Half,
}

impl Rounding {
    /// Returns the rounding for tensors of `dtype`.
    pub fn of(dtype: DType) -> Self {
        if dtype == DType::BF16 { Self::Bf16 } else { Self::None }
    }

    /// Returns whether this processor has matrix units that multiply such rounded factors.
    pub fn has_units(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self != Self::None && amx::available();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// Rows of `out` that the innermost loop keeps in registers. Each row takes 4 registers where there are 32, and
/// 2 where there are 16: 24 or 12 running sums, more than the latency of the processor requires.
const ROWS: usize = 6;
/// Row slots per packed panel of `a` if its columns are contiguous: [`ROWS`], rounded up to a power of two.
const ACROSS: usize = 8;
/// Elements per block in the direction of `k`; panels of `a` then fit the L1 cache.
const DEEP: usize = 384;
/// Bytes per row of a block of `b`; a block of `DEEP` rows fits the L2 cache.
const BROAD: usize = 2048;
/// Row stride of a packed panel of `a`, in elements. It is a little more than `DEEP`, so that not all rows map
/// to the same cache set.
const STRIDE: usize = DEEP + 16;
/// Rows of `a` that are packed at a time if its columns are contiguous.
const TALL: usize = 96;
/// Maximum number of rows of `a` for which `b` is not packed: packing would take as long as the product.
const FEW: usize = 16;
/// Size of `b`, in bytes, above which it is assumed to be in main memory and not in a cache. With few rows of
/// `a`, the product then reads `b` row by row, which is the fastest way to read memory.
const CACHE: usize = 1 << 20;
/// Bytes per row of `b` that a row-by-row pass reads; the sums of the pass then stay in a near cache.
const LONG: usize = 4096;
/// Maximum number of rows per tile, before rounding. Packing the blocks of `b` then takes a thousandth of the
/// tile's work.
const TILE: usize = 1024;
/// Minimum tile width in columns, before rounding, for splits that only serve to occupy all threads.
const LEAST: usize = 128;
/// Minimum number of tiles per thread. A delayed thread then delays the product only a little.
const TILES: usize = 3;
/// Tile widths are multiples of this number, and so are tile heights for matrix units. It is a multiple of the
/// panel width on every processor.
const UNIT: usize = 64;
/// Products that a register sums before the sum is added to the total; a longer sum would round more. A
/// multiple of [`STEPS`].
const RUN: usize = 64;
/// Unrolled steps of `k` in the innermost loop.
const STEPS: usize = 4;
/// Prefetch distance, in steps of `k`, for `b` and for the part of `a` that is being packed.
const AHEAD: usize = 8;

/// Computes `out = keep out + factor a b`. Shapes: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`. Either the rows
/// or the columns of `a` must be contiguous. Uses all threads if `wide`, otherwise the current thread.
pub fn multiply<T: Number>(
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    out: MatrixMut<'_, T>,
    (keep, factor): (bool, T),
    wide: bool,
    rounding: Rounding,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        let rows = out.values.chunks_mut(out.row).take(if keep { 0 } else { m });
        return rows.for_each(|row| row[..n].fill(T::of(0.0)));
    }
    a.assert_holds([m, k]);
    b.assert_holds([k, n]);
    assert!(out.row >= n && (m - 1) * out.row + n <= out.values.len(), "the product exceeds the values of `out`");
    let start = Start(out.values.as_mut_ptr());
    let follow = b.column == 1 && m <= FEW && k * n * size_of::<T>() > CACHE;
    let arithmetic = Arithmetic::of([m, k, n], a, b, rounding);
    let tile = |[i, j]: [usize; 2], [m, n]: [usize; 2]| {
        ROOM.with_borrow_mut(|room| {
            let out = (start.at(i * out.row + j), out.row);
            let (a, b) = (a.from([i, 0]), b.from([0, j]));
            let tile = Tile { shape: [m, k, n], a, b, out, keep, factor, follow, room };
            match arithmetic {
                Arithmetic::Own => pulp::Arch::new().dispatch(tile),
                #[cfg(target_arch = "x86_64")]
                Arithmetic::Units => amx::compute(tile),
                #[cfg(target_arch = "x86_64")]
                Arithmetic::F16 => f16::compute(tile),
            }
        });
    };
    if !wide {
        return tile([0, 0], [m, n]);
    }
    let tiles = TILES * rayon::current_num_threads();
    let columns = n.div_ceil(broad::<T>());
    let rows = m.div_ceil(TILE).max(tiles.div_ceil(columns).min(m.div_ceil(TALL)));
    let columns = columns.max(tiles.div_ceil(rows).min(n.div_ceil(LEAST)));
    (0..rows * columns).into_par_iter().for_each(|place| {
        let [i, height] = cut(m, arithmetic.rows(), rows, place / columns);
        let [j, width] = cut(n, UNIT, columns, place % columns);
        if height > 0 && width > 0 {
            tile([i, j], [height, width]);
        }
    });
}

/// The instructions that compute a product.
#[derive(Clone, Copy)]
enum Arithmetic {
    /// Vector instructions of the element type.
    Own,
    /// Matrix units.
    #[cfg(target_arch = "x86_64")]
    Units,
    /// Vector instructions on f16.
    #[cfg(target_arch = "x86_64")]
    F16,
}

impl Arithmetic {
    /// Returns the fastest arithmetic that `rounding` and the layouts allow.
    #[cfg(target_arch = "x86_64")]
    fn of<T: Number>([m, ..]: [usize; 3], a: Matrix<'_, T>, b: Matrix<'_, T>, rounding: Rounding) -> Self {
        let rounds = rounding != Rounding::None && TypeId::of::<T>() == TypeId::of::<f32>() && m > FEW;
        let along = |x: Matrix<'_, T>| x.row == 1 || x.column == 1;
        if rounds && along(a) && along(b) && rounding.has_units() {
            Self::Units
        } else if rounds && rounding == Rounding::Half && a.column == 1 && f16::available() {
            Self::F16
        } else {
            Self::Own
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of<T>(_: [usize; 3], _: Matrix<'_, T>, _: Matrix<'_, T>, _: Rounding) -> Self {
        Self::Own
    }

    /// Returns the unit of tile heights; every height except the last is a multiple of this unit.
    fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Units => UNIT,
            _ => ROWS,
        }
    }
}

/// Returns the number of columns per block of `b`.
const fn broad<T>() -> usize {
    BROAD / size_of::<T>()
}

/// Returns the number of elements per block in the direction of `k`. All blocks are nearly equal. The size
/// depends on `k` alone, because it determines the order of summation.
const fn deep(k: usize) -> usize {
    k.div_ceil(k.div_ceil(DEEP))
}

/// Returns the number of elements per vector register.
const fn lanes<T: Number, S: Simd>() -> usize {
    size_of::<T::Vector<S>>() / size_of::<T>()
}

/// Splits `0..n` into `parts` nearly equal parts and returns the start and length of part `part`. All lengths
/// but the last are multiples of `unit`.
fn cut(n: usize, unit: usize, parts: usize, part: usize) -> [usize; 2] {
    let place = |part: usize| (n.div_ceil(unit) * part / parts * unit).min(n);
    [place(part), place(part + 1) - place(part)]
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "accessed as elements of the packed type")] [u8; 64]);

thread_local! {
    /// The packing buffer of this thread.
    static ROOM: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Returns the start of a buffer for `numbers` elements in `lines`, which grows if necessary.
fn room_in<T>(lines: &mut Vec<Line>, numbers: usize) -> *mut T {
    let needed = (numbers * size_of::<T>()).div_ceil(size_of::<Line>());
    if lines.len() < needed {
        lines.resize(needed, Line([0; 64]));
    }
    lines.as_mut_ptr().cast()
}

/// The start of `out`, shared by the threads that write its tiles.
#[derive(Clone, Copy)]
struct Start<T>(*mut T);
// SAFETY: tiles do not overlap.
unsafe impl<T> Send for Start<T> {}
unsafe impl<T> Sync for Start<T> {}

impl<T> Start<T> {
    fn at(self, place: usize) -> *mut T {
        self.0.wrapping_add(place)
    }
}

/// A part of a product that one thread computes. No other thread accesses the memory of this tile's `out`.
struct Tile<'a, T> {
    shape: [usize; 3],
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    /// Start and row stride.
    out: (*mut T, usize),
    keep: bool,
    factor: T,
    /// Whether `b` is read row by row; requires contiguous rows of `b`.
    follow: bool,
    room: &'a mut Vec<Line>,
}

#[cfg(target_arch = "x86_64")]
impl<'a, T: Number> Tile<'a, T> {
    /// Casts the tile to f32, which must be its element type.
    fn of_f32(self) -> Tile<'a, f32> {
        let matrix = |x: Matrix<'a, T>| Matrix { values: bytemuck::cast_slice(x.values), row: x.row, column: x.column };
        let Self { shape, a, b, out, keep, factor, follow, room } = self;
        let (out, factor) = ((out.0.cast(), out.1), bytemuck::cast(factor));
        Tile { shape, a: matrix(a), b: matrix(b), out, keep, factor, follow, room }
    }
}

impl<T: Number> WithSimd for Tile<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // SAFETY: `multiply` asserted that the matrices of the tile are within bounds.
        unsafe {
            if self.follow {
                self.follow(simd);
            } else if S::REGISTER_COUNT >= 32 {
                self.compute::<S, 4>(simd);
            } else {
                self.compute::<S, 2>(simd);
            }
        }
    }
}

impl<T: Number> Tile<'_, T> {
    /// Computes the tile from packed panels.
    ///
    /// # Safety
    /// All three matrices are within bounds.
    #[inline(always)]
    unsafe fn compute<S: Simd, const VECTORS: usize>(self, simd: S) {
        let [m, k, n] = self.shape;
        let lanes = lanes::<T, S>();
        let panel = VECTORS * lanes;
        let broad = broad::<T>();
        let deep = deep(k);
        let of_a = TALL / ROWS * ACROSS * STRIDE;
        let packed_a = room_in::<T>(self.room, of_a + deep * (broad + panel));
        let packed_b = packed_a.wrapping_add(of_a);
        let together = self.a.column != 1;
        let bare = self.b.column == 1 && m <= FEW;
        for (left, top) in (0..n).step_by(broad).flat_map(|left| (0..k).step_by(deep).map(move |top| (left, top))) {
            let (width, depth) = (broad.min(n - left), deep.min(k - top));
            let b = self.b.from([top, left]);
            for j in (0..width).step_by(panel) {
                if !(bare && j + panel <= width) {
                    // SAFETY: the panel starts within `b`, and the buffer has room for `panel` columns more
                    // than a block has.
                    unsafe {
                        let columns = panel.min(width - j);
                        pack_b::<T, S, VECTORS>(simd, b.from([0, j]), [depth, columns], packed_b.add(j * depth));
                    };
                }
            }
            for i in (0..m).step_by(TALL) {
                let a = self.a.from([i, top]);
                let height = TALL.min(m - i);
                // Skip packing of contiguous columns of `a` if only one panel of `b` needs them.
                let direct = together && width <= panel;
                if together && !direct {
                    // SAFETY: the buffer has room for `ACROSS` elements per `ROWS` rows.
                    unsafe { pack_a(a, [height, depth], packed_a) };
                }
                for row in (0..height).step_by(ROWS) {
                    let rows = ROWS.min(height - row);
                    // SAFETY: all accesses are within `a`, `b`, `out` and the packed copies. The innermost loop
                    // reads beyond `rows` only within the copies.
                    unsafe {
                        let a = match (together, direct) {
                            (false, _) => {
                                for r in 0..rows {
                                    copy::<T, S>(a.at(row + r, 0), packed_a.add(r * STRIDE), depth);
                                }
                                (packed_a.cast_const(), 1)
                            }
                            (true, false) => (packed_a.add(row / ROWS * ACROSS * depth).cast_const(), ACROSS),
                            (true, true) if rows == ROWS => (a.at(row, 0), a.column),
                            (true, true) => {
                                pack_a(a.from([row, 0]), [rows, depth], packed_a);
                                (packed_a.cast_const(), ACROSS)
                            }
                        };
                        for j in (0..width).step_by(panel) {
                            let columns = panel.min(width - j);
                            let b = match bare && columns == panel {
                                true => (b.at(0, j), b.row),
                                false => (packed_b.add(j * depth).cast_const(), panel),
                            };
                            let block = Block {
                                depth,
                                a,
                                b,
                                out: (self.out.0.add((i + row) * self.out.1 + left + j), self.out.1),
                                size: [rows, columns],
                                keep: self.keep || top > 0,
                                factor: self.factor,
                            };
                            // Number of registers that `columns` fill.
                            match columns.div_ceil(lanes) {
                                1 => block.compute::<S, 1>(simd, together),
                                2 => block.compute::<S, 2>(simd, together),
                                3 => block.compute::<S, 3>(simd, together),
                                _ => block.compute::<S, VECTORS>(simd, together),
                            }
                        }
                    }
                }
            }
        }
    }

    /// Computes a tile with few rows of `a`. Reads the rows of `b` in memory order, several at a time, and
    /// updates all sums on the way.
    ///
    /// # Safety
    /// All three matrices are within bounds, and the rows of `b` are contiguous.
    #[inline(always)]
    unsafe fn follow<S: Simd>(self, simd: S) {
        let [m, k, n] = self.shape;
        let lanes = lanes::<T, S>();
        let long = LONG / size_of::<T>();
        let deep = deep(k);
        let sums = room_in::<T>(self.room, m * long);
        for (left, top) in (0..n).step_by(long).flat_map(|left| (0..k).step_by(deep).map(move |top| (left, top))) {
            let (width, bottom) = (long.min(n - left), k.min(top + deep));
            let across = width.next_multiple_of(lanes);
            // SAFETY: all accesses are within `a`, `b`, `out` and the buffer of the sums.
            unsafe {
                for i in (0..m * across).step_by(lanes) {
                    write::<T, S>(sums.add(i), lanes, T::splat(simd, T::of(0.0)));
                }
                let mut row = top;
                while row < bottom {
                    let steps = if row + STEPS <= bottom { STEPS } else { 1 };
                    let mut i = 0;
                    while i < m {
                        let (a, b) = (self.a.from([i, row]), self.b.from([row, left]));
                        let sums = sums.add(i * across);
                        i += match (m - i, steps) {
                            (1, 1) => follow::<T, S, 1, 1>(simd, a, b, sums, width),
                            (1, _) => follow::<T, S, 1, STEPS>(simd, a, b, sums, width),
                            (2 | 3, 1) => follow::<T, S, 2, 1>(simd, a, b, sums, width),
                            (2 | 3, _) => follow::<T, S, 2, STEPS>(simd, a, b, sums, width),
                            (_, 1) => follow::<T, S, 4, 1>(simd, a, b, sums, width),
                            (_, _) => follow::<T, S, 4, STEPS>(simd, a, b, sums, width),
                        };
                    }
                    row += steps;
                }
                let factor = T::splat(simd, self.factor);
                for (i, j) in (0..m).flat_map(|i| (0..width).step_by(lanes).map(move |j| (i, j))) {
                    let (out, n) = (self.out.0.add(i * self.out.1 + left + j), lanes.min(width - j));
                    let old = read::<T, S>(simd, out, if self.keep || top > 0 { n } else { 0 });
                    let sum = read::<T, S>(simd, sums.add(i * across + j), lanes);
                    write::<T, S>(out, n, T::multiply_add(simd, factor, sum, old));
                }
            }
        }
    }
}

/// Adds `ROWS` rows of `a` times `STEPS` rows of `b`, `width` columns wide, to the sums. Each row of sums is
/// padded to whole registers. Returns `ROWS`.
///
/// # Safety
/// All accesses are within the matrices, and the padded sums are within their buffer.
#[inline(always)]
unsafe fn follow<T: Number, S: Simd, const ROWS: usize, const STEPS: usize>(
    simd: S,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    sums: *mut T,
    width: usize,
) -> usize {
    let lanes = lanes::<T, S>();
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut factors = [[T::splat(simd, T::of(0.0)); STEPS]; ROWS];
        for (row, factors) in factors.iter_mut().enumerate() {
            for (step, factor) in factors.iter_mut().enumerate() {
                *factor = T::splat(simd, *a.at(row, step));
            }
        }
        for j in (0..width).step_by(lanes) {
            let mut numbers = [T::splat(simd, T::of(0.0)); STEPS];
            for (step, numbers) in numbers.iter_mut().enumerate() {
                prefetch(b.at(STEPS + step, j));
                *numbers = read::<T, S>(simd, b.at(step, j), lanes.min(width - j));
            }
            for (row, factors) in factors.iter().enumerate() {
                let place = sums.add(row * width.next_multiple_of(lanes) + j);
                let mut sum = read::<T, S>(simd, place, lanes);
                for (factor, numbers) in factors.iter().zip(&numbers) {
                    sum = T::multiply_add(simd, *factor, *numbers, sum);
                }
                write::<T, S>(place, lanes, sum);
            }
        }
    }
    ROWS
}

/// Reads `n` elements into the start of a register and fills the rest with zeros.
///
/// # Safety
/// `n` elements can be read. They need not be aligned to a register.
#[inline(always)]
unsafe fn read<T: Number, S: Simd>(simd: S, from: *const T, n: usize) -> T::Vector<S> {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if n == lanes::<T, S>() {
            return from.cast::<T::Vector<S>>().read_unaligned();
        }
        let mut numbers = T::splat(simd, T::of(0.0));
        from.copy_to_nonoverlapping((&raw mut numbers).cast::<T>(), n);
        numbers
    }
}

/// Writes the first `n` elements of a register.
///
/// # Safety
/// `n` elements can be written. They need not be aligned to a register.
#[inline(always)]
unsafe fn write<T: Number, S: Simd>(to: *mut T, n: usize, numbers: T::Vector<S>) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if n == lanes::<T, S>() {
            return to.cast::<T::Vector<S>>().write_unaligned(numbers);
        }
        (&raw const numbers).cast::<T>().copy_to_nonoverlapping(to, n);
    }
}

/// Copies `n` elements inline; for so few, the call of `memcpy` would take as long as the copy.
///
/// # Safety
/// The elements can be read and written, and the ranges do not overlap.
#[inline(always)]
unsafe fn copy<T: Number, S: Simd>(from: *const T, to: *mut T, n: usize) {
    let lanes = lanes::<T, S>();
    let whole = n / lanes * lanes;
    // SAFETY: guaranteed by the caller; register accesses are unaligned.
    unsafe {
        for i in (0..whole).step_by(lanes) {
            to.add(i).cast::<T::Vector<S>>().write_unaligned(from.add(i).cast::<T::Vector<S>>().read_unaligned());
        }
        for i in whole..n {
            *to.add(i) = *from.add(i);
        }
    }
}

/// Packs `[rows, depth]` of `a`, whose columns are contiguous. Each panel holds [`ROWS`] rows and has `depth`
/// columns of [`ACROSS`] slots.
///
/// # Safety
/// The rows are within `a`, and the buffer has room for them.
#[inline(always)]
unsafe fn pack_a<T: Number>(a: Matrix<'_, T>, [rows, depth]: [usize; 2], packed: *mut T) {
    // Panels of which a whole column of `ACROSS` slots can be read at once.
    let whole = if rows >= ACROSS { (rows - ACROSS) / ROWS + 1 } else { 0 };
    for k in 0..depth {
        for row in (0..rows).step_by(size_of::<Line>() / size_of::<T>()) {
            prefetch(a.at(row, k + AHEAD));
        }
        for panel in 0..whole {
            // SAFETY: guaranteed by the caller; an array of `T` has the alignment of `T`.
            unsafe {
                let numbers = a.at(panel * ROWS, k).cast::<[T; ACROSS]>().read();
                packed.add((panel * depth + k) * ACROSS).cast::<[T; ACROSS]>().write(numbers);
            }
        }
        for row in whole * ROWS..rows {
            // SAFETY: guaranteed by the caller.
            unsafe { *packed.add((row / ROWS * depth + k) * ACROSS + row % ROWS) = *a.at(row, k) };
        }
    }
}

/// Packs `[depth, columns]` of `b` as `depth` rows of `VECTORS` registers. Writes only the registers that the
/// columns fill, and fills the rest of the last one with zeros.
///
/// # Safety
/// The columns are within `b`, and the buffer has room for them.
#[inline(always)]
unsafe fn pack_b<T: Number, S: Simd, const VECTORS: usize>(
    simd: S,
    b: Matrix<'_, T>,
    [depth, columns]: [usize; 2],
    packed: *mut T,
) {
    /// Side of a square that is transposed at once.
    const TURN: usize = 4;
    /// Elements of a column that are transposed before the next columns: one cache line, which might be evicted
    /// otherwise.
    const LINE: usize = 16;
    let lanes = lanes::<T, S>();
    let panel = VECTORS * lanes;
    // SAFETY: guaranteed by the caller; register accesses are unaligned.
    unsafe {
        if b.column == 1 && columns == panel {
            for k in 0..depth {
                let row = b.at(k, 0).cast::<[T::Vector<S>; VECTORS]>().read_unaligned();
                packed.add(k * panel).cast::<[T::Vector<S>; VECTORS]>().write_unaligned(row);
            }
            return;
        }
        if b.column == 1 {
            for (k, j) in (0..depth).flat_map(|k| (0..columns).step_by(lanes).map(move |j| (k, j))) {
                let numbers = read::<T, S>(simd, b.at(k, j), lanes.min(columns - j));
                write::<T, S>(packed.add(k * panel + j), lanes, numbers);
            }
            return;
        }
        let (mut turned, mut down) = (0, 0);
        if b.row == 1 {
            (turned, down) = (columns / TURN * TURN, depth / TURN * TURN);
            let blocks = (0..down).step_by(LINE).flat_map(|k| (0..turned).step_by(TURN).map(move |j| (k, j)));
            for (first, j) in blocks {
                for k in (first..down.min(first + LINE)).step_by(TURN) {
                    let columns = [0, 1, 2, 3].map(|column| b.at(k, j + column).cast::<[T; TURN]>().read());
                    for (row, numbers) in T::turn(columns).into_iter().enumerate() {
                        packed.add((k + row) * panel + j).cast::<[T; TURN]>().write(numbers);
                    }
                }
            }
        }
        for k in 0..depth {
            for j in if k < down { turned } else { 0 }..columns.next_multiple_of(lanes) {
                *packed.add(k * panel + j) = if j < columns { *b.at(k, j) } else { T::of(0.0) };
            }
        }
    }
}

/// A block of `size` rows and columns of `out`, kept in registers while `depth` products are added to each
/// element.
struct Block<T> {
    depth: usize,
    /// Start and column stride. The row stride is 1 if the columns are contiguous, otherwise [`STRIDE`].
    a: (*const T, usize),
    /// Start and row stride.
    b: (*const T, usize),
    /// Start and row stride.
    out: (*mut T, usize),
    size: [usize; 2],
    keep: bool,
    factor: T,
}

impl<T: Number> Block<T> {
    /// Computes the block. `together` tells whether the columns of `a` are contiguous.
    ///
    /// # Safety
    /// [`ROWS`] rows of `a` and `VECTORS` registers of each row of `b` can be read, and `size` of `out` can be written.
    #[inline(always)]
    unsafe fn compute<S: Simd, const VECTORS: usize>(self, simd: S, together: bool) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match together {
                true => self.add_up::<S, VECTORS, 1>(simd),
                false => self.add_up::<S, VECTORS, STRIDE>(simd),
            }
        }
    }

    /// Computes the block. The row stride of `a` is `APART`.
    ///
    /// # Safety
    /// As for [`Block::compute`].
    #[inline(always)]
    unsafe fn add_up<S: Simd, const VECTORS: usize, const APART: usize>(self, simd: S) {
        let lanes = lanes::<T, S>();
        let ((mut a, step), (mut b, next)) = (self.a, self.b);
        // A stride that is known at compile time needs no register.
        let step = if APART == 1 { step } else { 1 };
        let zeros = [[T::splat(simd, T::of(0.0)); VECTORS]; ROWS];
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                prefetch(self.out.0.wrapping_add(row * self.out.1 + vector * lanes));
            }
        }
        let (mut totals, one) = (zeros, T::splat(simd, T::of(1.0)));
        let mut left = self.depth;
        while left > 0 {
            let mut sums = zeros;
            if left >= RUN {
                // This loop has a constant number of iterations, so that the compiler can unroll it.
                for _ in 0..RUN / STEPS {
                    for _ in 0..STEPS {
                        // SAFETY: guaranteed by the caller.
                        unsafe { add::<T, S, VECTORS, APART>(simd, a, b, next, &mut sums) };
                        (a, b) = (a.wrapping_add(step), b.wrapping_add(next));
                    }
                }
            } else {
                for _ in 0..left {
                    // SAFETY: guaranteed by the caller.
                    unsafe { add::<T, S, VECTORS, APART>(simd, a, b, next, &mut sums) };
                    (a, b) = (a.wrapping_add(step), b.wrapping_add(next));
                }
            }
            left -= RUN.min(left);
            for (totals, sums) in totals.iter_mut().zip(&sums) {
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = T::multiply_add(simd, one, *sum, *total);
                }
            }
        }
        if self.size == [ROWS, VECTORS * lanes] {
            // SAFETY: guaranteed by the caller.
            unsafe { self.write::<S, VECTORS>(simd, &totals, self.out) };
            return;
        }
        let mut copy = zeros;
        let copy = (copy.as_mut_ptr().cast::<T>(), VECTORS * lanes);
        let [rows, columns] = self.size;
        // SAFETY: `size` is within `copy` and, as the caller guarantees, within `out`.
        unsafe {
            for row in 0..rows {
                let (from, to) = (self.out.0.add(row * self.out.1), copy.0.add(row * copy.1));
                from.copy_to_nonoverlapping(to, if self.keep { columns } else { 0 });
            }
            self.write::<S, VECTORS>(simd, &totals, copy);
            for row in 0..rows {
                let (from, to) = (copy.0.add(row * copy.1), self.out.0.add(row * self.out.1));
                from.copy_to_nonoverlapping(to, columns);
            }
        }
    }

    /// Writes the sums times `factor` to `out`, or adds them to `out` if `keep`.
    ///
    /// # Safety
    /// [`ROWS`] rows of `VECTORS` registers can be written to `out`, and read from it if `keep`.
    #[inline(always)]
    unsafe fn write<S: Simd, const VECTORS: usize>(
        &self,
        simd: S,
        sums: &[[T::Vector<S>; VECTORS]; ROWS],
        (out, apart): (*mut T, usize),
    ) {
        let lanes = lanes::<T, S>();
        let (factor, zero) = (T::splat(simd, self.factor), T::splat(simd, T::of(0.0)));
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                // SAFETY: guaranteed by the caller; register accesses are unaligned.
                unsafe {
                    let out = out.add(row * apart + vector * lanes).cast::<T::Vector<S>>();
                    let old = if self.keep { out.read_unaligned() } else { zero };
                    out.write_unaligned(T::multiply_add(simd, factor, *sum, old));
                }
            }
        }
    }
}

/// Adds one column of `a` times one row of `b` to the sums.
///
/// # Safety
/// [`ROWS`] elements of `a`, `APART` apart, and `VECTORS` registers of `b` can be read.
#[inline(always)]
unsafe fn add<T: Number, S: Simd, const VECTORS: usize, const APART: usize>(
    simd: S,
    a: *const T,
    b: *const T,
    next: usize,
    sums: &mut [[T::Vector<S>; VECTORS]; ROWS],
) {
    let lanes = lanes::<T, S>();
    let mut numbers = [T::splat(simd, T::of(0.0)); VECTORS];
    for (vector, numbers) in numbers.iter_mut().enumerate() {
        prefetch(b.wrapping_add(AHEAD * next + vector * lanes));
        // SAFETY: guaranteed by the caller.
        *numbers = unsafe { b.add(vector * lanes).cast::<T::Vector<S>>().read_unaligned() };
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: guaranteed by the caller.
        let factor = T::splat(simd, unsafe { *a.add(row * APART) });
        for (sum, numbers) in sums.iter_mut().zip(&numbers) {
            *sum = T::multiply_add(simd, factor, *numbers, *sum);
        }
    }
}

/// Prefetches the cache line of an address, which need not be valid.
#[inline(always)]
fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is only a hint and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from -8 to 8, so that sums of several hundred products are exact in both types.
    fn numbers<T: Number>(n: usize, seed: usize) -> Vec<T> {
        (0..n).map(|i| T::of((((i * 7 + seed) * 2_654_435_761 % 4_294_967_296) >> 20) as f64 % 17.0 - 8.0)).collect()
    }

    /// A product with exact sums. `out` has padding after each row, which must not change.
    pub(super) struct Case<T> {
        shape: [usize; 3],
        factors: [Vec<T>; 2],
        /// Whether the columns of `a` and of `b` are contiguous.
        across: [bool; 2],
        keep_and_factor: (bool, T),
        before: Vec<T>,
        after: Vec<T>,
    }

    impl<T: Number> Case<T> {
        pub fn new([m, k, n]: [usize; 3], across: [bool; 2], (keep, factor): (bool, T)) -> Self {
            let before = numbers::<T>(m * (n + 3), 3);
            let (factors, keep_and_factor) = ([numbers(m * k, 1), numbers(k * n, 2)], (keep, factor));
            let mut case = Self { shape: [m, k, n], factors, across, keep_and_factor, after: before.clone(), before };
            let mut after = std::mem::take(&mut case.after);
            let [a, b] = case.matrices();
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                // SAFETY: the indices are within the matrices.
                let sum: T = (0..k).map(|l| unsafe { *a.at(i, l) * *b.at(l, j) }).sum();
                let out = &mut after[i * case.row() + j];
                *out = if keep { *out + factor * sum } else { factor * sum };
            }
            Self { after, ..case }
        }

        fn matrices(&self) -> [Matrix<'_, T>; 2] {
            let ([m, k, n], [a, b]) = (self.shape, &self.factors);
            let lying = |values, rows, columns, across: bool| match across {
                true => Matrix::rows(values, rows).transposed(),
                false => Matrix::rows(values, columns),
            };
            [lying(a, m, k, self.across[0]), lying(b, k, n, self.across[1])]
        }

        fn row(&self) -> usize {
            self.shape[2] + 3
        }

        /// Checks that `write` writes the product.
        fn check(&self, how: &str, write: impl FnOnce([Matrix<'_, T>; 2], &mut [T])) {
            let mut written = self.before.clone();
            write(self.matrices(), &mut written);
            let (dtype, [m, k, n]) = (T::DTYPE.name(), self.shape);
            let (across, (keep, factor)) = (self.across, self.keep_and_factor);
            assert!(
                written == self.after,
                "{dtype} {m}x{k}x{n}, across {across:?}, keep {keep}, factor {factor}, {how}"
            );
        }

        /// Checks that `compute` computes the product as a single tile.
        pub fn check_tile(&self, follow: bool, compute: impl FnOnce(Tile<'_, T>)) {
            self.check(&format!("one tile, follow {follow}"), |[a, b], out| {
                let ((keep, factor), out) = (self.keep_and_factor, (out.as_mut_ptr(), self.row()));
                compute(Tile { shape: self.shape, a, b, out, keep, factor, follow, room: &mut Vec::new() });
            });
        }
    }

    /// Checks that `rounded` rounds both factors. A product with the identity matrix shows every rounded
    /// element.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn check_rounding(across: [bool; 2], rounded: fn(f32) -> f32, compute: impl Fn(Tile<'_, f32>)) {
        const SIDE: usize = 32;
        let numbers: Vec<f32> = (0..SIDE * SIDE).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let one: Vec<f32> = (0..SIDE * SIDE).map(|i| if i / SIDE == i % SIDE { 1.0 } else { 0.0 }).collect();
        let lying = |values, across| match across {
            true => Matrix::rows(values, SIDE).transposed(),
            false => Matrix::rows(values, SIDE),
        };
        for (place, of_numbers) in across.into_iter().enumerate() {
            let mut factors = across.map(|across| lying(&one, across));
            factors[place] = lying(&numbers, of_numbers);
            let ([a, b], mut written) = (factors, vec![0.0; SIDE * SIDE]);
            let (out, room) = ((written.as_mut_ptr(), SIDE), &mut Vec::new());
            compute(Tile { shape: [SIDE; 3], a, b, out, keep: false, factor: 1.0, follow: false, room });
            for (i, j) in (0..SIDE).flat_map(|i| (0..SIDE).map(move |j| (i, j))) {
                // SAFETY: the indices are within the matrix.
                let number = unsafe { *factors[place].at(i, j) };
                assert_eq!(written[i * SIDE + j], rounded(number), "rounding of {number}");
            }
        }
    }

    /// Checks the product on one thread and on all threads, and with the registers of other processors.
    fn holds<T: Number>(shape: [usize; 3], across: [bool; 2], keep: bool) {
        let case = Case::new(shape, across, (keep, T::of(2.0)));
        for wide in [false, true] {
            case.check(&format!("wide {wide}"), |[a, b], values| {
                let out = MatrixMut { values, row: case.row() };
                multiply(shape, a, b, out, case.keep_and_factor, wide, Rounding::None);
            });
        }
        let on = |compute: &dyn Fn(Tile<'_, T>)| {
            for follow in [false, true] {
                case.check_tile(follow && !across[1], compute);
            }
        };
        on(&|tile| pulp::Arch::new().dispatch(tile));
        on(&|tile| Simd::vectorize(pulp::Scalar::new(), tile));
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = pulp::x86::V3::try_new() {
            on(&|tile| Simd::vectorize(avx2, tile));
        }
    }

    #[test]
    fn a_product_over_nothing_is_zero() {
        for (keep, expected) in [(false, [0.0, 0.0, 7.0, 0.0, 0.0]), (true, [7.0; 5])] {
            let (mut values, nothing) = ([7.0_f32; 5], Matrix::rows(&[], 0));
            let out = MatrixMut { values: &mut values, row: 3 };
            multiply([2, 0, 2], nothing, nothing, out, (keep, 1.0), true, Rounding::None);
            assert_eq!(values, expected);
        }
    }

    /// In f32, adding 1 to 2^24 has no effect. Only the ones in the same run as the large value are lost; later
    /// runs are summed exactly.
    #[test]
    fn a_long_sum_rounds_as_little_as_its_runs() {
        const LARGE: f32 = 16_777_216.0;
        let (a, mut b) = (vec![1.0; (FEW + 1) * DEEP], vec![1.0; DEEP * 3]);
        b[..3].fill(LARGE);
        let mut values = vec![0.0; (FEW + 1) * 3];
        let (shape, out) = ([FEW + 1, DEEP, 3], MatrixMut { values: &mut values, row: 3 });
        multiply(shape, Matrix::rows(&a, DEEP), Matrix::rows(&b, 3), out, (false, 1.0), false, Rounding::None);
        assert!(values.iter().all(|sum| *sum == LARGE + (DEEP - RUN) as f32), "{values:?}");
    }

    #[test]
    fn products_are_their_sums() {
        let few = [1, 5, 6, 7, 16, 31, FEW + 1];
        let small = few.iter().flat_map(|m| [1, 3, 17].map(|k| [1, 16, 33, 65].map(|n| [*m, k, n]))).flatten();
        // Sizes around the block and tile sizes.
        let large = [[TALL + 5, DEEP + 1, 65], [13, 2 * DEEP + 7, BROAD / 4 + 70], [TILE + 7, 5, 130], [200, 70, 1100]];
        for (case, shape) in small.chain(large).enumerate() {
            for layout in 0..4 {
                let across = [layout & 1 == 1, layout & 2 == 2];
                holds::<f32>(shape, across, case % 2 == 0);
                holds::<f64>(shape, across, case % 2 == 1);
            }
        }
    }
}

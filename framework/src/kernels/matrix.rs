//! Products of matrices that lie in memory with any strides.
//!
//! A product is cut into tiles, one thread each. A tile packs a block of `b` that fits the second cache into panels, as wide
//! as some vector registers, and takes rows of `a` that fit the first cache along them; the innermost loop keeps
//! [`ROWS`] rows of a panel's width of `out` in registers. A number of `out` is added up in the order of `k`, in blocks and
//! runs that follow from `k` alone: neither tiles nor threads change a bit of it. Where bf16 is precise enough, a processor's
//! matrix units take the tile.
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

/// A matrix that is read: where it starts, and how far apart its rows and its columns lie.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// From its first number on.
    pub values: &'a [T],
    /// Numbers from one row to the next.
    pub row: usize,
    /// Numbers from one column to the next.
    pub column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `width` numbers, one after the other.
    pub fn rows(values: &'a [T], width: usize) -> Self {
        Self { values, row: width, column: 1 }
    }

    /// Rows become columns.
    pub fn transposed(self) -> Self {
        Self { values: self.values, row: self.column, column: self.row }
    }

    /// From a row and a column of it on.
    fn from(self, [row, column]: [usize; 2]) -> Self {
        Self { values: &self.values[row * self.row + column * self.column..], ..self }
    }

    /// Where the number in `row` and `column` lies.
    fn at(&self, row: usize, column: usize) -> *const T {
        self.values.as_ptr().wrapping_add(row * self.row + column * self.column)
    }

    /// Asserts that `[rows, columns]` of it lie within its numbers.
    fn assert_holds(&self, [rows, columns]: [usize; 2]) {
        let last = (rows - 1) * self.row + (columns - 1) * self.column;
        assert!(last < self.values.len(), "a matrix within its numbers");
    }
}

/// A matrix that is written: row-major, `row` numbers from one row to the next.
pub struct MatrixMut<'a, T> {
    /// From its first number on.
    pub values: &'a mut [T],
    /// Numbers from one row to the next.
    pub row: usize,
}

/// What the factors of a product may be rounded to where a processor multiplies those faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Factors stay as they are.
    None,
    /// To bf16.
    Bf16,
    /// To bf16 or to f16, whichever is faster; sums of a few products may be f16's. Numbers beyond f16's 65,504 are lost.
    Half,
}

impl Rounding {
    /// Of products that stand for those of a data type.
    pub fn of(dtype: DType) -> Self {
        if dtype == DType::BF16 { Self::Bf16 } else { Self::None }
    }

    /// Whether this processor has matrix units for factors so rounded.
    pub fn has_units(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self != Self::None && amx::available();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// Rows of `out` that the innermost loop keeps in registers, by 4 registers' width where there are 32 registers and 2 where
/// there are 16: 24 and 12 running sums, more than the processor's latency asks for.
const ROWS: usize = 6;
/// Rows of `a` to a packed panel where its columns lie together: [`ROWS`], and room to a power of two.
const ACROSS: usize = 8;
/// Numbers to a block in the direction of `k`: panels of `a` fit the first cache.
const DEEP: usize = 384;
/// Bytes of a row of a block of `b`: a block, `DEEP` rows, fits the second cache.
const BROAD: usize = 2048;
/// Numbers from one row of a packed panel of `a` to the next: a little more than `DEEP`, lest all rows fall on one set of
/// the cache.
const STRIDE: usize = DEEP + 16;
/// Rows of `a` that are packed at a time where its columns lie together.
const TALL: usize = 96;
/// Up to how many rows of `a` `b` is read where it lies: packing it would take as long as the product.
const FEW: usize = 16;
/// Bytes of a `b` that comes from memory: few rows of `a` then follow its rows, as memory is read the fastest.
const CACHE: usize = 1 << 20;
/// Bytes of a row of `b` that few rows of `a` follow at a time: their sums stay in a cache near by.
const LONG: usize = 4096;
/// Rows of a tile at the most: packing its blocks of `b` is then a thousandth of its work.
const TILE: usize = 1024;
/// Columns below which tiles are not cut further.
const LEAST: usize = 128;
/// Tiles for each thread at the least, so that a thread that is held up holds up little.
const TILES: usize = 3;
/// Numbers that widths of tiles are multiples of: a panel's on every processor. Those of matrix units' heights, too.
const UNIT: usize = 64;
/// Products that a register adds up before they are added to a total: a longer sum rounds more. A multiple of [`STEPS`].
const RUN: usize = 64;
/// Steps of `k` in the body of the innermost loop.
const STEPS: usize = 4;
/// Steps of `k` by which numbers of `b` are asked for ahead, and those of `a` that are packed.
const AHEAD: usize = 8;

/// `out = keep out + factor a b`. Shapes: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`. On all threads if `wide`, else on
/// this one.
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
    assert!(out.row >= n && (m - 1) * out.row + n <= out.values.len(), "a product within its numbers");
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

/// What computes a product.
#[derive(Clone, Copy)]
enum Arithmetic {
    /// The vectors of the numbers' own type.
    Own,
    /// Matrix units.
    #[cfg(target_arch = "x86_64")]
    Units,
    /// Vectors of f16.
    #[cfg(target_arch = "x86_64")]
    F16,
}

impl Arithmetic {
    /// The fastest that `rounding` allows.
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

    /// Numbers that heights of tiles are multiples of.
    fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Units => UNIT,
            _ => ROWS,
        }
    }
}

/// Columns of a block of `b`.
const fn broad<T>() -> usize {
    BROAD / size_of::<T>()
}

/// Numbers to a block in the direction of `k`: blocks are nearly equal, and follow from `k` alone, as the order of a sum does.
const fn deep(k: usize) -> usize {
    k.div_ceil(k.div_ceil(DEEP))
}

/// Numbers of a vector register.
const fn lanes<T: Number, S: Simd>() -> usize {
    size_of::<T::Vector<S>>() / size_of::<T>()
}

/// Where part `part` of `parts` nearly equal ones of `0..n` begins, and its length: all but the last are multiples of `unit`.
fn cut(n: usize, unit: usize, parts: usize, part: usize) -> [usize; 2] {
    let place = |part: usize| (n.div_ceil(unit) * part / parts * unit).min(n);
    [place(part), place(part + 1) - place(part)]
}

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "written and read as numbers")] [u8; 64]);

thread_local! {
    /// Where this thread packs.
    static ROOM: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Where `numbers` numbers have room in `lines`, which grow to it.
fn room_in<T>(lines: &mut Vec<Line>, numbers: usize) -> *mut T {
    let needed = (numbers * size_of::<T>()).div_ceil(size_of::<Line>());
    if lines.len() < needed {
        lines.resize(needed, Line([0; 64]));
    }
    lines.as_mut_ptr().cast()
}

/// Where threads write their tiles.
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

/// A product that one thread computes. `out` lies within memory that is this tile's alone.
struct Tile<'a, T> {
    shape: [usize; 3],
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    /// Where it begins, and how far apart its rows lie.
    out: (*mut T, usize),
    keep: bool,
    factor: T,
    /// Whether the rows of `b` are followed, if its columns lie together.
    follow: bool,
    room: &'a mut Vec<Line>,
}

#[cfg(target_arch = "x86_64")]
impl<'a, T: Number> Tile<'a, T> {
    /// The same tile, of numbers that are f32.
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
        // SAFETY: `multiply` asserted that the tile's matrices lie within their numbers.
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
    /// # Safety
    /// Its three matrices lie within their numbers.
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
                    // SAFETY: the panel begins within `b`, and there is room for `panel` columns more than a block's.
                    unsafe {
                        let columns = panel.min(width - j);
                        pack_b::<T, S, VECTORS>(simd, b.from([0, j]), [depth, columns], packed_b.add(j * depth));
                    };
                }
            }
            for i in (0..m).step_by(TALL) {
                let a = self.a.from([i, top]);
                let height = TALL.min(m - i);
                // Columns of `a` that lie together are read where they lie if a single panel of `b` needs them.
                let direct = together && width <= panel;
                if together && !direct {
                    // SAFETY: there is room for `ACROSS` numbers for every `ROWS` rows.
                    unsafe { pack_a(a, [height, depth], packed_a) };
                }
                for row in (0..height).step_by(ROWS) {
                    let rows = ROWS.min(height - row);
                    // SAFETY: all of it lies within `a`, `b`, `out` and their packed copies; what the innermost loop reads
                    // beyond `rows` lies in the copies.
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
                            // Registers that `columns` fill.
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

    /// Few rows of `a`: follows the rows of `b` through memory, some at a time, and adds to all sums on the way.
    ///
    /// # Safety
    /// Its three matrices lie within their numbers, and columns of `b` lie together.
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
            // SAFETY: all of it lies within `a`, `b`, `out` and the room for sums.
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

/// Adds `ROWS` rows of `a` times `STEPS` rows of `b`, `width` numbers of each, to sums that end on whole registers.
/// Returns `ROWS`.
///
/// # Safety
/// All of it lies within the matrices, and there is room for sums up to a whole register.
#[inline(always)]
unsafe fn follow<T: Number, S: Simd, const ROWS: usize, const STEPS: usize>(
    simd: S,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    sums: *mut T,
    width: usize,
) -> usize {
    let lanes = lanes::<T, S>();
    // SAFETY: the caller's.
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

/// A register that begins with `n` numbers, zeros behind them.
///
/// # Safety
/// They can be read; unaligned.
#[inline(always)]
unsafe fn read<T: Number, S: Simd>(simd: S, from: *const T, n: usize) -> T::Vector<S> {
    // SAFETY: the caller's.
    unsafe {
        if n == lanes::<T, S>() {
            return from.cast::<T::Vector<S>>().read_unaligned();
        }
        let mut numbers = T::splat(simd, T::of(0.0));
        from.copy_to_nonoverlapping((&raw mut numbers).cast::<T>(), n);
        numbers
    }
}

/// Writes the first `n` numbers of a register.
///
/// # Safety
/// They can be written; unaligned.
#[inline(always)]
unsafe fn write<T: Number, S: Simd>(to: *mut T, n: usize, numbers: T::Vector<S>) {
    // SAFETY: the caller's.
    unsafe {
        if n == lanes::<T, S>() {
            return to.cast::<T::Vector<S>>().write_unaligned(numbers);
        }
        (&raw const numbers).cast::<T>().copy_to_nonoverlapping(to, n);
    }
}

/// Copies `n` numbers, few enough that a call would take as long.
///
/// # Safety
/// They can be read and written, and do not overlap.
#[inline(always)]
unsafe fn copy<T: Number, S: Simd>(from: *const T, to: *mut T, n: usize) {
    let lanes = lanes::<T, S>();
    let whole = n / lanes * lanes;
    // SAFETY: the caller's; registers are read and written unaligned.
    unsafe {
        for i in (0..whole).step_by(lanes) {
            to.add(i).cast::<T::Vector<S>>().write_unaligned(from.add(i).cast::<T::Vector<S>>().read_unaligned());
        }
        for i in whole..n {
            *to.add(i) = *from.add(i);
        }
    }
}

/// Packs `[rows, depth]` of `a`, whose columns lie together: for every [`ROWS`] rows, `depth` times [`ACROSS`] numbers.
///
/// # Safety
/// The rows lie within `a`, and there is room for them.
#[inline(always)]
unsafe fn pack_a<T: Number>(a: Matrix<'_, T>, [rows, depth]: [usize; 2], packed: *mut T) {
    // Panels whose rows and the two behind them can be read at once.
    let whole = if rows >= ACROSS { (rows - ACROSS) / ROWS + 1 } else { 0 };
    for k in 0..depth {
        for row in (0..rows).step_by(size_of::<Line>() / size_of::<T>()) {
            prefetch(a.at(row, k + AHEAD));
        }
        for panel in 0..whole {
            // SAFETY: as the caller's; numbers have no alignment beyond their own.
            unsafe {
                let numbers = a.at(panel * ROWS, k).cast::<[T; ACROSS]>().read();
                packed.add((panel * depth + k) * ACROSS).cast::<[T; ACROSS]>().write(numbers);
            }
        }
        for row in whole * ROWS..rows {
            // SAFETY: as the caller's.
            unsafe { *packed.add((row / ROWS * depth + k) * ACROSS + row % ROWS) = *a.at(row, k) };
        }
    }
}

/// Packs `[depth, columns]` of `b` as `depth` rows of `VECTORS` registers, of which those that the columns fill are written,
/// zeros at their ends.
///
/// # Safety
/// The columns lie within `b`, and there is room for them.
#[inline(always)]
unsafe fn pack_b<T: Number, S: Simd, const VECTORS: usize>(
    simd: S,
    b: Matrix<'_, T>,
    [depth, columns]: [usize; 2],
    packed: *mut T,
) {
    /// Rows and columns that are turned at a time.
    const TURN: usize = 4;
    /// Numbers of a column that are turned before the next columns are: in a cache line, which might not stay till later.
    const LINE: usize = 16;
    let lanes = lanes::<T, S>();
    let panel = VECTORS * lanes;
    // SAFETY: as the caller's; registers are read and written unaligned.
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

/// `size` rows and columns of `out`, kept in registers while `depth` products are added to them.
struct Block<T> {
    depth: usize,
    /// Where it begins, and how far apart its columns lie; rows follow one another if columns lie together, and are
    /// [`STRIDE`] apart if not.
    a: (*const T, usize),
    /// Where it begins, and how far apart its rows lie.
    b: (*const T, usize),
    /// Where it begins, and how far apart its rows lie.
    out: (*mut T, usize),
    size: [usize; 2],
    keep: bool,
    factor: T,
}

impl<T: Number> Block<T> {
    /// # Safety
    /// [`ROWS`] rows of `a` and `VECTORS` registers of each row of `b` can be read, and `size` of `out` be written.
    #[inline(always)]
    unsafe fn compute<S: Simd, const VECTORS: usize>(self, simd: S, together: bool) {
        // SAFETY: the caller's.
        unsafe {
            match together {
                true => self.add_up::<S, VECTORS, 1>(simd),
                false => self.add_up::<S, VECTORS, STRIDE>(simd),
            }
        }
    }

    /// With rows of `a` that are `APART` numbers apart.
    ///
    /// # Safety
    /// As [`Block::compute`].
    #[inline(always)]
    unsafe fn add_up<S: Simd, const VECTORS: usize, const APART: usize>(self, simd: S) {
        let lanes = lanes::<T, S>();
        let ((mut a, step), (mut b, next)) = (self.a, self.b);
        // A step known to the compiler needs no register.
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
                // The compiler knows how many.
                for _ in 0..RUN / STEPS {
                    for _ in 0..STEPS {
                        // SAFETY: the caller's.
                        unsafe { add::<T, S, VECTORS, APART>(simd, a, b, next, &mut sums) };
                        (a, b) = (a.wrapping_add(step), b.wrapping_add(next));
                    }
                }
            } else {
                for _ in 0..left {
                    // SAFETY: the caller's.
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
            // SAFETY: the caller's.
            unsafe { self.write::<S, VECTORS>(simd, &totals, self.out) };
            return;
        }
        let mut copy = zeros;
        let copy = (copy.as_mut_ptr().cast::<T>(), VECTORS * lanes);
        let [rows, columns] = self.size;
        // SAFETY: `size` lies within `copy` and, by the caller, within `out`.
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

    /// Writes the sums, times the factor, or adds them to what stands there.
    ///
    /// # Safety
    /// [`ROWS`] rows of `VECTORS` registers can be written to `out`.
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
                // SAFETY: the caller's; registers are read and written unaligned.
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
/// [`ROWS`] numbers of `a`, `APART` apart, and `VECTORS` registers of `b` can be read.
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
        // SAFETY: the caller's.
        *numbers = unsafe { b.add(vector * lanes).cast::<T::Vector<S>>().read_unaligned() };
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's.
        let factor = T::splat(simd, unsafe { *a.add(row * APART) });
        for (sum, numbers) in sums.iter_mut().zip(&numbers) {
            *sum = T::multiply_add(simd, factor, *numbers, *sum);
        }
    }
}

/// Asks for the cache line of an address, which need not be valid.
#[inline(always)]
fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from -8 to 8, so that sums of some hundred products are exact in both types.
    fn numbers<T: Number>(n: usize, seed: usize) -> Vec<T> {
        (0..n).map(|i| T::of((((i * 7 + seed) * 2_654_435_761 % 4_294_967_296) >> 20) as f64 % 17.0 - 8.0)).collect()
    }

    /// A product that is exactly its sums, and what lies beside it in `out`, which stays.
    pub(super) struct Case<T> {
        shape: [usize; 3],
        factors: [Vec<T>; 2],
        /// Whether columns of `a` and of `b` lie together.
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
                // SAFETY: within the matrices.
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

        /// What `write` writes is the product.
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

        /// What `compute` makes of the product as one tile is the product.
        pub fn check_tile(&self, follow: bool, compute: impl FnOnce(Tile<'_, T>)) {
            self.check(&format!("one tile, follow {follow}"), |[a, b], out| {
                let ((keep, factor), out) = (self.keep_and_factor, (out.as_mut_ptr(), self.row()));
                compute(Tile { shape: self.shape, a, b, out, keep, factor, follow, room: &mut Vec::new() });
            });
        }
    }

    /// Factors are rounded by `rounded`, wherever they stand: a product with the identity shows each.
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
                // SAFETY: within the matrix.
                let number = unsafe { *factors[place].at(i, j) };
                assert_eq!(written[i * SIDE + j], rounded(number), "of {number}");
            }
        }
    }

    /// The product holds by one thread and by all and with the registers of other processors.
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

    /// One is lost beside 2^24 in f32: only those of the first number's run are, and none of the others.
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
        // Around the sizes of blocks and tiles.
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

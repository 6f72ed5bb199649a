//! Products of matrices that lie in memory with any strides.

use super::math::Number;
use gemm::Parallelism;
use rayon::prelude::*;

/// A matrix that is read: where it starts, and how far apart its rows and its columns lie.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// From its first number on.
    pub values: &'a [T],
    /// Numbers from one row to the next.
    pub row: isize,
    /// Numbers from one column to the next.
    pub column: isize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `width` numbers, one after the other.
    pub fn rows(values: &'a [T], width: usize) -> Self {
        Self { values, row: width as isize, column: 1 }
    }

    /// Rows become columns.
    pub fn transposed(self) -> Self {
        Self { values: self.values, row: self.column, column: self.row }
    }

    /// From a row and a column of it on.
    fn from(self, [row, column]: [usize; 2]) -> Self {
        let start = row as isize * self.row + column as isize * self.column;
        Self { values: &self.values[start as usize..], ..self }
    }

    /// Asserts that `[rows, columns]` of it lie within its numbers.
    fn assert_holds(&self, [rows, columns]: [usize; 2]) {
        let last = (rows as isize - 1) * self.row + (columns as isize - 1) * self.column;
        assert!(
            self.row >= 0 && self.column >= 0 && (last as usize) < self.values.len(),
            "a matrix within its numbers"
        );
    }
}

/// A matrix that is written: row-major, `row` numbers from one row to the next.
pub struct MatrixMut<'a, T> {
    /// From its first number on.
    pub values: &'a mut [T],
    /// Numbers from one row to the next.
    pub row: usize,
}

/// Rows and columns of a product that one thread takes at a time: tall ones, so that what is packed of `b` serves many rows.
/// Products that share their packing among threads reach two thirds of the speed (2048x384x1536 on two AVX-512 cores: 171
/// against 244 GFLOP/s).
const TILE: [usize; 2] = [1024, 256];
/// The same where the rows of `a` lie across its memory.
const TILE_ACROSS: [usize; 2] = [512, 512];
/// Tiles that a product is cut into at the least, whatever the number of threads: on how large a tile is depends in which
/// order crate gemm adds up.
const TILES: usize = 8;
/// Rows and columns below which tiles are not cut further: packing would cost more than another thread gains.
const LEAST: [usize; 2] = [64, 128];
/// What widths are multiples of: full registers of the innermost loop on every processor.
const UNIT: usize = 64;

/// `out = keep out + factor a b`. Shapes: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`. On all threads if `wide`, else on
/// this one. Tiles, and with them the order in which a number of `out` is added up, follow from the shape alone.
pub fn multiply<T: Number>(
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    out: MatrixMut<'_, T>,
    (keep, factor): (bool, T),
    wide: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    a.assert_holds([m, k]);
    b.assert_holds([k, n]);
    assert!((m - 1) * out.row + n <= out.values.len(), "a product within its numbers");
    let start = Start(out.values.as_mut_ptr());
    let tile = |[i, j]: [usize; 2], [m, n]: [usize; 2]| {
        let [a, b] = [a.from([i, 0]), b.from([0, j])];
        // SAFETY: all three lie within their slices, as asserted; tiles of `out`, which is borrowed for itself alone, do not
        // overlap.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                start.at(i * out.row + j),
                1,
                out.row as isize,
                keep,
                a.values.as_ptr(),
                a.column,
                a.row,
                b.values.as_ptr(),
                b.column,
                b.row,
                T::of(1.0),
                factor,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    };
    if !wide {
        return tile([0, 0], [m, n]);
    }
    let [tall, broad] = if a.column == 1 { TILE } else { TILE_ACROSS };
    let columns = n.div_ceil(broad);
    let rows = m.div_ceil(tall).max(TILES.div_ceil(columns).min(m.div_ceil(LEAST[0])));
    let columns = columns.max(TILES.div_ceil(rows).min(n.div_ceil(LEAST[1])));
    (0..rows * columns).into_par_iter().for_each(|place| {
        let ([i, height], [j, width]) = (cut(m, 1, rows, place / columns), cut(n, UNIT, columns, place % columns));
        if height > 0 && width > 0 {
            tile([i, j], [height, width]);
        }
    });
}

/// Where part `part` of `parts` nearly equal ones of `0..n` begins, and its length: all but the last are multiples of `unit`.
fn cut(n: usize, unit: usize, parts: usize, part: usize) -> [usize; 2] {
    let place = |part: usize| (n.div_ceil(unit) * part / parts * unit).min(n);
    [place(part), place(part + 1) - place(part)]
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

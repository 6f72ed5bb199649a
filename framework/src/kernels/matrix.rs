//! Products of matrices that lie in memory with any strides.

use super::math::Number;
use gemm::Parallelism;

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

/// `out = keep out + factor a b`. Shapes: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`. On all threads if `wide`, else on
/// this one.
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
    let parallelism = if wide { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: all three lie within their slices, as asserted; `out` is borrowed for itself alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.values.as_mut_ptr(),
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
            parallelism,
        );
    }
}

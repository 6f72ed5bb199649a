//! Selection of rows and tokens by index.

use burn::tensor::kind::Basic;
use burn::tensor::{Int, Tensor};

/// Selects rows of a table `[R, ..]` in the given order. A row may occur more than once.
pub fn rows<const D: usize, K: Basic>(table: Tensor<D, K>, rows: impl IntoIterator<Item = usize>) -> Tensor<D, K> {
    let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
    let rows = Tensor::<1, Int>::from_data(rows.as_slice(), &table.device().inner());
    table.select(0, rows)
}

/// Selects the tokens of `x` at `places`. Shapes: `x` `[B, L, D]`, `places` `[B, n]` row-major, to `[B, n, D]`.
pub fn gather(x: Tensor<3>, places: &[usize]) -> Tensor<3> {
    let [batch, length, width] = x.dims();
    let count = places.len() / batch;
    let of_batch = places.iter().enumerate().map(|(i, place)| i / count * length + place);
    rows(x.reshape([batch * length, width]), of_batch).reshape([batch, count, width])
}

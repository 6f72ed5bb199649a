//! Vector quantisation: finds the nearest code of each vector, and looks codes up.
//!
//!   id = argmin_k |z - e_k|^2 = argmin_k |e_k|^2 - 2 z . e_k
//!
//! Source: arXiv:1711.00937 eq. 2.

use framework::prelude::*;

/// Returns the index of the code nearest to each row. Shapes: `z` `[N, D]`, `codes` `[V, D]`; result `[N]`.
pub fn nearest(z: Tensor<2>, codes: Tensor<2>) -> Tensor<1, Int> {
    let rows = z.dims()[0];
    let squares = (codes.clone() * codes.clone()).sum_dim(1).transpose();
    (squares - z.matmul(codes.transpose()) * 2.0).argmin(1).reshape([rows])
}

/// Scales every row to length one; zero rows stay zero. Shape: `[N, D]`.
pub fn unit(x: Tensor<2>) -> Tensor<2> {
    let length = (x.clone() * x.clone()).sum_dim(1).sqrt();
    x / length.clamp_min(1e-12)
}

/// Returns the code of each id. Shapes: `ids` `[B, L]`, `codes` `[V, D]`; result `[B, L, D]`.
pub fn look_up(ids: Tensor<2, Int>, codes: Tensor<2>) -> Tensor<3> {
    let ([batch, length], width) = (ids.dims(), codes.dims()[1]);
    codes.select(0, ids.reshape([batch * length])).reshape([batch, length, width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::burn::tensor::DType;
    use framework::random::tensor;
    use proptest::prelude::*;

    fn matrix(values: &[f64], columns: usize) -> Tensor<2> {
        tensor(values, [values.len() / columns, columns], DType::F64, &Device::flex())
    }

    proptest! {
        #[test]
        fn nearest_is_nearest(z in prop::collection::vec(-2.0..2.0_f64, 6), codes in prop::collection::vec(-2.0..2.0_f64, 24)) {
            let got = nearest(matrix(&z, 3), matrix(&codes, 3)).into_data().convert::<i64>().try_into_vec::<i64>().unwrap();
            for (row, id) in z.chunks(3).zip(got) {
                let square = |code: &[f64]| row.iter().zip(code).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                let least = codes.chunks(3).map(square).fold(f64::INFINITY, f64::min);
                prop_assert!(square(&codes[id as usize * 3..][..3]) <= least + 1e-12);
            }
        }
    }

    #[test]
    fn unit_rows_have_length_one_and_zero_stays_zero() {
        let rows = unit(matrix(&[3.0, 4.0, 0.0, 0.0], 2)).into_data().try_into_vec::<f64>().unwrap();
        assert_eq!(rows, [0.6, 0.8, 0.0, 0.0]);
    }
}

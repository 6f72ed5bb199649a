//! Nearest neighbours by parallel exhaustive search, which takes `queries x images x width` operations.

use framework::error::{Error, Result};
use framework::evaluation::images::Images;
use rayon::prelude::*;

/// An image near a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Its index among the searched images.
    pub index: usize,
    /// Root mean square of the differences between the values of the two images.
    pub distance: f64,
}

/// Returns the `k` images of `real` nearest to each query, nearest first. Equal distances are in order of
/// index.
pub fn nearest(queries: &Images, real: &Images, k: usize) -> Vec<Vec<Neighbour>> {
    let of = |i| nearest_to(queries.row(i), real, k, None);
    (0..queries.len()).into_par_iter().map(of).collect()
}

/// Returns the `k` nearest other images of each image of `real`.
pub fn nearest_others(real: &Images, k: usize) -> Vec<Vec<Neighbour>> {
    let of = |i| nearest_to(real.row(i), real, k, Some(i));
    (0..real.len()).into_par_iter().map(of).collect()
}

fn nearest_to(query: &[f32], real: &Images, k: usize, left_out: Option<usize>) -> Vec<Neighbour> {
    let mut best: Vec<(f64, usize)> = Vec::with_capacity(k + 1);
    for index in (0..real.len()).filter(|index| Some(*index) != left_out) {
        let squares = sum_of_squares(query, real.row(index));
        if best.len() == k && best.last().is_none_or(|(worst, _)| squares >= *worst) {
            continue;
        }
        best.insert(best.partition_point(|(other, _)| *other <= squares), (squares, index));
        best.truncate(k);
    }
    let width = real.width() as f64;
    best.into_iter().map(|(squares, index)| Neighbour { index, distance: (squares / width).sqrt() }).collect()
}

/// Computes the sum of squared differences. Sixteen independent sums let the compiler vectorise it.
fn sum_of_squares(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f64 = rest.map(|(a, b)| f64::from(a - b).powi(2)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            let difference = a[lane] - b[lane];
            lanes[lane] += difference * difference;
        }
    }
    rest + lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>()
}

/// The error that there are too few images.
pub fn too_few(metric: &str, name: &str, least: usize, count: usize) -> Error {
    Error::Run(format!("metric \"{metric}\" needs at least {least} {name}(s) and got {count}"))
}

/// Checks that all values are finite. `seen` images came before these.
pub fn finite(metric: &str, name: &str, images: &Images, seen: usize) -> Result<()> {
    let Some(place) = images.values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let (i, value) = (seen + place / images.width(), images.values[place]);
    Err(Error::Run(format!("metric \"{metric}\" needs finite values; {name} {i} holds {value}")))
}

/// Checks what every metric needs: enough images, of one size, with finite values.
pub fn comparable(
    metric: &str,
    samples: &Images,
    real: &Images,
    least_samples: usize,
    least_real: usize,
) -> Result<()> {
    for (name, images, least) in [("sample", samples, least_samples), ("real image", real, least_real)] {
        let count = if images.width() == 0 { 0 } else { images.len() };
        if count < least {
            return Err(too_few(metric, name, least, count));
        }
        finite(metric, name, images, 0)?;
    }
    if samples.width() != real.width() {
        let what = format!("a sample has {} values and a real image {}", samples.width(), real.width());
        return Err(Error::Run(format!("metric \"{metric}\" needs images of one size; {what}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn images(values: Vec<f32>, width: usize) -> Images {
        Images { values, ..Images::none([1, 1, width]) }
    }

    #[test]
    fn neighbours_by_hand() {
        // The distances from the query (0, 0.75) to (0, 0), (3, 4) and (0, 1) are 0.75, sqrt(9 + 10.5625) and
        // 0.25.
        let real = images(vec![0.0, 0.0, 3.0, 4.0, 0.0, 1.0], 2);
        let near = nearest(&images(vec![0.0, 0.75], 2), &real, 2);
        let places: Vec<usize> = near[0].iter().map(|n| n.index).collect();
        assert_eq!(places, [2, 0]);
        assert!((near[0][0].distance - 0.25 / 2.0_f64.sqrt()).abs() < 1e-12);
        assert!((near[0][1].distance - 0.75 / 2.0_f64.sqrt()).abs() < 1e-12);
        let others: Vec<usize> = nearest_others(&real, 1).iter().map(|near| near[0].index).collect();
        assert_eq!(others, [2, 2, 0]);
    }

    proptest! {
        #[test]
        fn nearest_are_the_first_of_the_sorted_distances(
            values in prop::collection::vec(-1.0_f32..1.0, 19 * 12), k in 1_usize..11,
        ) {
            let real = images(values, 19);
            let (query, real) = (images(real.row(0).to_vec(), 19), images(real.values[19..].to_vec(), 19));
            let mut all: Vec<f64> = (0..real.len())
                .map(|i| {
                    let squares = query.row(0).iter().zip(real.row(i)).map(|(a, b)| f64::from(a - b).powi(2));
                    (squares.sum::<f64>() / 19.0).sqrt()
                })
                .collect();
            all.sort_by(f64::total_cmp);
            let near = nearest(&query, &real, k);
            prop_assert_eq!(near[0].len(), k);
            for (near, expected) in near[0].iter().zip(all) {
                prop_assert!((near.distance - expected).abs() < 1e-6);
            }
        }
    }
}

//! Balls around feature vectors, whose radius is the distance to the k-th nearest neighbour. Distances are computed in
//! blocks, as matrix products.

use faer::Mat;

/// Number of vectors per side of a block.
const BLOCK: usize = 1024;

/// Squared distances that are smaller than this share of the squared norms are rounding errors of equal vectors.
const ROUNDING: f64 = 1e-12;

/// Vectors of one block, and their squared norms.
struct Block {
    first: usize,
    columns: Mat<f64>,
    squares: Vec<f64>,
}

fn block(rows: &[&[f32]], first: usize) -> Block {
    let chosen = &rows[first..(first + BLOCK).min(rows.len())];
    let columns = Mat::from_fn(rows[0].len(), chosen.len(), |i, j| f64::from(chosen[j][i]));
    let squares = (0..chosen.len()).map(|j| columns.col(j).squared_norm_l2()).collect();
    Block { first, columns, squares }
}

/// Calls `receive(i, j, squared distance)` for every pair of a vector `i` of `x` and a vector `j` of `y`.
fn pairs(x: &[&[f32]], y: &[&[f32]], receive: &mut dyn FnMut(usize, usize, f64)) {
    for start in (0..x.len()).step_by(BLOCK) {
        let left = block(x, start);
        for start in (0..y.len()).step_by(BLOCK) {
            let right = block(y, start);
            let products = left.columns.transpose() * &right.columns;
            for (j, square) in right.squares.iter().enumerate() {
                for (i, other) in left.squares.iter().enumerate() {
                    let (sum, distance) = (square + other, square + other - 2.0 * products[(i, j)]);
                    receive(left.first + i, right.first + j, if distance < ROUNDING * sum { 0.0 } else { distance });
                }
            }
        }
    }
}

/// Returns the squared distance of each vector to its `k`-th nearest other vector.
///
/// # Panics
/// If there are at most `k` vectors.
pub fn squared_radii(rows: &[&[f32]], k: usize) -> Vec<f64> {
    let mut nearest = vec![Vec::with_capacity(k + 1); rows.len()];
    pairs(rows, rows, &mut |i, j, distance| {
        let best: &mut Vec<f64> = &mut nearest[i];
        if i != j && (best.len() < k || distance < best[k - 1]) {
            best.insert(best.partition_point(|other| *other <= distance), distance);
            best.truncate(k);
        }
    });
    nearest.into_iter().map(|best| best[k - 1]).collect()
}

/// How samples lie relative to the balls of real images, and the reverse.
pub struct Coverage {
    /// For each sample, the number of balls of real images that contain it.
    pub balls: Vec<usize>,
    /// For each real image, whether the ball of a sample contains it.
    pub recalled: Vec<bool>,
    /// For each real image, whether its own ball contains a sample.
    pub covered: Vec<bool>,
}

/// Compares samples with real images, given the squared radii of their balls. A ball contains its surface if `closed`.
pub fn coverage(
    (samples, sample_radii): (&[&[f32]], &[f64]),
    (real, real_radii): (&[&[f32]], &[f64]),
    closed: bool,
) -> Coverage {
    let mut found =
        Coverage { balls: vec![0; samples.len()], recalled: vec![false; real.len()], covered: vec![false; real.len()] };
    let contains = |radius: f64, distance: f64| distance < radius || closed && distance == radius;
    pairs(real, samples, &mut |i, j, distance| {
        if contains(real_radii[i], distance) {
            found.balls[j] += 1;
            found.covered[i] = true;
        }
        found.recalled[i] |= sample_radii.get(j).is_some_and(|radius| contains(*radius, distance));
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use framework::random::Random;

    #[test]
    fn radii_are_the_kth_of_the_sorted_distances() {
        // More vectors than one block holds.
        let (count, width, k) = (BLOCK + 200, 3, 4);
        let values = Random::new(1).normal("image", 0, 0, count * width);
        let rows: Vec<&[f32]> = values.chunks_exact(width).collect();
        let radii = squared_radii(&rows, k);
        for i in [0, 7, BLOCK - 1, BLOCK, count - 1] {
            let distance = |j: usize| -> f64 {
                rows[i].iter().zip(rows[j]).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
            };
            let mut all: Vec<f64> = (0..count).filter(|j| *j != i).map(distance).collect();
            all.sort_by(f64::total_cmp);
            assert!((radii[i] - all[k - 1]).abs() < 1e-12, "{i} {} {}", radii[i], all[k - 1]);
        }
    }

    #[test]
    fn equal_vectors_have_distance_zero() {
        let values = [0.1_f32, 1e3, -7.7].repeat(3);
        let rows: Vec<&[f32]> = values.chunks_exact(3).collect();
        assert_eq!(squared_radii(&rows, 2), [0.0; 3]);
        // A closed ball of radius zero contains its centre, an open one does not.
        let contains = |closed| coverage((&rows, &[0.0; 3]), (&rows, &[0.0; 3]), closed).balls;
        assert_eq!((contains(true), contains(false)), (vec![3; 3], vec![0; 3]));
    }

    #[test]
    fn coverage_by_hand() {
        // Real 0, 1, 5 with k = 1: radii 1, 1, 4. Samples 0.5 and 20: radii 19.5.
        let (real, samples) = ([[0.0_f32], [1.0], [5.0]], [[0.5_f32], [20.0]]);
        let real: Vec<&[f32]> = real.iter().map(|row| &row[..]).collect();
        let samples: Vec<&[f32]> = samples.iter().map(|row| &row[..]).collect();
        let (real_radii, sample_radii) = (squared_radii(&real, 1), squared_radii(&samples, 1));
        assert_eq!((&real_radii[..], &sample_radii[..]), (&[1.0, 1.0, 16.0][..], &[380.25, 380.25][..]));
        let found = coverage((&samples, &sample_radii), (&real, &real_radii), true);
        assert_eq!(found.balls, [2, 0]);
        assert_eq!((found.covered, found.recalled), (vec![true, true, false], vec![true; 3]));
    }
}

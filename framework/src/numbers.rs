//! Comparison of numbers that may be NaN.

/// Returns the larger of two numbers, or NaN if either is NaN. `f64::max` ignores NaN, so that the largest difference of
/// values that are NaN would be 0 and pass every tolerance.
pub fn larger<T: PartialOrd>(a: T, b: T) -> T {
    if b > a || b.partial_cmp(&b).is_none() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_nan_is_the_largest() {
        for values in [[f64::NAN, 1.0, 2.0], [1.0, f64::NAN, 2.0], [1.0, 2.0, f64::NAN]] {
            assert!(values.into_iter().fold(0.0, larger).is_nan());
        }
        assert_eq!([1.0, 3.0, 2.0].into_iter().fold(0.0, larger), 3.0);
    }
}

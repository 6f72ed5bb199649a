//! Weights of another shape than the network: class embeddings of another number of classes, and positions of another
//! image size. Fine-tuning starts from a published network whose other weights fit.

use burn::tensor::TensorData;

/// How a parameter takes over a tensor of another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refit {
    /// A table with a row per class, `[classes, D]`. The rows are initialized again, because other classes have other
    /// meanings. With `null`, the last row belongs to the null class and is kept.
    Classes {
        /// Whether the last row belongs to the null class.
        null: bool,
    },
    /// Positions that are computed from the size, `[1, L, D]`. They are recomputed.
    Computed,
    /// Learned positions of a square grid, `[1, before + L, D]`. They are interpolated bilinearly.
    Positions {
        /// Number of positions before the grid. They are kept.
        before: usize,
    },
}

impl Refit {
    /// Says what happens to the tensor `name` of shape `theirs` for a parameter of shape `own`; `None` if it cannot be
    /// taken over.
    pub(crate) fn note(self, name: &str, theirs: &[usize], own: &[usize]) -> Option<String> {
        match (self, theirs, own) {
            (Self::Classes { null }, [from, width], [to, own]) if width == own && *from > 0 && *to > 0 => {
                let null_rows = usize::from(null);
                let kept = if null { "; the null class is kept" } else { "" };
                let (from, to) = (from.saturating_sub(null_rows), to.saturating_sub(null_rows));
                Some(format!("`{name}` has {from} classes; the embeddings of {to} classes start anew{kept}"))
            }
            (Self::Computed, [1, from, width], [1, to, own]) if width == own => {
                Some(format!("`{name}` is recomputed for {to} positions instead of {from}"))
            }
            (Self::Positions { before }, [1, from, width], [1, to, own]) if width == own => {
                let (from, to) = (side(from.checked_sub(before)?)?, side(to.checked_sub(before)?)?);
                Some(format!("`{name}` is interpolated from {from}x{from} to {to}x{to} positions"))
            }
            _ => None,
        }
    }

    /// Returns the values of a parameter of shape `own` from the tensor `theirs`, which [`Refit::note`] accepted.
    /// `fresh` are its initial values.
    pub(crate) fn values(self, theirs: TensorData, own: &[usize], mut fresh: Vec<f32>) -> Result<TensorData, String> {
        let shape = theirs.shape().to_vec();
        let theirs = theirs.try_into_vec::<f32>().map_err(|e| format!("{e:?}"))?;
        let width = own.last().copied().unwrap_or_default();
        let values = match self {
            Self::Computed | Self::Classes { null: false } => fresh,
            Self::Classes { null: true } => {
                let last = fresh.len() - width;
                fresh[last..].copy_from_slice(&theirs[theirs.len() - width..]);
                fresh
            }
            Self::Positions { before } => {
                let sides = [shape[1] - before, own[1] - before].map(usize::isqrt);
                let (kept, grid) = theirs.split_at(before * width);
                [kept, &interpolated(grid, sides, width)].concat()
            }
        };
        Ok(TensorData::new(values, own.to_vec()))
    }
}

/// Returns the side of a square grid; `None` if the number of positions is not a square.
fn side(positions: usize) -> Option<usize> {
    let side = positions.isqrt();
    (side > 0 && side * side == positions).then_some(side)
}

/// Interpolates a grid `[from, from, width]` to `[to, to, width]`, bilinearly between the centres of its cells.
///
///   s = clamp((i + 1/2) from / to - 1/2, 0, from - 1)
fn interpolated(grid: &[f32], [from, to]: [usize; 2], width: usize) -> Vec<f32> {
    let place = |i: usize| {
        let s = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
        let low = (s.floor() as usize).min(from - 1);
        (low, (low + 1).min(from - 1), (s - low as f64) as f32)
    };
    let at = |row: usize, column: usize, channel: usize| grid[(row * from + column) * width + channel];
    let mut out = Vec::with_capacity(to * to * width);
    for (top, bottom, down) in (0..to).map(place) {
        for (left, right, across) in (0..to).map(place) {
            out.extend((0..width).map(|channel| {
                let row = |row: usize| {
                    let (a, b) = (at(row, left, channel), at(row, right, channel));
                    a + across * (b - a)
                };
                row(top) + down * (row(bottom) - row(top))
            }));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_worked_by_hand() {
        // One row per line: two columns become four at 0, 1/4, 3/4 and 1 of the way.
        let wide = interpolated(&[0.0, 4.0, 0.0, 4.0], [2, 4], 1);
        assert_eq!(wide, [0.0, 1.0, 3.0, 4.0].repeat(4));
        assert_eq!(interpolated(&[1.0, 2.0, 3.0, 4.0], [2, 2], 1), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(interpolated(&[0.0, 2.0, 4.0, 6.0], [2, 1], 1), [3.0]);
        assert_eq!(interpolated(&[5.0, 7.0], [1, 2], 2), [5.0, 7.0].repeat(4));
    }

    #[test]
    fn classes_start_anew_and_the_null_class_is_kept() {
        let theirs = || TensorData::new(vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]);
        let fresh = vec![-1.0; 4];
        let with = Refit::Classes { null: true };
        let values = with.values(theirs(), &[2, 2], fresh.clone()).unwrap();
        assert_eq!(values, TensorData::new(vec![-1.0_f32, -1.0, 5.0, 6.0], [2, 2]));
        let note = with.note("y", &[3, 2], &[2, 2]).unwrap();
        assert_eq!(note, "`y` has 2 classes; the embeddings of 1 classes start anew; the null class is kept");
        let without = Refit::Classes { null: false }.values(theirs(), &[2, 2], fresh).unwrap();
        assert_eq!(without, TensorData::new(vec![-1.0_f32; 4], [2, 2]));
        assert_eq!(with.note("y", &[3, 4], &[2, 2]), None);
    }

    #[test]
    fn positions_before_the_grid_are_kept() {
        let refit = Refit::Positions { before: 1 };
        let theirs = TensorData::new(vec![9.0_f32, 0.0, 2.0, 4.0, 6.0], [1, 5, 1]);
        assert_eq!(
            refit.values(theirs, &[1, 2, 1], vec![0.0; 2]).unwrap(),
            TensorData::new(vec![9.0_f32, 3.0], [1, 2, 1])
        );
        assert!(refit.note("p", &[1, 5, 1], &[1, 10, 1]).unwrap().contains("from 2x2 to 3x3"));
        assert_eq!(refit.note("p", &[1, 6, 1], &[1, 10, 1]), None);
        assert_eq!(refit.note("p", &[1, 5, 1], &[1, 5, 2]), None);
        assert!(Refit::Computed.note("p", &[1, 64, 8], &[1, 16, 8]).is_some());
    }
}

//! Selects which of a table's T training times a sampler visits.

use framework::prelude::*;

/// Spacing of the visited training times over the indices 0..T.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum TableSpacing {
    /// Evenly spaced from 0 to T - 1, both included. Source: arXiv:2102.09672, respacing in its code.
    #[default]
    Uniform,
    /// Equal sections of 0..T, each with its own number of evenly spaced steps.
    Sections {
        /// Number of steps per section, data side first. The sum must equal `steps`.
        counts: Vec<usize>,
    },
    /// Every n-th index from 0, with the integer n that yields `steps` indices. Source: arXiv:2010.02502 app. D.2.
    Stride,
    /// Multiples of T / steps (rounded down) from 0, plus `offset`. Latent diffusion uses offset 1.
    Leading {
        /// Added to every index; the result is limited to T - 1.
        #[serde(default)]
        offset: usize,
    },
    /// From T down in strides of T / steps, rounded, minus 1. Source: arXiv:2305.08891 table 2.
    Trailing,
}

impl TableSpacing {
    /// Returns the indices in sampling order, from noise to data.
    ///
    /// # Errors
    /// Returns a problem if the spacing cannot place this many steps. Its location is relative to the sampler.
    pub fn indices(&self, steps: usize, table: usize) -> Result<Vec<usize>, Problem> {
        let too_many = |steps: usize, room: usize| {
            Problem::new("/steps", format!("{steps} steps do not fit into {room} training times"))
                .accepts(format!("1 to {room}"))
        };
        if steps == 0 || steps > table {
            return Err(too_many(steps, table));
        }
        let mut indices = match self {
            Self::Uniform => section(0, table, steps),
            Self::Sections { counts } => {
                let (n, sum) = (counts.len(), counts.iter().sum::<usize>());
                if sum != steps {
                    let problem = Problem::new("/steps", format!("`steps` = {steps}, but the sections have {sum}"));
                    return Err(problem.and_at("/spacing/counts").accepts("the sum of all sections"));
                }
                let mut start = 0;
                let mut all = Vec::new();
                for (i, count) in counts.iter().enumerate() {
                    let size = table / n + usize::from(i < table % n);
                    if *count > size || *count == 0 {
                        let mut problem = too_many(*count, size);
                        problem.at = vec![format!("/spacing/counts/{i}")];
                        return Err(problem);
                    }
                    all.extend(section(start, size, *count));
                    start += size;
                }
                all
            }
            Self::Stride => {
                let stride = (1..=table).find(|stride| table.div_ceil(*stride) == steps);
                let Some(stride) = stride else {
                    let what = format!("no integer stride visits exactly {steps} of {table} training times");
                    return Err(Problem::new("/steps", what)
                        .and_at("/spacing")
                        .fix("use the `uniform` spacing, or a step count that divides the training times"));
                };
                (0..table).step_by(stride).collect()
            }
            Self::Leading { offset } => {
                let stride = table / steps;
                (0..steps).map(|i| (i * stride + offset).min(table - 1)).collect()
            }
            Self::Trailing => {
                let stride = table as f64 / steps as f64;
                (0..steps).map(|i| (table as f64 - i as f64 * stride).round_ties_even() as usize - 1).rev().collect()
            }
        };
        indices.reverse();
        Ok(indices)
    }
}

/// Returns `count` evenly spaced indices from `start` to `start + size - 1`.
fn section(start: usize, size: usize, count: usize) -> Vec<usize> {
    let stride = if count > 1 { (size - 1) as f64 / (count - 1) as f64 } else { 1.0 };
    // Add the stride repeatedly instead of multiplying, so that ties round as in the published respacing.
    let mut place = 0.0_f64;
    (0..count)
        .map(|_| {
            let index = start + place.round_ties_even() as usize;
            place += stride;
            index
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_equal_the_ones_computed_by_hand() {
        assert_eq!(TableSpacing::Uniform.indices(5, 9).unwrap(), [8, 6, 4, 2, 0]);
        assert_eq!(TableSpacing::Stride.indices(5, 9).unwrap(), [8, 6, 4, 2, 0]);
        assert_eq!(TableSpacing::Leading { offset: 1 }.indices(4, 8).unwrap(), [7, 5, 3, 1]);
        assert_eq!(TableSpacing::Trailing.indices(4, 8).unwrap(), [7, 5, 3, 1]);
        assert_eq!(TableSpacing::Sections { counts: vec![2, 1] }.indices(3, 8).unwrap(), [4, 3, 0]);
        assert!(TableSpacing::Uniform.indices(10, 9).is_err());
        assert!(TableSpacing::Stride.indices(7, 9).is_err());
    }
}

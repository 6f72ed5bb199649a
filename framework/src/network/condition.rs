//! Conditions of generation: a class, a text, or none.

use crate::nn;
use burn::tensor::Tensor;

/// The condition that a network reads, or that a conditioner produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionShape {
    /// No condition.
    None,
    /// One of `count` classes, or the null class.
    Class {
        /// Number of classes, without the null class.
        count: usize,
    },
    /// Features of a text, `[length, width]`.
    Text {
        /// Number of tokens per text: the largest number that a network reads, or the number that a conditioner
        /// produces; `None` = any number.
        length: Option<usize>,
        /// Width of the features.
        width: usize,
    },
    /// Token ids of a text, `[length]`, for a network that contains its own text encoder.
    Tokens {
        /// Number of tokens per text: the largest number that a network reads, or the number that a conditioner
        /// produces; `None` = any number.
        length: Option<usize>,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
}

impl ConditionShape {
    /// Returns whether a conditioner makes the condition from captions.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Text { .. } | Self::Tokens { .. })
    }

    /// Returns the number of classes of a class condition.
    pub fn num_classes(self) -> Option<usize> {
        match self {
            Self::Class { count } => Some(count),
            _ => None,
        }
    }
}

/// The condition of a batch, one entry per sample. An inner `None` is the null condition.
#[derive(Clone, Debug)]
pub enum Condition {
    /// The batch of an unconditional model; holds the number of samples.
    None(usize),
    /// A class index, or null.
    Class(Vec<Option<usize>>),
    /// Text features `[B, L, D]` and the features of the null text `[1, L, D]`.
    Text {
        /// Features of every sample; a dropped sample holds the null features.
        features: Tensor<3>,
        /// Features of the null text.
        null: Tensor<3>,
        /// Which samples hold the null features. A network with a learned null embedding substitutes it there.
        dropped: Vec<bool>,
    },
    /// Token ids of texts. All texts have the same length.
    Tokens {
        /// Ids of every sample; a dropped sample holds the ids of the null text.
        ids: Vec<Vec<usize>>,
        /// Ids of the null text.
        null: Vec<usize>,
    },
}

impl Condition {
    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::None(n) => *n,
            Self::Class(classes) => classes.len(),
            Self::Text { features, .. } => features.dims()[0],
            Self::Tokens { ids, .. } => ids.len(),
        }
    }

    /// Returns whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns which samples have the null condition.
    pub fn is_null(&self) -> Vec<bool> {
        match self {
            Self::None(n) => vec![true; *n],
            Self::Class(classes) => classes.iter().map(Option::is_none).collect(),
            Self::Text { dropped, .. } => dropped.clone(),
            Self::Tokens { ids, null } => ids.iter().map(|ids| ids == null).collect(),
        }
    }

    /// Returns the null condition for the same number of samples.
    pub fn null(&self) -> Self {
        self.dropped(&vec![true; self.len()])
    }

    /// Replaces the condition with null where `drop` is true.
    pub fn dropped(&self, drop: &[bool]) -> Self {
        match self {
            Self::None(n) => Self::None(*n),
            Self::Class(classes) => {
                Self::Class(classes.iter().zip(drop).map(|(class, drop)| class.filter(|_| !drop)).collect())
            }
            Self::Text { features, null, dropped } => {
                let [_, length, width] = features.dims();
                let rows = drop
                    .iter()
                    .enumerate()
                    .map(
                        |(i, drop)| {
                            if *drop { null.clone() } else { features.clone().slice([i..i + 1, 0..length, 0..width]) }
                        },
                    )
                    .collect();
                let dropped = dropped.iter().zip(drop).map(|(before, now)| *before || *now).collect();
                Self::Text { features: Tensor::cat(rows, 0), null: null.clone(), dropped }
            }
            Self::Tokens { ids, null } => {
                let row = |(ids, drop): (&Vec<usize>, &bool)| if *drop { null.clone() } else { ids.clone() };
                Self::Tokens { ids: ids.iter().zip(drop).map(row).collect(), null: null.clone() }
            }
        }
    }

    /// Selects the conditions of the samples `rows`, in that order. A row may appear more than once.
    pub fn select(&self, rows: &[usize]) -> Self {
        match self {
            Self::None(_) => Self::None(rows.len()),
            Self::Class(classes) => Self::Class(rows.iter().map(|i| classes[*i]).collect()),
            Self::Text { features, null, dropped } => {
                let dropped = rows.iter().map(|i| dropped[*i]).collect();
                let features = nn::rows(features.clone(), rows.iter().copied());
                Self::Text { features, null: null.clone(), dropped }
            }
            Self::Tokens { ids, null } => {
                Self::Tokens { ids: rows.iter().map(|i| ids[*i].clone()).collect(), null: null.clone() }
            }
        }
    }

    /// Returns which samples have the same condition in both. Text features are not compared; they count as different.
    pub fn same(&self, other: &Self) -> Vec<bool> {
        match (self, other) {
            (Self::Class(a), Self::Class(b)) => a.iter().zip(b).map(|(a, b)| a == b).collect(),
            (Self::Tokens { ids: a, .. }, Self::Tokens { ids: b, .. }) => {
                a.iter().zip(b).map(|(a, b)| a == b).collect()
            }
            (Self::None(n), _) => vec![true; *n],
            _ => vec![false; self.len()],
        }
    }

    /// Concatenates the samples of `self` and `other`.
    ///
    /// # Panics
    /// If the two are of different kinds.
    pub fn cat(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::None(a), Self::None(b)) => Self::None(a + b),
            (Self::Class(a), Self::Class(b)) => Self::Class(a.iter().chain(b).copied().collect()),
            (Self::Text { features: a, null, dropped }, Self::Text { features: b, dropped: also, .. }) => Self::Text {
                features: Tensor::cat(vec![a.clone(), b.clone()], 0),
                null: null.clone(),
                dropped: dropped.iter().chain(also).copied().collect(),
            },
            (Self::Tokens { ids: a, null }, Self::Tokens { ids: b, .. }) => {
                Self::Tokens { ids: a.iter().chain(b).cloned().collect(), null: null.clone() }
            }
            _ => panic!("conditions of different kinds cannot be concatenated"),
        }
    }

    /// Returns the row of the class embedding table for each sample, `[B]`. Null is row `num_classes`, the last one.
    ///
    /// # Panics
    /// If the condition is a text.
    pub fn class_rows(&self, num_classes: usize) -> Vec<i64> {
        match self {
            Self::None(n) => vec![num_classes as i64; *n],
            Self::Class(classes) => classes.iter().map(|class| class.unwrap_or(num_classes) as i64).collect(),
            Self::Text { .. } | Self::Tokens { .. } => {
                panic!("a class-conditional backbone received a text; the check phase rejects such pairs")
            }
        }
    }
}

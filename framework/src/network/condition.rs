//! What a picture is asked to show: a class, a text, or nothing.

use crate::nn;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kinds of condition a backbone can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConditionKind {
    /// No condition at all.
    None,
    /// One of `num_classes` classes.
    Class,
    /// Features of a text, `[L, D]`.
    Text,
    /// Token ids of a text, `[L]`, for a backbone with a text encoder of its own.
    Tokens,
}

impl ConditionKind {
    /// Whether it comes from captions, through a conditioner.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Tokens)
    }
}

/// The condition of a batch, one entry a sample. `None` inside is the null condition.
#[derive(Clone, Debug)]
pub enum Condition {
    /// An unconditional model's batch of that many samples.
    None(usize),
    /// A class index, or null.
    Class(Vec<Option<usize>>),
    /// Text features `[B, L, D]` and the features of the null text `[1, L, D]`.
    Text {
        /// Features of every sample; a dropped sample holds the null features.
        features: Tensor<3>,
        /// Features of the null text.
        null: Tensor<3>,
        /// Which samples hold the null features: a network may have learned a null of its own.
        dropped: Vec<bool>,
    },
    /// Token ids of a text; all are of one length.
    Tokens {
        /// Ids of every sample; a dropped sample holds those of the null text.
        ids: Vec<Vec<usize>>,
        /// Ids of the null text.
        null: Vec<usize>,
    },
}

impl Condition {
    /// Number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::None(n) => *n,
            Self::Class(classes) => classes.len(),
            Self::Text { features, .. } => features.dims()[0],
            Self::Tokens { ids, .. } => ids.len(),
        }
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The null condition for as many samples.
    pub fn null(&self) -> Self {
        self.dropped(&vec![true; self.len()])
    }

    /// The same condition with null where `drop` is true.
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

    /// The conditions of the samples `rows`, in that order; a row may appear more than once.
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

    /// Which samples have the same condition in both. Features of texts are not compared: none is the same.
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

    /// The samples of `self` followed by those of `other`.
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
            _ => panic!("conditions of different kinds in one batch"),
        }
    }

    /// The class table's rows, with null as row `num_classes` (the last): `[B]`.
    ///
    /// # Panics
    /// If the condition is a text.
    pub fn class_rows(&self, num_classes: usize) -> Vec<i64> {
        match self {
            Self::None(n) => vec![num_classes as i64; *n],
            Self::Class(classes) => classes.iter().map(|class| class.unwrap_or(num_classes) as i64).collect(),
            Self::Text { .. } | Self::Tokens { .. } => {
                panic!("a class-conditional backbone was given a text; the check phase refuses that")
            }
        }
    }
}

//! Evaluation: batches of images, feature spaces, statistics of real images, and the trait of what is measured on
//! samples. Metrics and feature spaces themselves are plugins; a change to how they accumulate and share stays here.

pub mod collected;
pub mod features;
pub mod images;
pub mod metric;
pub mod published;
pub mod space;
pub mod statistics;

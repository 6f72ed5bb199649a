//! Evaluation: batches of images, statistics of real images, and the trait of what is measured on samples.
//! Metrics themselves are plugins; a change to how they accumulate stays here.

pub mod collected;
pub mod images;
pub mod metric;
pub mod statistics;

//! Writes a document for a user's images or a published checkpoint: looks at them, asks at most four questions, fills a
//! recipe, and estimates time, memory and disk space. A new recipe is added in `recipes.rs` alone.

pub mod estimate;
pub mod options;
pub mod published;
pub mod questions;
pub mod recipes;
pub mod survey;
pub mod text;

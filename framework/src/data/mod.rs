//! Data: datasets, the loader that reads batches ahead, the tokenizer trait, and files of encoded latents.
//! The order of batches and the checks of an item can be changed here alone; readers of particular formats
//! are plugins.

pub mod checked;
pub mod dataset;
pub mod latent_file;
pub mod loader;
pub mod tokenizer;

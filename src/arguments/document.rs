//! The options of every command that reads a document. The doc comments here are the `--help` texts.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct DocumentOptions {
    /// The pipeline document.
    pub pipeline: PathBuf,
    /// Override one value by JSON pointer; may be repeated.
    #[arg(long = "set", value_name = "/POINTER=VALUE")]
    pub set: Vec<String>,
}

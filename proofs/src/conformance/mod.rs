//! Conformance: the promises that every plugin of a kind keeps, whoever wrote it. A new promise is one line in the file
//! of its kind; every registered plugin is then held to it.
//!
//! ```ignore
//! assert_eq!(conformance::objective(&json!({ "type": "mine" }), &backbone), Vec::<String>::new());
//! ```
//!
//! Every function returns the broken promises, in words.

mod backbone;
mod bench;
mod entry;
mod features;
mod hooks;
mod objective;
mod sampler;
mod tokenizer;

pub use backbone::backbone;
pub use features::features;
pub use objective::objective;
pub use sampler::sampler;
pub use tokenizer::tokenizer;

//! Framework, registry and Burn as one shared library.
//!
//! The command, every test and every plugin library link it (`use framework_dylib as _;`), so that all of them
//! share the same registrations, gradient tapes and types. A program that does not name this crate contains its
//! own copy of the framework: it is a single file and cannot load plugin libraries. A plugin library is
//! compiled with this crate under the name `framework`.

pub use framework::*;
pub use proofs::{conformance, laws};
pub use registry;

// Every binary that links this library must use the same allocator.
use allocator as _;

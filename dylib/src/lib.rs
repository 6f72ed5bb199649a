//! Framework, registry and Burn as one shared library.
//!
//! The command, every test and every plugin library link it (`use framework_dylib as _;`), so that all of them see the
//! same registrations, the same gradient tapes and the same types. A program that does not name this crate holds a copy
//! of its own: then it is one file, and cannot load plugin libraries. A plugin library is compiled with this crate under
//! the name `framework`.

pub use framework::*;
pub use registry;

// All that links a shared library allocates with its allocator.
use allocator as _;

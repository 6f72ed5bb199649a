//! The list of linked plugins. The linker drops a crate that only registers plugins unless some code names it.

use conditioners as _;
use data as _;
use dit as _;
use features as _;
#[cfg(feature = "shared")]
use framework_dylib as _;
use guidance as _;
use llamagen as _;
use mar as _;
use metrics as _;
use objectives as _;
use samplers as _;
use sd15 as _;
use tokenizers_builtin as _;
use var as _;

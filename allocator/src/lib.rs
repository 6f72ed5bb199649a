//! The memory allocator of a program: whoever links this crate allocates with it. The shared framework does, or a program
//! that has none.
//!
//! A training step allocates and frees the same gigabytes again and again. mimalloc finds room for them faster than the
//! system's allocator, and is told here to keep the pages it has: given back, they would come again as fresh ones that the
//! kernel must clear (with half of Stable Diffusion's channels a seventh of a step).

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Milliseconds until freed pages go back to the system, -1 for never: `mi_option_purge_delay` of mimalloc.h.
const PURGE_DELAY: mi_option_t = 15;

/// Runs before `main`. The environment's `MIMALLOC_PURGE_DELAY` has the last word.
#[ctor::ctor(unsafe)]
fn keep_pages() {
    // SAFETY: no thread but this one has started.
    unsafe { mi_option_set_default(PURGE_DELAY, -1) }
}

//! The memory allocator of a program: whoever links this crate allocates with it. The shared framework does, or a program
//! that has none.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// Tensors of a training step are allocated and freed thousands of times a second, faster than by the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Milliseconds until freed pages go back to the system, -1 for never: `mi_option_purge_delay` of mimalloc.h.
const PURGE_DELAY: mi_option_t = 15;

/// From now on freed pages go back to the system at once. Reading a file into a network frees what it has converted as it
/// goes: kept for mimalloc's second, the peak would depend on how fast it goes. The environment's `MIMALLOC_PURGE_DELAY` has
/// the last word, here and in [`keep_pages`].
pub fn return_pages() {
    set_delay(0);
}

/// From now on freed pages stay with the program. A training step allocates and frees the same gigabytes as the one before:
/// given back, they come again as fresh pages that the kernel must clear (with half of Stable Diffusion's channels a seventh
/// of a step).
pub fn keep_pages() {
    set_delay(-1);
}

fn set_delay(milliseconds: std::ffi::c_long) {
    // SAFETY: one word is stored; threads that read it meanwhile see the delay before or after.
    unsafe { mi_option_set_default(PURGE_DELAY, milliseconds) }
}

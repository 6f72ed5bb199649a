//! The memory allocator of a program: whoever links this crate allocates with it. The shared framework does, or a program
//! that has none.
//!
//! A training step allocates and frees the same gigabytes as the one before, in tensors of a hundred sizes. jemalloc joins what
//! is freed and cuts it anew by best fit; with one arena for all threads, what one of them freed serves the next. Where
//! jemalloc does not build (MSVC), the system allocates.

#[cfg(not(target_env = "msvc"))]
mod jemalloc {
    use tikv_jemalloc_ctl::raw;

    #[global_allocator]
    static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    /// What jemalloc reads when it starts: one arena, also for what it takes for too large. The environment's
    /// `_RJEM_MALLOC_CONF` has the last word.
    // SAFETY: the name is jemalloc's own for a text that ends with a zero; a reference to bytes starts with where they lie.
    #[unsafe(export_name = "_rjem_malloc_conf")]
    static SETTINGS: &[u8; 31] = b"narenas:1,oversize_threshold:0\0";

    /// Milliseconds until freed pages of the arena go back to the system, -1 for never.
    pub fn set_delay(milliseconds: isize) {
        // SAFETY: the number is of the type that jemalloc documents for this name.
        let set = unsafe { raw::write(b"arena.0.dirty_decay_ms\0", milliseconds) };
        set.expect("jemalloc's first arena is there");
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn jemalloc_reads_the_settings() {
            // SAFETY: the numbers are of the types that jemalloc documents for these names.
            let [arenas, threshold] = unsafe {
                [raw::read::<u32>(b"opt.narenas\0").unwrap() as usize, raw::read(b"opt.oversize_threshold\0").unwrap()]
            };
            assert_eq!([arenas, threshold], [1, 0]);
        }

        #[test]
        fn the_delay_is_that_of_the_arena() {
            for delay in [0, -1] {
                set_delay(delay);
                // SAFETY: as above.
                assert_eq!(unsafe { raw::read::<isize>(b"arena.0.dirty_decay_ms\0") }, Ok(delay));
            }
        }
    }
}

/// From now on freed pages go back to the system at once. Reading a file into a network frees what it has converted as it
/// goes: kept for jemalloc's ten seconds, the peak would depend on how fast it goes.
pub fn return_pages() {
    #[cfg(not(target_env = "msvc"))]
    jemalloc::set_delay(0);
}

/// From now on freed pages stay with the program: given back, they come again as fresh pages that the kernel must clear.
pub fn keep_pages() {
    #[cfg(not(target_env = "msvc"))]
    jemalloc::set_delay(-1);
}

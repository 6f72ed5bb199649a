//! The memory allocator: every program that links this crate allocates with it. The shared framework library
//! links it, and so does a program that does not use that library.
//!
//! A training step allocates and frees the same gigabytes as the previous one, in tensors of about a hundred
//! sizes. jemalloc merges freed memory and splits it again by best fit. With one arena for all threads, a
//! thread can reuse memory that another thread freed. Where jemalloc does not build (MSVC), the system
//! allocator is used.

#[cfg(not(target_env = "msvc"))]
mod jemalloc {
    use tikv_jemalloc_ctl::raw;

    #[global_allocator]
    static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    /// The settings that jemalloc reads at its start: one arena, which also serves oversized allocations. The
    /// environment variable `_RJEM_MALLOC_CONF` overrides them.
    // SAFETY: jemalloc defines this name as a pointer to a NUL-terminated string; a reference to an array is
    // such a pointer.
    #[unsafe(export_name = "_rjem_malloc_conf")]
    static SETTINGS: &[u8; 31] = b"narenas:1,oversize_threshold:0\0";

    /// Sets the delay, in milliseconds, until freed pages of the arena return to the system; -1 means never.
    pub fn set_delay(milliseconds: isize) {
        // SAFETY: the value has the type that jemalloc documents for this name.
        let set = unsafe { raw::write(b"arena.0.dirty_decay_ms\0", milliseconds) };
        set.expect("jemalloc's first arena exists");
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn jemalloc_reads_the_settings() {
            // SAFETY: the values have the types that jemalloc documents for these names.
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

/// Returns freed pages to the system at once from now on. Loading a file into a network frees each tensor after
/// its conversion. With jemalloc's default delay of ten seconds, the peak memory would depend on the loading
/// speed.
pub fn return_pages() {
    #[cfg(not(target_env = "msvc"))]
    jemalloc::set_delay(0);
}

/// Keeps freed pages in the process from now on. The operating system must clear a page that was returned
/// before the process can use it again, and that takes time.
pub fn keep_pages() {
    #[cfg(not(target_env = "msvc"))]
    jemalloc::set_delay(-1);
}

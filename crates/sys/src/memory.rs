//! Memory that a long-lived, mostly idle process need not keep.

/// Returns free heap memory to the kernel, where the C library can.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; the allocator does its own locking.
    unsafe {
        libc::malloc_trim(0);
    }
}

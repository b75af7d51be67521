//! Memory that a long-lived, mostly idle process need not keep.

/// What is left of the stack below the caller: its callees' frames, and the red zone of 128 bytes.
const STACK_KEPT: usize = 16 * 1024;
/// How far below that pages are given back. The kernel keeps a MiB below a stack free of other mappings
/// (`stack_guard_gap`), so that nothing but the stack is met.
const STACK_DEPTH: usize = 256 * 1024;

/// Returns memory to the kernel that is free: of the heap, where the C library can, and of the main thread's stack, where
/// the start of a program has gone deeper than its idle loop. To be called by the main thread.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; the allocator does its own locking.
    unsafe {
        libc::malloc_trim(0);
    }
    trim_stack();
}

fn trim_stack() {
    let here = 0_u8;
    let page = rustix::param::page_size();
    let end = (std::ptr::from_ref(&here) as usize - STACK_KEPT) / page * page;
    // SAFETY: the range lies below all frames that are in use, so that what is in it is read by nobody; it holds pages of
    // this stack and addresses that are not mapped, for which the kernel reports an error and does nothing.
    unsafe {
        libc::madvise((end - STACK_DEPTH) as *mut libc::c_void, STACK_DEPTH, libc::MADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes deep, and comes back.
    fn deep() -> u64 {
        let bytes = std::hint::black_box([7_u8; 100 * 1024]);
        bytes.iter().map(|byte| u64::from(*byte)).sum()
    }

    #[test]
    fn what_is_in_use_stays() {
        let kept = std::hint::black_box([5_u8; 4096]);
        let text = "kept".repeat(1000);
        for _ in 0..3 {
            assert_eq!(deep(), 7 * 100 * 1024);
            trim();
            assert!(kept.iter().all(|byte| *byte == 5) && text.ends_with("kept"));
        }
    }
}

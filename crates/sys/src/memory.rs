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

    /// Goes deep, and comes back; where on the stack it was.
    #[inline(never)]
    fn deep() -> usize {
        let bytes = std::hint::black_box([7_u8; 100 * 1024]);
        std::ptr::from_ref(&bytes[bytes.len() / 2]) as usize
    }

    /// What is in memory there, whoever has it.
    fn byte_at(address: usize) -> u8 {
        let mut byte = [0];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut byte, address as u64).unwrap();
        byte[0]
    }

    #[test]
    fn what_was_in_use_is_given_back() {
        let address = deep();
        assert_eq!(byte_at(address), 7);
        trim();
        assert_eq!(byte_at(address), 0);
    }

    #[test]
    fn what_is_in_use_stays() {
        let kept = std::hint::black_box([5_u8; 4096]);
        let text = "kept".repeat(1000);
        for _ in 0..3 {
            deep();
            trim();
            assert!(kept.iter().all(|byte| *byte == 5) && text.ends_with("kept"));
        }
    }
}

//! Real containers from a directory with busybox. Needs root and `/bin/busybox` (Debian's busybox-static).
//!
//! The runtime forks, so its callers must have one thread: this harness runs the tests one after another in the
//! main thread, and speaks as much of libtest's language as `cargo test` and nextest need.

#![expect(clippy::print_stdout, reason = "a test harness reports on standard output")]

mod support;

mod attacks;
mod attacks_race;
mod basics;
mod hooks;
mod life;
mod limits;
mod listener;
mod lsm;
mod mounts;
mod netdev;
mod prepared;
mod process;
mod seccomp;
mod userns;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's memory, counted.
struct Counted;

#[global_allocator]
static MEMORY: Counted = Counted;
static LIVE: AtomicUsize = AtomicUsize::new(0);
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are allocated and not freed.
pub fn live_bytes() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// How often memory was allocated.
pub fn allocations() -> usize {
    MADE.load(Ordering::Relaxed)
}

// SAFETY: it is the system's, and what is counted beside it allocates nothing.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        MADE.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A test: its name and what it does.
pub type Test = (&'static str, fn());

/// Names the tests of a module.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// The tests of this module.
        pub const TESTS: &[$crate::Test] =
            &[$((concat!(module_path!(), "::", stringify!($name)), $name)),*];
    };
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args[0] == proa_runtime::INIT_NAME {
        proa_runtime::init_main();
    }
    let tests: Vec<Test> = [
        attacks::TESTS,
        attacks_race::TESTS,
        basics::TESTS,
        hooks::TESTS,
        life::TESTS,
        limits::TESTS,
        listener::TESTS,
        lsm::TESTS,
        mounts::TESTS,
        netdev::TESTS,
        prepared::TESTS,
        process::TESTS,
        seccomp::TESTS,
        userns::TESTS,
    ]
    .concat();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    if has("--list") {
        if !has("--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return;
    }
    let filters: Vec<&String> = args[1..].iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters
                .iter()
                .any(|filter| if has("--exact") { name == *filter } else { name.contains(*filter) })
    };
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let passed = catch_unwind(AssertUnwindSafe(|| support::without_leaks(test))).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += i32::from(!passed);
    }
    std::process::exit(failed.min(1));
}

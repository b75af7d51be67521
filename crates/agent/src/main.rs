//! PID 1 of a guest: mounts the root and applies the runtime spec.

fn main() {}

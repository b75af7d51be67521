//! The process that outlives the CLI and owns one instance.

fn main() {}

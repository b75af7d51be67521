//! The proa command line.

fn main() {}

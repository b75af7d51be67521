//! Checks and recipes for contributors.

fn main() {}

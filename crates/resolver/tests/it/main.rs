//! The resolver as it is run, in a network namespace of its own for each test.
//!
//! Needs root.
